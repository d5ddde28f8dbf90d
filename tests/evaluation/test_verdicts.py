"""Verdicts by hand: p-values, Holm, two one-sided tests, and who shares a variance with whom."""

import numpy as np
import pytest
from scipy.stats import t

from evaluation.collect import Stage
from evaluation.families import OTHER, SAME_START, START, Verdicts
from evaluation.statistics import Spread, spread
from evaluation.statistics.verdicts import (
    EQUAL,
    HIGHER,
    LOWER,
    NO_INTERVAL,
    ONE_SEED,
    UNKNOWN,
    Comparison,
    Scale,
    holm,
    judge,
)


def compared(mean: float, error: float, seeds: int = 3, pool=None, **options) -> Comparison:
    """A difference whose error lies between the seeds alone; error: the standard error of their mean."""
    return Comparison(Spread(mean, error**2, 0.0, 0.0, seeds, 10_000), mean, pool=pool, **options)


def test_golden_holm():
    """0.005 x 4, 0.01 x 3, 0.03 x 2; 0.04 x 1 is not less than the one before."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])


def test_a_p_value_is_students_where_one_part_is_all():
    gaps = np.array([0.0, 0.01, 0.05, 0.2])
    nothing = np.zeros(4)
    seeds = Scale(np.full(4, 1e-4), np.full(4, 2.0), nothing, nothing, np.full(4, 400.0))
    assert seeds.p(gaps) == pytest.approx(2 * t.sf(gaps / 0.01, 2), rel=1e-6)
    questions = Scale(nothing, np.full(4, 2.0), np.full(4, 1e-4), nothing, np.full(4, 400.0))
    assert questions.p(gaps) == pytest.approx(2 * t.sf(gaps / 0.01, 399), rel=1e-6)


def test_a_difference_is_named_by_its_pool_and_its_own_interval():
    """24 degrees of freedom in the pool: 0.05 / 0.01 has p = 4e-5; alone with 2 degrees 0.038, times 13 above 5 %."""
    equal = [compared(0.0, 0.01, pool="all") for _ in range(12)]
    pooled, *_ = judge([compared(0.05, 0.01, pool="all"), *equal], {"all": 24}, margin=0.02)
    alone, *_ = judge([compared(0.05, 0.01), *equal], {"all": 24}, margin=0.02)
    assert (pooled.verdict, alone.verdict) == (HIGHER, UNKNOWN)
    assert pooled.p == pytest.approx(13 * 2 * t.sf(5, 24), rel=1e-4)
    assert alone.p == pytest.approx(13 * 2 * t.sf(5, 2), rel=1e-4)
    wide, *_ = judge([compared(0.05, 0.012, pool="all"), *equal], {"all": 24}, margin=0.02)
    assert wide.p == pytest.approx(13 * 2 * t.sf(0.05 / 0.012, 24), rel=1e-4) and wide.p < 0.01
    assert wide.verdict == UNKNOWN and wide.interval.low < 0  # its own three seeds: 4.302653 x 0.012


def test_equal_within_the_margin_takes_both_one_sided_tests():
    """The nearer end of the margin counts: (0.02 - 0.005) / 0.003 = 5 standard errors."""
    near, at, over = judge([compared(d, 0.003, 30) for d in (-0.005, 0.02, 0.03)], {}, margin=0.02)
    assert near.verdict == EQUAL and near.equivalence_p == pytest.approx(3 * t.sf(5, 29), rel=1e-4)
    assert (at.equivalence_p, over.equivalence_p) == (1.0, 1.0)
    few, *_ = judge([compared(0.0, 0.003, 2), *(compared(0.0, 0.003, 2) for _ in range(9))], {}, margin=0.02)
    assert few.verdict == UNKNOWN


def test_one_seed_and_no_common_seed_have_no_verdict_and_do_not_count():
    one = compared(0.5, 0.001, one_seed=True)
    found = judge([one, Comparison(None, 0.4), compared(0.5, 0.001)], {}, margin=0.02)
    assert [f.verdict for f in found] == [ONE_SEED, NO_INTERVAL, HIGHER]
    assert found[0].interval.one_seed and np.isnan(found[0].p) and np.isnan(found[1].interval.low)
    assert found[2].p == pytest.approx(2 * t.sf(500, 2), rel=1e-4)  # not times 3


def test_the_other_way_round():
    (found,) = judge([compared(-0.5, 0.001)], {}, margin=0.02)
    turned = found.flipped()
    assert (found.verdict, turned.verdict, turned.interval.mean) == (LOWER, HIGHER, 0.5)
    assert (turned.interval.low, turned.p) == (-found.interval.high, found.p)


def test_the_detectable_difference_is_that_of_the_stricter_condition():
    """Own seeds: (t(2, 0.975) + t(2, 0.8)) x 0.01 = (4.302653 + 1.060660) x 0.01; the pool asks for less."""
    found = judge([compared(0.0, 0.01, pool="all")] * 3, {"all": 100}, margin=0.02)
    assert found[0].detectable == pytest.approx(0.05363313, rel=1e-5)
    many = judge([compared(0.0, 0.01)] * 3, {}, margin=0.02)  # t(2, 1 - 0.05 / 6) = 7.648881
    assert many[0].detectable == pytest.approx(0.08709541, rel=1e-5)


def stage(name: str, start: str, means: dict[int, float], kind: str = "rl") -> Stage:
    rng = np.random.default_rng(len(name))
    scores = [
        {"per_problem": {"mean@2": np.clip(mean + rng.normal(0, 0.1, 50), 0, 1).tolist()}} for mean in means.values()
    ]
    return Stage(name, kind, start, None, {}, list(means), [{"settings": {}}], scores)


def study(*stages: Stage) -> Verdicts:
    return Verdicts({s.name: s for s in stages}, "mean@2", 0.02)


THREE = {0: 0.6, 1: 0.61, 2: 0.62}
COLD = stage("cold", "base", {0: 0.4}, kind="sft")


def test_families_are_starts_rl_with_one_start_and_the_rest():
    a, b, c = stage("a", "cold", THREE), stage("bb", "cold", THREE), stage("ccc", "a", THREE)
    found = study(COLD, a, b, c)
    assert found.family_of(a, COLD) == START and found.family_of(b, a) == SAME_START
    assert found.family_of(c, a) == START and found.family_of(c, b) == OTHER
    assert found(a, COLD).verdict == HIGHER and found(COLD, a).verdict == LOWER
    own = spread(a.grid("mean@2") - b.grid("mean@2"))
    assert found(a, b).interval.mean == pytest.approx(own.mean) and found(a, b).spread == own


def test_a_start_with_one_seed_is_the_start_of_all_seeds_but_another_stage_with_one_seed_is_one_seed_only():
    a, one = stage("a", "cold", THREE), stage("one", "cold", {0: 0.9})
    found = study(COLD, a, one)
    assert found(a, COLD).verdict == HIGHER
    assert found(one, COLD).verdict == found(one, a).verdict == ONE_SEED
    partly = stage("partly", "cold", {2: 0.6, 3: 0.6})
    assert study(COLD, a, partly)(a, partly).verdict == ONE_SEED  # only seed 2 is in both


def test_stages_share_a_variance_unless_a_seed_has_failed():
    """Pools of three stages of three seeds: starts 3 x 2 degrees of freedom, pairs (3 - 1) x (3 - 1)."""
    a, b, c = (stage(name, "cold", THREE) for name in ("a", "bb", "ccc"))
    found = study(COLD, a, b, c)
    pools, freedoms = found._pools(SAME_START, [(a, b), (a, c), (b, c)])
    assert pools == [("rl", "cold")] * 3 and freedoms == {("rl", "cold"): 4}
    pools, freedoms = found._pools(START, [(s, COLD) for s in (a, b, c)])
    assert pools == [("rl", "cold")] * 3 and freedoms == {("rl", "cold"): 6}
    lost = stage("lost", "cold", {**THREE, 2: 0.02})
    pools, freedoms = study(COLD, a, b, lost)._pools(SAME_START, [(a, b), (a, lost), (b, lost)])
    assert pools == [("rl", "cold"), None, None] and freedoms == {("rl", "cold"): 2}
