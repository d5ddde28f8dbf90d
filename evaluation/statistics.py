"""pass@k, majority votes, intervals over seeds and questions, a paired test. Plain numpy, no models."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import comb, sqrt

import numpy as np

Z95 = 1.959963984540054  # 97.5 % point of the standard normal


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

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(successes: float, trials: int, z: float = Z95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927). Raises ValueError without trials."""
    if trials <= 0:
        raise ValueError("a proportion needs at least one trial")
    p = successes / trials
    center = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return Interval(p, max(0.0, center - half), min(1.0, center + half))


def clustered_standard_error(scores: np.ndarray) -> float:
    """Standard error of the mean of scores (questions, samples), the samples of a question being one cluster.

    Miller 2024, arXiv:2411.00640, section 2.2: SE^2 = sum over questions of (sum of deviations)^2 / n^2.
    """
    deviations = scores - scores.mean()
    return sqrt((deviations.sum(axis=1) ** 2).sum()) / scores.size


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores, of any shape: floor(n / 4) are dropped at each end.

    Agarwal et al. 2021, arXiv:2108.13264, section 4.3: it uses half of the runs, where the median uses one or two; a
    single run that fails or excels does not move it, as it would move the mean. Raises ValueError without scores.
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=None)
    if not len(ordered):
        raise ValueError("an interquartile mean needs at least one score")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: two models on the same questions, one answer each, right or wrong.

    only_first, only_second: the number of questions that the first, or the second, model alone answers right.
    Questions on which the models agree say nothing. Under the null hypothesis each of the others falls to either side
    with probability 1/2 (McNemar 1947).
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be at least 0, got {only_first} and {only_second}")
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def student(freedom: float) -> float:
    """97.5 % point of Student's distribution."""
    from scipy.special import stdtrit  # imported here: a process that only grades needs no scipy

    return float(stdtrit(freedom, 0.975))


def mean_interval(scores: np.ndarray) -> Interval:
    """Mean of scores (seeds, questions) with a 95 % interval for new seeds *and* new questions.

    Seeds and questions are crossed: every seed's checkpoint answers the same questions. The variance of the mean
    has a seed part, a question part and a residual part:
        s_seed^2 / S  +  s_question^2 / Q  -  s_cell^2 / (S Q)
    where s_seed^2 is the variance of the seeds' means, s_question^2 that of the questions' means, and s_cell^2 the
    interaction, which the first two count twice (two-way analysis of variance without replication). The variance is
    never less than the larger of the first two. Degrees of freedom are Satterthwaite's (1946): few seeds give a wide
    Student quantile, unless the questions dominate the variance.
    With one seed only the questions' part exists, and the interval says nothing about other seeds.
    For a paired difference pass the differences.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be (seeds, questions) and not empty, got shape {scores.shape}")
    seeds, questions = scores.shape
    mean = scores.mean()
    if questions < 2:
        return Interval(mean, float("nan"), float("nan"))
    question_part = scores.mean(axis=0).var(ddof=1) / questions
    if seeds == 1:
        half = student(questions - 1) * sqrt(question_part)
        return Interval(mean, mean - half, mean + half)
    seed_part = scores.mean(axis=1).var(ddof=1) / seeds
    residual = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + mean
    cell_part = (residual**2).sum() / ((seeds - 1) * (questions - 1)) / (seeds * questions)
    variance = max(seed_part + question_part - cell_part, seed_part, question_part)
    if variance == 0:
        return Interval(mean, mean, mean)
    spread = seed_part**2 / (seeds - 1) + question_part**2 / (questions - 1)
    freedom = min(max(variance**2 / spread, seeds - 1), (seeds - 1) * questions) if spread else seeds - 1
    half = student(freedom) * sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def seed_interval(values: np.ndarray) -> Interval:
    """Mean over seeds with Student's 95 % interval; values (seeds,). One seed has no interval."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = student(len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
