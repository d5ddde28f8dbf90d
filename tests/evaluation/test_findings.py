"""The report's sentences about results, by hand: which word stands beside which number."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage
from evaluation.findings import baseline_sentence, best_sentence, pair_sentences, start_sentences

TABLE = pd.DataFrame(
    {
        "stage": ["start", "up", "down", "same", "trl_up"],
        "from": ["base", "start", "start", "start", "start"],
        **{"mean@2": [0.4, 0.6, 0.2, 0.41, 0.9], "mean@2_low": [0.3, 0.5, 0.1, 0.31, 0.8]},
        **{"mean@2_high": [0.5, 0.7, 0.3, 0.51, 1.0]},
        **{"minus_start": [np.nan, 0.2, -0.2, 0.01, 0.5], "minus_start_low": [np.nan, 0.1, -0.3, -0.09, 0.4]},
        **{"minus_start_high": [np.nan, 0.3, -0.1, 0.11, 0.6]},
        "against_start": [None, "higher", "lower", "tie", "higher"],
        "against_own": [None, None, None, None, "higher"],
    }
)
PAIRS = pd.DataFrame(
    {
        "stage": ["up", "same", "trl_up", "up"],
        "against": ["down", "up", "up", "same"],
        "differences": [1, 1, 1, 2],
        "differs": ["steps: 1 -> 2", "clip: 1 -> 2", "trainer: own -> trl", "a; b"],
        "difference": [0.4, -0.19, 0.3, 0.19],
        "difference_low": [0.3, -0.4, 0.2, 0.1],
        "difference_high": [0.5, 0.02, 0.4, 0.3],
        "verdict": ["higher", "tie", "higher", "higher"],
    }
)


def rl(name: str, *shares: float, trainer: str = "own") -> Stage:
    """An RL stage of one seed, whose score on each of four questions is given."""
    scores = [{"per_problem": {"mean@2": list(shares)}}]
    return Stage(name, "rl", "start", None, {}, [0], [{"settings": {}, "trainer": trainer}], scores)


def test_gains_stand_behind_their_own_word():
    first, second = start_sentences(TABLE, "mean@2")
    assert first == (
        "start solves 40.0 [30.0, 50.0] % of the test problems when sampled (mean@2). Stages that start from start, in "
        "points: higher than it: up +20.0 [+10.0, +30.0], trl_up +50.0 [+40.0, +60.0]; lower than it: down -20.0 "
        "[-30.0, -10.0]; not told apart from it: same +1.0 [-9.0, +11.0]."
    )
    assert second == "Stages whose start is not evaluated, mean@2: start 40.0 [30.0, 50.0] % (from base)."


def test_the_best_stage_is_named_with_those_that_it_cannot_be_told_from():
    best, near, far = rl("best", 1, 1, 0.9, 0.9), rl("near", 1, 1, 1, 0.6), rl("far", 0, 0.1, 0, 0.1)
    other = rl("by_trl", 1, 1, 1, 1, trainer="trl")  # whether or not it is the TRL baseline of a stage
    stages = {stage.name: stage for stage in (far, best, near, other)}
    said = best_sentence(stages, "mean@2")
    assert said == ["The highest mean of our RL stages is best’s, 95.0 %. It cannot be told from near."]
    said = best_sentence({"far": far, "best": best}, "mean@2")
    assert said == ["The highest mean of our RL stages is best’s, 95.0 %. Its lead over every other one excludes 0."]


def test_trl_baselines_that_do_not_tie_are_named():
    assert baseline_sentence(TABLE, {"trl_up": "up"}) == [
        "0 of 1 TRL baselines tie with our own stage. Apart, or without an interval: trl_up and up."
    ]
    assert baseline_sentence(TABLE.assign(against_own="tie"), {"trl_up": "up"}) == [
        "1 of 1 TRL baselines tie with our own stage."
    ]


def test_pairs_that_differ_in_one_thing_are_counted_without_trl_baselines():
    assert pair_sentences(PAIRS, {"trl_up": "up"}) == [
        "2 pairs differ in one thing (TRL baselines aside): up is higher than down, +40.0 [+30.0, +50.0] points "
        "(steps: 1 -> 2)."
    ]
