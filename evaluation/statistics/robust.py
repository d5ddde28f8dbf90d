"""What a mean over seeds hides: seeds that failed, the middle of the seeds, and how often one stage beats another.

Scores are (runs, tasks), as in rliable (Agarwal et al. 2021, arXiv:2108.13264, section 4): here a run is a seed, and
the one task is the test set.
"""

from math import comb

import numpy as np

from evaluation.statistics import Interval

FAILED = 0.5  # a seed has failed whose score is below this share of its stage's median, or of its start's score
LEAST = 0.05  # a median or a start's score below this tells nothing: a small sample of responses can miss it


def failed(scores: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Which seeds have failed, given each seed's score and the score of the stage that they start from."""
    scores = np.asarray(scores, dtype=float)
    usual = max(float(np.median(scores)), start)
    return scores < FAILED * usual if usual >= LEAST else np.zeros(len(scores), dtype=bool)


def exact_share(successes: int, trials: int) -> Interval:
    """A share with Clopper and Pearson's (1934) 95 % interval, which covers at least as often as it says."""
    from scipy.special import betaincinv

    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"successes must be in 0..{trials} of at least one trial, got {successes}")
    low = betaincinv(successes, trials - successes + 1, 0.025) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 0.975) if successes < trials else 1.0
    return Interval(successes / trials, float(low), float(high))


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores, of any shape: floor(n / 4) are dropped at each end.

    It uses half of the runs, where the median uses one or two; a single run that fails or excels does not move it, as
    it would move the mean. Raises ValueError without scores.
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=None)
    if not len(ordered):
        raise ValueError("an interquartile mean needs at least one score")
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> float:
    """P(a run of the first scores higher than one of the second), mean over tasks; a tie is half an improvement."""
    a, b = np.asarray(first, dtype=float)[:, None], np.asarray(second, dtype=float)[None]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of all runs and tasks that score above each threshold."""
    return (np.asarray(scores, dtype=float).reshape(-1, 1) > np.asarray(thresholds)).mean(axis=0)


def expected_best(scores: np.ndarray) -> np.ndarray:
    """The expected highest of n scores drawn from these without replacement, for n = 1 .. all of them: (N,).

    What tuning with n configurations would have reached (Dodge et al. 2019, arXiv:1909.03004, who draw with
    replacement). The i-th lowest of N scores is the highest of n in C(i - 1, n - 1) of C(N, n) draws.
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    total = len(ordered)
    return np.array(
        [sum(comb(i, n - 1) * ordered[i] for i in range(total)) / comb(total, n) for n in range(1, total + 1)]
    )
