"""The report's sentences about results, by hand: which word stands beside which number."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage
from evaluation.families import Verdicts
from evaluation.findings import (
    baseline_sentence,
    best_sentence,
    in_words,
    pair_sentences,
    row_interval,
    start_sentences,
    warnings,
)
from evaluation.statistics import Interval

TABLE = pd.DataFrame(
    {
        "stage": ["start", "up", "down", "same", "trl_up"],
        "from": ["base", "start", "start", "start", "start"],
        **{"mean@2": [0.4, 0.6, 0.2, 0.41, 0.9], "mean@2_low": [0.3, 0.5, 0.1, 0.31, 0.8]},
        **{"mean@2_high": [0.5, 0.7, 0.3, 0.51, 1.0]},
        **{"minus_start": [np.nan, 0.2, -0.2, 0.01, 0.5], "minus_start_low": [np.nan, 0.1, -0.3, -0.09, 0.4]},
        **{"minus_start_high": [np.nan, 0.3, -0.1, 0.11, 0.6]},
        "against_start": [None, "higher", "lower", "cannot tell", "higher"],
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
        "verdict": ["higher", "cannot tell", "higher", "higher"],
    }
)


def rl(name: str, *shares: float, trainer: str = "own") -> Stage:
    """An RL stage of three seeds, whose score on each of four questions is given, and repeated ten times."""
    scores = [{"per_problem": {"mean@2": [share + gap for share in shares] * 10}} for gap in (0.01, 0.0, -0.01)]
    return Stage(name, "rl", "start", None, {}, [0, 1, 2], [{"settings": {}, "trainer": trainer}], scores)


def test_gains_stand_behind_their_own_word():
    first, second = start_sentences(TABLE, "mean@2")
    assert first == (
        "start solves 40.0 [30.0, 50.0] % of the test problems when sampled (mean@2). Stages that start from start, in "
        "points: higher than it: up +20.0 [+10.0, +30.0], trl_up +50.0 [+40.0, +60.0]; lower than it: down -20.0 "
        "[-30.0, -10.0]; not told apart from it: same +1.0 [-9.0, +11.0]."
    )
    assert second == "Stages whose start is not evaluated, mean@2: start 40.0 [30.0, 50.0] % (from base)."


def test_the_best_stage_is_named_with_those_that_it_is_not_shown_to_be_higher_than():
    best, near, far = rl("best", 1, 1, 0.9, 0.9), rl("near", 1, 1, 1, 0.6), rl("far", 0, 0.1, 0, 0.1)
    other = rl("by_trl", 1, 1, 1, 1, trainer="trl")  # whether or not it is the TRL baseline of a stage
    stages = {stage.name: stage for stage in (far, best, near, other)}
    said = best_sentence(stages, "mean@2", Verdicts(stages, "mean@2", 0.02))
    assert said == ["The highest mean of our RL stages is best’s, 95.0 %. It is not shown to be higher than near."]
    stages = {"far": far, "best": best}
    said = best_sentence(stages, "mean@2", Verdicts(stages, "mean@2", 0.02))
    assert said == ["The highest mean of our RL stages is best’s, 95.0 %. It is higher than every other one."]


def test_trl_baselines_are_named_by_their_verdict():
    pair = {"trl_up": "up"}
    assert baseline_sentence(TABLE, pair) == ["TRL baselines against our own stages: higher: trl_up and up."]
    table = pd.concat([TABLE, TABLE.tail(1).assign(stage="trl_same", against_own="equal within the margin")])
    assert baseline_sentence(table, pair | {"trl_same": "same"}) == [
        "TRL baselines against our own stages: higher: trl_up and up; equal within the margin: trl_same and same."
    ]


def test_an_interval_of_one_seed_never_stands_without_these_words():
    assert in_words(Interval(0.5, 0.4, 0.6, one_seed=True)) == "50.0 [40.0, 60.0; this seed only]"
    row = {"x": 0.5, "x_low": 0.4, "x_high": 0.6, "minus_start": 0.1, "minus_start_low": 0.0, "minus_start_high": 0.2}
    told = {"interval_for": "this seed only"}
    for facts, words in (({"seeds": 1}, True), ({"seeds": 3}, False), ({"seeds": 3, **told}, True)):
        found = row_interval(pd.Series({**row, **facts}), "x")
        assert found is not None and found.one_seed is words
    other = pd.Series({**row, "interval_for": "new seeds and questions", "against_start": "this seed only"})
    gain, score = row_interval(other, "minus_start"), row_interval(other, "x")
    assert gain is not None and score is not None and (gain.one_seed, score.one_seed) == (True, False)


def test_a_stage_with_a_failed_seed_is_named():
    lost = rl("lost", 0.8, 0.8, 0.8, 0.8)
    lost.scores[1]["per_problem"]["mean@2"] = [0.1] * 40
    assert warnings([], {"fine": rl("fine", 0.8), "lost": lost}, "mean@2") == [
        "lost: 1 of 3 seeds failed (1), with less than half of the score of the stage’s median or start. Its mean says "
        "little; the median over seeds is 79.0 %."
    ]


def test_pairs_that_differ_in_one_thing_are_counted_without_trl_baselines():
    assert pair_sentences(PAIRS, {"trl_up": "up"}) == [
        "2 pairs differ in one thing (TRL baselines aside): up is higher than down, +40.0 [+30.0, +50.0] points "
        "(steps: 1 -> 2)."
    ]
    equal = PAIRS.replace({"verdict": {"cannot tell": "equal within the margin"}})
    assert pair_sentences(equal, {"trl_up": "up"})[0].endswith("; 1 of them is equal within the margin.")
