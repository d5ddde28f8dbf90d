"""Small simulations: intervals hold the truth as often as they say, and equal stages are seldom told apart.

The large ones are python -m evaluation.statistics.simulate; docs/statistics.md shows their tables.
"""

import numpy as np
import pandas as pd
import pytest

from algos.pieces.settings import SettingsError
from evaluation.statistics.power import Variances, needed_table, power_table, variances
from evaluation.statistics.simulate import World, collapse, coverage, null, unequal

STUDIES = 300  # a coverage of 95 % is measured to 1.3 points


@pytest.mark.parametrize(
    "world, before",
    [
        (World(2, seed_sd=0.3), 92),
        (World(2, seed_sd=1.0, questions=100), 90),
        (World(1, level=-6.0, questions=16), 70),
        (World(3, level=5.0, questions=64), 100),
        (World(5, seed_sd=0.15), 100),
    ],
    ids=["two seeds", "two seeds far apart", "one seed, nearly all wrong", "nearly all right", "five seeds"],
)
def test_intervals_cover(world, before):
    """Where an earlier interval covered too seldom, it is below the number given."""
    found = coverage(world, STUDIES, np.random.default_rng(0))
    assert found["covers"] > 91 and found["difference_covers"] > 91
    assert found["covers_before"] <= before


def test_one_seed_covers_its_own_accuracy_and_no_other():
    found = coverage(World(1, seed_sd=0.3), STUDIES, np.random.default_rng(0))
    assert found["covers_this_seed"] > 91 and found["covers"] < 70


def test_a_stage_whose_seeds_collapse_is_described_by_its_share_of_failed_seeds_and_the_rest():
    found = collapse(World(3, collapse=0.1), STUDIES, np.random.default_rng(0))
    assert found["mean_covers"] < 60  # no interval of three seeds holds a mean that depends on seeds it has not seen
    assert found["without_failed_covers"] > 91 and found["failed_share_covers"] > 95
    assert found["median_within_5_points"] > 91


@pytest.mark.parametrize("noise", [(), (5.0, *(1.0,) * 7)], ids=["alike", "one stage's seeds vary more"])
def test_few_studies_of_equal_stages_name_a_difference(noise):
    found = null(World(3, questions=100), 8, 100, np.random.default_rng(0), noise)
    assert found["named"] <= 6 and found["named_before"] > 20


def test_large_differences_are_named_and_those_at_the_margin_are_not_called_equal():
    found = unequal(World(5, questions=1000), 4, 20, np.random.default_rng(0))
    assert found["found"] > 90 and found["equal_at_margin"] <= 10
    assert found["detectable_points"] < 5


def test_golden_power():
    """Seeds alone, and a difference of half their standard deviation: 34 pairs, as tables of the paired t-test say."""
    found = Variances(seed=0.02**2, question=0.0, cell=0.0)
    assert found.seeds_for(0.01, 400) == 34
    assert found.detectable(34, 400) == pytest.approx(0.01, rel=0.01)
    assert found.seeds_for(1e-4, 400) is None


def test_no_number_of_seeds_finds_what_a_few_questions_cannot_show():
    """With 100 questions no interval is narrower than t(99) / 102 = 1.95 points to either side."""
    found = Variances(seed=0.01**2, question=0.0, cell=0.0)
    assert found.seeds_for(0.019, 100) is None and found.seeds_for(0.021, 100) is not None
    assert found.detectable(1000, 100) == pytest.approx(0.0195, abs=5e-4)


def test_questions_help_where_the_cells_or_the_questions_vary():
    found = Variances(seed=1e-4, question=0.0, cell=0.03)
    assert found.detectable(3, 1319) < found.detectable(3, 100) and found.detectable(10, 400) < found.detectable(3, 400)
    table = power_table(found).set_index("questions")
    assert table.loc[400, "3_seeds"] == pytest.approx(100 * found.detectable(3, 400))
    assert needed_table(found).loc[0, "with_400_questions"] == found.seeds_for(0.01, 400)


def test_variances_are_those_that_made_the_parts():
    """Expected parts of 4 seeds and 100 questions: (s + c / 100) / 4, (q + c / 4) / 100, c / 400."""
    seed, question, cell = 4e-4, 0.01, 0.08
    row = {
        "paired_seeds": 4,
        "questions": 100,
        "seed_part": (seed + cell / 100) / 4,
        "question_part": (question + cell / 4) / 100,
        "cell_part": cell / 400,
        "interval_for": "new seeds and questions",
    }
    single = {**row, "seed_part": 9.0, "interval_for": "this seed only"}  # one stage's seeds against one of the other's
    found = variances(pd.DataFrame([row, row, {**row, "paired_seeds": 1}, single]))
    assert (found.seed, found.question, found.cell) == pytest.approx((seed, question, cell))
    with pytest.raises(SettingsError, match="has no column seed_part"):
        variances(pd.DataFrame([row]).drop(columns="seed_part"))
    with pytest.raises(SettingsError, match="no pair with two seeds"):
        variances(pd.DataFrame([{**row, "paired_seeds": 1}]))
