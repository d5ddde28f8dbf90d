"""pass@k, majority votes, intervals over seeds and questions. Plain numpy, no models.

Every interval here is for new seeds and new questions; docs/statistics.md shows how often each covers in simulations.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb, sqrt

import numpy as np

Z95 = 1.959963984540054  # 97.5 % point of the standard normal
FEW = 10  # with fewer right, or wrong, answers than this many questions' worth, the normal approximation fails


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is correct), from `samples` of which `correct` are.

    1 - C(n-c, k) / C(n, k); Chen et al. 2021, arXiv:2107.03374, section 2.1. Raises ValueError if k > samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {samples}")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct must be in 0..{samples}, got {correct}")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def majority_at_k(answers: list[str | None], correct: list[bool], k: int) -> float:
    """Expected accuracy of a majority vote over k of the answers, exact over all subsets of size k.

    Answers are normalized; None does not vote; tied answers share the credit equally; no vote is wrong.
    """
    if not 0 < k <= len(answers):
        raise ValueError(f"maj@{k} needs at least {k} samples a problem, got {len(answers)}")
    credit = []
    for subset in combinations(range(len(answers)), k):
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        right = {answers[i] for i in subset if answers[i] is not None and correct[i]}
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        credit.append(sum(answer in right for answer in top) / len(top) if top else 0.0)
    return float(np.mean(credit))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; low and high are NaN where the data do not determine one."""

    mean: float
    low: float
    high: float
    one_seed: bool = False  # the bounds are for new questions, and say nothing about another seed

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Interval":
        """The interval without values that cannot be."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))


def wilson(successes: float, trials: float, z: float = Z95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError without trials."""
    if trials <= 0:
        raise ValueError("a proportion needs at least one trial")
    p = successes / trials
    center = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return Interval(p, max(0.0, min(center - half, p)), min(1.0, max(center + half, p)))


def clustered_standard_error(scores: np.ndarray) -> float:
    """Standard error of the mean of scores (questions, samples), the samples of a question being one cluster.

    Miller 2024, arXiv:2411.00640, section 2.2: SE^2 = sum over questions of (sum of deviations)^2 / n^2.
    """
    deviations = scores - scores.mean()
    return sqrt((deviations.sum(axis=1) ** 2).sum()) / scores.size


def student(freedom: float, level: float = 0.95) -> float:
    """Point of Student's distribution that bounds its middle: 95 % of it by default."""
    from scipy.special import stdtrit  # imported here: a process that only grades needs no scipy

    return float(stdtrit(freedom, 0.5 + level / 2))


@dataclass(frozen=True)
class Spread:
    """The mean of scores (seeds, questions), and the parts of its variance.

    Seeds and questions are crossed: every seed's checkpoint answers the same questions. The variance of the mean is
        s_seed^2 / S  +  s_question^2 / Q  -  s_cell^2 / (S Q)
    where s_seed^2 is the variance of the seeds' means, s_question^2 that of the questions' means, and s_cell^2 the
    interaction, which the first two count twice (two-way analysis of variance without replication). The parts are the
    three terms. With one seed there is the questions' part only.
    """

    mean: float
    seed_part: float
    question_part: float
    cell_part: float
    seeds: int
    questions: int

    @property
    def variance(self) -> float:
        """Never less than the seeds' or the questions' part, which are known by themselves."""
        return max(self.seed_part + self.question_part - self.cell_part, self.seed_part, self.question_part)

    @property
    def freedom(self) -> float:
        """Satterthwaite's (1946) degrees of freedom: few seeds give a wide quantile, unless the questions dominate."""
        if self.seeds == 1 or self.variance == 0:
            return self.questions - 1
        spread = self.seed_part**2 / (self.seeds - 1) + self.question_part**2 / (self.questions - 1)
        return min(max(self.variance**2 / spread, self.seeds - 1), (self.seeds - 1) * self.questions)

    def floor(self, level: float = 0.95) -> float:
        """Half of the width if one question's score alone had differed, by 1."""
        return student(self.questions - 1, level) / (self.questions + 2)

    def half(self, level: float = 0.95) -> float:
        """Half of the width of an interval of the mean.

        Two seeds cannot estimate Satterthwaite's degrees of freedom: where the two are alike by chance, the interval
        would be too narrow. Banerjee's (1960) interval holds for any ratio of the two parts: the squares of each part's
        own Student interval are added.
        """
        if self.seeds != 2:
            return student(self.freedom, level) * sqrt(self.variance)
        more = max(self.question_part - self.cell_part, 0.0)
        by_questions = student(self.questions - 1, level)
        squares = student(1, level) ** 2 * self.seed_part + by_questions**2 * more
        return sqrt(max(squares, by_questions**2 * self.question_part))

    def interval(self, level: float = 0.95, whole: bool = True) -> Interval:
        """For new seeds *and* new questions.

        whole: a question's score is right or wrong, or a count. Then the interval is never narrower than if one
        question's score had differed by 1: scores that are all equal do not show that the next one is equal, too.
        """
        if self.questions < 2:
            return Interval(self.mean, np.nan, np.nan, self.seeds == 1)
        half = max(self.half(level), self.floor(level) if whole else 0.0)
        return Interval(self.mean, self.mean - half, self.mean + half, self.seeds == 1)


def spread(scores: np.ndarray) -> Spread:
    """Mean and parts of the variance of scores (seeds, questions); for a paired difference pass the differences."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be (seeds, questions) and not empty, got shape {scores.shape}")
    seeds, questions = scores.shape
    mean = float(scores.mean())
    if questions < 2:
        return Spread(mean, np.nan, np.nan, np.nan, seeds, questions)
    question_part = scores.mean(axis=0).var(ddof=1) / questions
    if seeds == 1:
        return Spread(mean, 0.0, question_part, 0.0, seeds, questions)
    seed_part = scores.mean(axis=1).var(ddof=1) / seeds
    residual = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + mean
    cell_part = (residual**2).sum() / ((seeds - 1) * (questions - 1)) / (seeds * questions)
    return Spread(mean, seed_part, question_part, cell_part, seeds, questions)


def mean_interval(scores: np.ndarray) -> Interval:
    """Mean of scores (seeds, questions) with its 95 % interval."""
    return spread(scores).interval()


def share_interval(scores: np.ndarray) -> Interval:
    """The same for scores that are shares: Wilson's interval, within 0 and 1 and never without width.

    The number of trials is the one that has the variance of the mean: p (1 - p) / variance. Where nearly all answers
    are right, or wrong, the variance is not known well; there the interval holds that of one trial a question, too.
    """
    found = spread(scores)
    p, variance, questions = found.mean, found.variance, found.questions
    if questions < 2:
        return Interval(p, np.nan, np.nan, found.seeds == 1)
    by_questions = wilson(p * questions, questions, student(questions - 1))
    if variance == 0:
        return replace(by_questions, mean=p, one_seed=found.seeds == 1)
    trials = p * (1 - p) / variance
    own = wilson(p * trials, trials, found.half() / sqrt(variance))
    low, high = own.low, own.high
    if min(p, 1 - p) * questions < FEW:
        low, high = min(low, by_questions.low), max(high, by_questions.high)
    return Interval(p, low, high, found.seeds == 1)


def seed_interval(values: np.ndarray) -> Interval:
    """Mean over seeds with Student's 95 % interval; values (seeds,). One seed has no interval."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = student(len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
