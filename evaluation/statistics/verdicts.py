"""Many paired differences at once -> which of them may be named: higher, lower, equal within the margin, cannot tell.

A difference is named if two things hold:
- its p-value, adjusted by Holm (1979) over all comparisons of its family, is below 5 %, so that at most 5 % of studies
  of equal stages name any difference; and
- its own 95 % interval, made of its own seeds alone, excludes 0.
The p-value takes the variance between seeds of all comparisons of a pool, which 3 or 5 seeds of one pair estimate
badly; or the pair's own, where that is larger. The second condition, too, guards pairs whose seeds vary more than those
of the pool. "Equal within the margin" is said by the same two conditions, for two one-sided tests (TOST, Schuirmann
1987) and the pair's own 90 % interval.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from evaluation.statistics import Interval, Spread

HIGHER, LOWER, EQUAL, UNKNOWN = "higher", "lower", "equal within the margin", "cannot tell"
ONE_SEED = "this seed only"  # a difference that says nothing about another seed has no verdict
NO_INTERVAL = "no interval"  # nor has one without an interval
ERROR = (
    0.05  # of studies of equal stages that name a difference; and of those that call a difference at the margin equal
)
POWER = 0.8
SMALLEST = 1e-16  # p-value


@dataclass(frozen=True)
class Comparison:
    """A paired difference to be judged."""

    spread: Spread | None  # of the differences (seeds, questions); None: they cannot be paired
    mean: float
    one_seed: bool = False  # one of the two stages has a single seed, and is not the other one's start
    pool: Hashable | None = None  # comparisons of one pool share the variance between seeds


@dataclass(frozen=True)
class Judgement:
    """What can be said of one difference."""

    interval: Interval  # of its own seeds and questions, 95 %, not adjusted
    verdict: str
    p: float = np.nan  # adjusted by Holm
    equivalence_p: float = np.nan  # adjusted by Holm
    detectable: float = np.nan  # the difference that a study of this size names in 80 % of cases
    spread: Spread | None = None

    def flipped(self) -> "Judgement":
        """The same of the difference the other way round."""
        verdict = {HIGHER: LOWER, LOWER: HIGHER}.get(self.verdict, self.verdict)
        spread = None if self.spread is None else replace(self.spread, mean=-self.spread.mean)
        low, high = -self.interval.high, -self.interval.low
        interval = replace(self.interval, mean=-self.interval.mean, low=low, high=high)
        return replace(self, interval=interval, verdict=verdict, spread=spread)


@dataclass(frozen=True)
class Scale:
    """The scale of a difference's error: two independent parts of its variance, with their degrees of freedom."""

    seed_part: np.ndarray
    freedom: np.ndarray
    question_part: np.ndarray  # beyond what the seeds' part holds
    floor: np.ndarray  # all of the questions' part: the variance is never less
    questions: np.ndarray

    def half(self, error: np.ndarray | float) -> np.ndarray:
        """Half of the width of Banerjee's interval, which misses in at most this share of cases."""
        from scipy.special import stdtrit

        by_seeds, by_questions = (stdtrit(nu, error / 2) for nu in (self.freedom, self.questions - 1))
        squares = by_seeds**2 * self.seed_part + by_questions**2 * self.question_part
        return np.sqrt(np.maximum(squares, by_questions**2 * self.floor))

    @property
    def standard_error(self) -> np.ndarray:
        return np.sqrt(np.maximum(self.seed_part + self.question_part, self.floor))

    def p(self, gap: np.ndarray) -> np.ndarray:
        """The two-sided p-value of a difference: the error at which its interval ends at 0. By bisection of log p."""
        low, high = np.full(len(gap), np.log(SMALLEST)), np.zeros(len(gap))
        for _ in range(30):
            middle = (low + high) / 2
            reaches = self.half(np.exp(middle)) >= gap
            low, high = np.where(reaches, middle, low), np.where(reaches, high, middle)
        return np.exp(high)


