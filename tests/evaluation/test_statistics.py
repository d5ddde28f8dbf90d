import numpy as np
import pytest

from evaluation.statistics import (
    clustered_standard_error,
    interquartile_mean,
    majority_at_k,
    mcnemar,
    mean_interval,
    pass_at_k,
    seed_interval,
    wilson,
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


@pytest.mark.parametrize(
    "counts, expected",
    [
        ((10, 4), 0.1795654),  # 2 (C(14,0) + ... + C(14,4)) / 2^14 = 2 x 1471 / 16384
        ((4, 10), 0.1795654),
        ((5, 5), 1.0),
        ((0, 0), 1.0),  # no question on which they differ
        ((6, 0), 0.03125),  # 2 / 64
    ],
)
def test_golden_mcnemar(counts, expected):
    assert mcnemar(*counts) == pytest.approx(expected, abs=1e-6)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="at least 0, got -1 and 3"):
        mcnemar(-1, 3)


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


def test_one_seed_has_no_interval_over_seeds():
    assert np.isnan(seed_interval([0.5]).low)


def test_constant_scores_have_an_interval_of_no_width():
    interval = mean_interval(np.ones((3, 10)))
    assert (interval.low, interval.high) == (1.0, 1.0)
