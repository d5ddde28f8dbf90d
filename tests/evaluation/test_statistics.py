import numpy as np
import pytest

from evaluation.statistics import (
    clustered_standard_error,
    majority_at_k,
    mean_interval,
    pass_at_k,
    seed_interval,
    share_interval,
    wilson,
)
from evaluation.statistics.robust import (
    exact_share,
    failed,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    "n, c, k, expected",
    [
        (10, 3, 1, 0.3),
        (10, 3, 5, 0.9166667),
        (8, 2, 4, 0.7857143),
        (16, 2, 8, 0.7666667),
        (10, 0, 5, 0.0),
        (10, 6, 5, 1.0),
    ],
)
def test_golden_pass_at_k(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_grows_with_k_and_refuses_more_than_there_are():
    assert all(pass_at_k(8, 3, k) <= pass_at_k(8, 3, k + 1) for k in range(1, 8))
    with pytest.raises(ValueError, match="at least 9"):
        pass_at_k(8, 3, 9)


def test_majority_by_hand():
    answers, correct = ["5", "5", "7", None], [True, True, False, False]
    assert majority_at_k(answers, correct, 4) == 1.0  # 5 has two votes
    assert majority_at_k(["5", "7"], [True, False], 2) == 0.5  # a tie shares the credit
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    # pairs of [5, 7, 7]: {5, 7} twice at 1/2, {7, 7} once at 0: 1/3
    assert majority_at_k(["5", "7", "7"], [True, False, False], 2) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(30, 100, 0.2189489, 0.3958485), (0, 20, 0.0, 0.1611252), (659, 1319, 0.4726779, 0.5265661)],
)
def test_golden_wilson(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_golden_clustered_standard_error():
    """Deviations of the clusters sum to 1, 0, -1: sqrt(2) / 6. Taken for independent, the six would give 0.2041241."""
    scores = np.array([[1, 1], [1, 0], [0, 0]])
    assert clustered_standard_error(scores) == pytest.approx(0.2357023, abs=1e-6)
    assert clustered_standard_error(scores.reshape(6, 1)) == pytest.approx(0.2041241, abs=1e-6)


@pytest.mark.parametrize(
    "scores, expected",
    [
        (np.arange(1, 9) / 10, 0.45),  # 0.3 to 0.6
        ([0.0, 0.1, 0.3, 0.4, 0.5, 0.6, 5.0, 9.0], 0.45),  # two are dropped at each end, however far out
        ([0.90, 0.30, 0.52, 0.55, 0.50], 0.5233333),  # 0.50, 0.52, 0.55; the mean is 0.554
        ([[0.1, 0.8, 0.3], [0.9, 0.2, 0.4]], 0.425),  # tasks x seeds, taken together: 0.2, 0.3, 0.4, 0.8
        ([0.7], 0.7),
    ],
)
def test_golden_interquartile_mean(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected, abs=1e-6)


def test_an_interquartile_mean_needs_scores():
    with pytest.raises(ValueError, match="at least one score"):
        interquartile_mean(np.array([]))


RLIABLE = np.array([[1, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1, 1], [2, 2], [3, 3]])  # its own tests' (runs, tasks)


def test_rliables_golden_values():
    x, y = RLIABLE
    assert (interquartile_mean(x), interquartile_mean(y)) == (1.5, 2.0)
    # each task: of 4 x 3 pairs of runs 2 are higher and 4 are ties: (2 + 4 / 2) / 12
    assert probability_of_improvement(x, y) == pytest.approx(1 / 3)
    assert probability_of_improvement(x, x) == 0.5
    assert performance_profile(x, np.array([0, 1, 1.5, 2])) == pytest.approx([1, 0.5, 0.5, 0])  # strictly above


def test_probability_of_improvement_is_mann_and_whitneys():
    from scipy.stats import mannwhitneyu

    x, y = np.random.default_rng(0).integers(0, 9, (2, 7))
    assert probability_of_improvement(x, y[:5]) == pytest.approx(mannwhitneyu(x, y[:5]).statistic / 35)


def test_a_seed_has_failed_below_half_of_the_median_or_of_the_start():
    assert failed([0.8, 0.82, 0.39]).tolist() == [False, False, True]
    assert failed([0.02, 0.03, 0.8]).tolist() == [False, False, False]  # nothing tells which of them is usual
    assert failed([0.02, 0.03, 0.8], start=0.5).tolist() == [True, True, False]
    assert failed([0.0], start=0.005).tolist() == [False]  # one right response of 192 and none
    assert failed([0.0], start=0.06).tolist() == [True]


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(0, 3, 0.0, 0.7075982), (1, 5, 0.0050508, 0.7164179), (5, 5, 0.4781762, 1.0)],  # 1 - 0.025^(1/3) = 0.7075982
)
def test_golden_exact_share(successes, trials, low, high):
    interval = exact_share(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)


def test_golden_paired_difference_of_one_seed():  # 0.3333333 +- 0.2108185 standard errors, t quantile of 5 degrees
    a, b = np.array([[1, 0, 1, 1, 0, 1]]), np.array([[1, 0, 0, 1, 0, 0]])
    interval = mean_interval(a - b)
    assert interval.mean == pytest.approx(1 / 3)
    assert interval.high - interval.mean == pytest.approx(2.5705818 * 0.2108185, abs=1e-5)
    unpaired = [(mean_interval(x).high - x.mean()) / 2.5705818 for x in (a, b)]
    assert np.hypot(*unpaired) == pytest.approx(0.2981424, abs=1e-6)  # what ignoring the pairs would give


def test_interval_without_question_spread_is_students_over_seeds():
    scores = np.repeat(np.array([[0.5], [0.6], [0.7]]), 50, axis=1)  # every question the same: only seeds vary
    interval, students = mean_interval(scores), seed_interval([0.5, 0.6, 0.7])
    assert (interval.low, interval.high) == (pytest.approx(students.low), pytest.approx(students.high))


def test_interval_covers_new_seeds_and_questions_as_often_as_it_says():
    """Crossed random effects with a known mean: 95 % intervals hold it in about 95 % of 400 studies."""
    rng = np.random.default_rng(0)
    held, naive = 0, 0
    for _ in range(400):
        seeds, questions = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.4, (1, 60))
        scores = 0.5 + seeds + questions + rng.normal(0, 0.3, (3, 60))
        interval, over_questions = mean_interval(scores), mean_interval(scores.mean(axis=0, keepdims=True))
        held += interval.low <= 0.5 <= interval.high
        naive += over_questions.low <= 0.5 <= over_questions.high
    assert 0.92 <= held / 400 <= 0.99
    assert naive < held


def test_two_seeds_that_are_alike_by_chance_do_not_make_a_narrow_interval():
    """Banerjee: squares 12.7062^2 x 0.01^2 / 2 for the seeds and t^2 x (B - C) for the questions."""
    questions = np.linspace(0.2, 0.8, 61)
    scores = np.stack([questions - 0.005, questions + 0.005])
    interval, part = mean_interval(scores), questions.var(ddof=1) / 61
    seeds = (12.7062047 * 0.005) ** 2  # the variance of the seeds' means, 0.01^2 / 2, is halved: sqrt is 0.005
    assert interval.high - 0.5 == pytest.approx(np.sqrt(seeds + 2.0002978**2 * part), rel=1e-5)


def test_one_seed_has_no_interval_over_seeds():
    assert np.isnan(seed_interval([0.5]).low)
    assert mean_interval(np.random.default_rng(0).random((1, 10))).one_seed
    assert share_interval(np.random.default_rng(0).random((1, 10))).one_seed
    assert not share_interval(np.random.default_rng(0).random((2, 10))).one_seed


def test_a_share_of_one_answer_a_question_is_wilsons():
    scores = np.array([[1.0] * 30 + [0.0] * 10])
    expected = wilson(0.75 * 39, 39, 2.0226909)  # p (1 - p) / variance = 39 trials; Student's quantile of 39
    found = share_interval(scores)
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, expected.low, expected.high), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_no_interval_is_without_width(value, seeds):
    scores = np.full((seeds, 16), value)
    share, mean = share_interval(scores), mean_interval(scores)
    assert share.high - share.low > 0.2 and mean.high - mean.low > 0.2
    assert 0 <= share.low <= value <= share.high <= 1


def test_all_wrong_is_wilsons_interval_of_no_success():  # t^2 / (16 + t^2) with the quantile of 15 degrees, 2.1314495
    for seeds in (1, 3):
        assert share_interval(np.zeros((seeds, 16))).high == pytest.approx(0.2211488, abs=1e-6)


def test_bounds_of_a_share_stay_within_0_and_1_where_seeds_are_far_apart():
    scores = np.repeat([[0.99], [0.6], [0.36]], 20, axis=1)
    assert mean_interval(scores).high > 1
    interval = share_interval(scores)
    assert 0 < interval.low < 0.3 and 0.85 < interval.high < 1