def judge(comparisons: list[Comparison], freedoms: dict[Hashable, int], margin: float) -> list[Judgement]:
    """A judgement of each comparison of one family; freedoms: of each pool's variance between seeds."""
    able = [i for i, c in enumerate(comparisons) if c.spread is not None and c.spread.questions > 1 and not c.one_seed]
    found = [_unjudged(comparison) for comparison in comparisons]
    if not able:
        return found
    spreads = [spread for i in able if (spread := comparisons[i].spread) is not None]
    usual = _scale([comparisons[i] for i in able], spreads, freedoms)
    scale = replace(usual, seed_part=np.maximum(usual.seed_part, [spread.seed_part for spread in spreads]))
    gaps = np.array([abs(spread.mean) for spread in spreads])
    inside = scale.p(np.maximum(margin - gaps, 0)) / 2  # the larger of the two one-sided p-values
    different, equal = holm(scale.p(gaps)), holm(np.where(gaps < margin, inside, 1.0))
    smallest = _detectable(usual, np.array([spread.seeds for spread in spreads]))
    for n, i in enumerate(able):
        own = found[i].interval
        verdict = _verdict(spreads[n], own, different[n], equal[n], margin)
        found[i] = Judgement(own, verdict, float(different[n]), float(equal[n]), float(smallest[n]), spreads[n])
    return found


def _unjudged(comparison: Comparison) -> Judgement:
    interval, spread = own_interval(comparison), comparison.spread
    if np.isnan(interval.low):
        return Judgement(interval, NO_INTERVAL, spread=spread)
    return Judgement(interval, ONE_SEED if comparison.one_seed else UNKNOWN, spread=spread)


def own_interval(comparison: Comparison) -> Interval:
    """The 95 % interval of a difference of shares, made of its own seeds and questions."""
    if comparison.spread is None:
        return Interval(comparison.mean, np.nan, np.nan, comparison.one_seed)
    return replace(comparison.spread.interval(), one_seed=comparison.one_seed).within(-1.0, 1.0)


def _verdict(spread: Spread, own: Interval, different: float, equal: float, margin: float) -> str:
    if different < ERROR and own.excludes_zero:
        return HIGHER if own.mean > 0 else LOWER
    narrower = spread.interval(1 - 2 * ERROR)
    if equal < ERROR and -margin < narrower.low and narrower.high < margin:
        return EQUAL
    return UNKNOWN


def _scale(comparisons: list[Comparison], spreads: list[Spread], freedoms: dict[Hashable, int]) -> Scale:
    """The error of each difference, the variance between seeds being that of its pool."""
    pooled = _pooled(comparisons, spreads)
    seed_part = [
        s.seed_part if c.pool is None else pooled[c.pool] / s.seeds for c, s in zip(comparisons, spreads, strict=True)
    ]
    freedom = [s.seeds - 1 if c.pool is None else freedoms[c.pool] for c, s in zip(comparisons, spreads, strict=True)]
    floor = [max(s.question_part, 1 / (s.questions + 2) ** 2) for s in spreads]
    more = [max(s.question_part - s.cell_part, 0.0) for s in spreads]
    questions = [s.questions for s in spreads]
    return Scale(*(np.array(values, dtype=float) for values in (seed_part, freedom, more, floor, questions)))


def _pooled(comparisons: list[Comparison], spreads: list[Spread]) -> dict[Hashable, float]:
    """The variance of a seed's difference, mean over the comparisons of each pool by their degrees of freedom."""
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for comparison, spread in zip(comparisons, spreads, strict=True):
        sums[comparison.pool][0] += (spread.seeds - 1) * spread.seed_part * spread.seeds
        sums[comparison.pool][1] += spread.seeds - 1
    return {pool: total / freedom for pool, (total, freedom) in sums.items()}


def _detectable(scale: Scale, seeds: np.ndarray) -> np.ndarray:
    """The difference that meets both conditions in 80 % of cases, if it is the smallest of the family to be named."""
    from scipy.special import stdtrit

    own = replace(scale, freedom=np.minimum(seeds - 1.0, scale.freedom))
    by_pool = scale.half(ERROR / len(seeds)) + stdtrit(scale.freedom, POWER) * scale.standard_error
    by_own = own.half(ERROR) + stdtrit(own.freedom, POWER) * scale.standard_error
    return np.minimum(np.maximum(by_pool, by_own), 1.0)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjustment: the smallest p-value times their number, the next one times one less, and so on."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted
