"""Tuning: the configurations, the choice on dev, the expected best of n, and the tables and pairs about them."""

import json
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from synthetic import ENVIRONMENT, rl, study, write_results

from algos.pieces.settings import SettingsError
from algos.training.stage.config import OptimizerConfig
from evaluation.collect import collect
from evaluation.config import tuning_tables_of
from evaluation.pairs import differences, say, trl_baselines
from evaluation.report import write
from evaluation.statistics.robust import expected_best
from evaluation.tasks.files import write_json
from evaluation.tuning.choose import choose
from evaluation.tuning.space import configurations, points, shown, tune_settings
from evaluation.tuning.tables import default_of

RATE = "optimizer.learning_rate"


def tried(space: dict, trials: int) -> list[dict]:
    return configurations(tune_settings({"space": space, "trials": trials}, "x.tune"), "x.tune")


def test_the_configurations_are_those_of_the_space_alone():
    """The points that the published study was run with: another seed or sequence would be another study."""
    made = tried({RATE: {"low": 2.0e-5, "high": 1.0e-3, "scale": "log"}}, 6)
    assert [c[RATE] for c in made] == [9.94e-05, 0.000381, 0.000179, 3.65e-05, 2.26e-05, 0.000294]


def test_more_trials_add_to_the_earlier_ones():
    for few, many in combinations((1, 2, 3, 5, 8, 9, 16), 2):
        assert points(2, many)[:few] == points(2, few)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_points_of_a_power_of_two_fill_each_dimension_evenly(dimensions):
    """A Sobol sequence has one of 8 points in each eighth of every coordinate, which random points have seldom."""
    for column in np.array(points(dimensions, 8)).T:
        assert sorted(np.floor(column * 8)) == [*range(8)]


def test_bounds_on_a_log_scale_are_filled_evenly_in_logarithms():
    """Of 1e-4 .. 1e4 half of the points lie below 1, the geometric mean; on a linear scale none of 8 does."""
    space = {"low": 1.0e-4, "high": 1.0e4}
    below = {s: sum(c["x"] < 1 for c in tried({"x": space | {"scale": s}}, 8)) for s in ("log", "linear")}
    assert below == {"log": 4, "linear": 0}


def test_choices_are_drawn_equally_often_and_stay_what_they_are():
    made = tried({RATE: {"low": 1.0e-5, "high": 1.0e-3, "scale": "log"}, "x": [True, "word", None, 2]}, 8)
    assert sorted((c["x"] for c in made), key=str) == [2, 2, None, None, True, True, "word", "word"]
    assert shown({"a": None, "b": True, "c": 1.0e-4}) == "a null, b true, c 0.0001"


@pytest.mark.parametrize(
    "space, trials, message",
    [
        ({"x": {"low": 1, "high": 1, "scale": "log"}}, 2, "x.tune.space.x: low must be below high, got 1 and 1"),
        ({"x": {"low": 2, "high": 1, "scale": "log"}}, 2, "low must be below high, got 2 and 1; swap or change them"),
        ({"x": {"low": 0, "high": 1, "scale": "log"}}, 2, "x.tune.space.x: low must be above 0 on a log scale, got 0"),
        ({"x": {"low": 0, "high": 1, "scale": "lgo"}}, 2, "x.tune.space.x.scale: 'lgo' is unknown. Did you mean 'log'"),
        ({"x": {"low": 0, "high": 1}}, 2, "x.tune.space.x.scale is missing"),
        ({"x": {"low": "3e-5", "high": 1, "scale": "log"}}, 2, "low must be a number, got '3e-5'. .* write 3.0e-05"),
        ({"x": [1]}, 2, r"x.tune.space.x must be {low: .*} or a list of two or more choices, got \[1\]"),
        ({"x": 1.0}, 2, "x.tune.space.x must be {low: .*} or a list of two or more choices, got 1.0"),
        ({"x": [1, 2, 1]}, 2, "x.tune.space.x: the choice 1 stands twice; remove one"),
        ({"x": [[1], [2]]}, 2, r"x.tune.space.x: a choice is a number, true, false, null or a word, got \[1\]"),
        ({}, 2, "x.tune: space must name at least one setting, got {}"),
        ({"x": [1, 2]}, 0, "x.tune.trials must be above 0, got 0"),
        ({"x": [1, 2]}, 3, "x.tune.trials: trials 1 and 2 of 3 are both x 2; write fewer trials, or a wider space"),
    ],
)
def test_a_wrong_space_is_refused_with_its_place(space, trials, message):
    with pytest.raises(SettingsError, match=message):
        tried(space, trials)


# the expected best of n


def test_the_expected_best_by_hand():
    """Of 1, 2, 4: one draw 7/3; two draws (2 + 4 + 4) / 3; three draws 4."""
    assert expected_best(np.array([4.0, 1.0, 2.0])) == pytest.approx([7 / 3, 10 / 3, 4])


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_best_is_the_mean_over_all_draws(seed):
    scores = np.random.default_rng(seed).integers(0, 5, 6) / 5  # with ties
    brute = [np.mean([max(draw) for draw in permutations(scores, n)]) for n in range(1, 7)]
    assert expected_best(scores) == pytest.approx(brute)


# the choice


def trial_files(results, scores: list[float], problems: int = 20, status: str = "finished") -> dict:
    """The files of trials that reach these shares of right answers; returns what the choice is told."""
    trials = []
    for number, score in enumerate(scores):
        name = f"x-trial={number}"
        for seed in (100, 101):
            run, dev = (results / "stages" / name / part for part in (f"seed{seed}", f"dev/seed{seed}"))
            run.mkdir(parents=True)
            dev.mkdir(parents=True)
            facts = {
                "status": status,
                "generated_tokens": 500,
                "phase_seconds": {"generate": 1.5, "update": 0.5, "dev": 9.0},
            }
            write_json(run / "run.json", {**ENVIRONMENT, **facts})
            write_json(dev / "run.json", ENVIRONMENT)
            right = [float(q < score * problems) for q in range(problems)]
            write_json(dev / "scores.json", {"problems": problems, "per_problem": {"mean@2": right}})
        trials.append({"stage": name, "values": {RATE: number + 1.0}, "settings": {"optimizer": {"learning_rate": 1}}})
        trials[-1]["settings"]["optimizer"]["learning_rate"] = number + 1.0
    return {"stage": "x", "metric": "mean@2", "seeds": [100, 101], "trials": trials}


def test_the_highest_score_is_chosen_and_of_equal_ones_the_first(tmp_path):
    made = choose(tmp_path, trial_files(tmp_path, [0.5, 0.75, 0.25, 0.75]))
    assert made["chosen"] == 1 and made["settings"] == {"optimizer": {"learning_rate": 2.0}}
    assert [t["score"] for t in made["trials"]] == [0.5, 0.75, 0.25, 0.75]
    assert all(t["low"] < t["score"] < t["high"] for t in made["trials"])
    # two seeds of 500 tokens and 2 s, and two evaluations of 10 s
    costs = {"generated_tokens": 1000, "train_seconds": 4.0, "evaluate_seconds": 20.0}
    assert all(costs.items() <= t.items() for t in made["trials"])


def fails(results, trial: int) -> None:
    path = results / "stages" / f"x-trial={trial}" / "seed101" / "run.json"
    failure = {"step": 1, "reason": "step 1: the loss is nan", "checkpoint": "its last policy"}
    write_json(path, {**json.loads(path.read_text()), "status": "failed", "failure": failure})


def test_a_trial_that_failed_is_not_chosen_whatever_its_last_checkpoint_scores(tmp_path):
    tuning = trial_files(tmp_path, [0.5, 0.75])
    fails(tmp_path, 1)
    made = choose(tmp_path, tuning)
    assert made["chosen"] == 0 and [trial["failed"] for trial in made["trials"]] == [None, "step 1: the loss is nan"]
    fails(tmp_path, 0)
    with pytest.raises(SettingsError, match="all trials have failed: step 1: the loss is nan"):
        choose(tmp_path, tuning)


def test_a_dev_split_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="x-trial=0: the dev split has 8 problems; tuning needs at least 10"):
        choose(tmp_path, trial_files(tmp_path, [0.5, 0.75], problems=8))


def test_a_trial_that_runs_has_no_score_yet(tmp_path):
    with pytest.raises(SettingsError, match="status is running; let the stage finish first"):
        choose(tmp_path, trial_files(tmp_path, [0.5], status="running"))


# tables and pairs


def tuned(name: str, algorithm: str, rate: float, score: float, like: str, **more) -> dict:
    loop = {"optimizer": OptimizerConfig(learning_rate=rate), **more}
    return {name: rl("base", algorithm, like=like, score=score, loop=loop) | {"tuned": True}}


STUDY = study(
    grpo=rl("base", score=0.5),
    gspo=rl("base", "gspo", score=0.7),
    trl_grpo=rl("base", like="grpo", score=0.5, loop={"trainer": "trl"}),
    **tuned("grpo_tuned", "grpo", 3.0, 0.9, "grpo"),
    **tuned("gspo_tuned", "gspo", 2.0, 0.6, "gspo"),
    **tuned("trl_grpo_tuned", "grpo", 1.0, 0.9, "grpo_tuned", trainer="trl"),
)
SCORES = [0.2, 0.3, 0.6]


def tuning_of(name: str) -> dict:
    """A choice among three trials, of which each has cost 100 tokens and 3 s."""
    trials = [
        {"stage": f"{name}-trial={i}", "values": {RATE: i + 1.0}, "score": score, "low": 0.1, "high": 0.9}
        | {"generated_tokens": 100, "train_seconds": 2.0, "evaluate_seconds": 1.0}
        for i, score in enumerate(SCORES)
    ]
    return {"stage": name, "metric": "mean@2", "seeds": [100], "trials": trials, "chosen": 2, "settings": {}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    made = write_results(folder, STUDY)
    for name, entry in made["stages"].items():
        if entry.get("tuned"):
            write_json(folder / "stages" / name / "tuning.json", tuning_of(name))
    write(folder, made, folder / "report")
    return folder


@pytest.fixture(scope="module")
def stages(results):
    return collect(results, STUDY)


def test_a_stage_and_its_default_differ_in_the_tuning_alone(stages):
    counted, follows = differences(stages["grpo"], stages["grpo_tuned"])
    assert say(counted) == f"tuning: none -> 3 trials of {RATE} by mean@2"
    assert say(follows) == f"{RATE}: 0.0001 -> 3.0"
    assert default_of(stages["grpo_tuned"], stages).name == "grpo"
    assert default_of(stages["trl_grpo_tuned"], stages).name == "trl_grpo"  # though it is like grpo_tuned


def test_two_tuned_stages_do_not_differ_in_what_was_chosen(stages):
    """GSPO differs from GRPO in ratio and clip range; the learning rates 2 and 3 follow from the same trials."""
    counted = [key for key, _, _ in differences(stages["grpo_tuned"], stages["gspo_tuned"])[0]]
    assert counted == ["settings.ratio", "settings.clip_low", "settings.clip_high"]
    assert trl_baselines(stages) == {"trl_grpo": "grpo", "trl_grpo_tuned": "grpo_tuned"}


def test_other_trials_are_a_difference(stages):
    first, second = stages["grpo_tuned"], stages["gspo_tuned"]
    kept, second.tuning = second.tuning, {**second.tuning, "seeds": [101]}
    assert "tuning" in [key for key, _, _ in differences(first, second)[0]]
    second.tuning = kept


def test_the_tables_have_the_spread_the_expected_best_and_the_whole_cost(results, stages):
    assert tuning_tables_of(STUDY) == ["tuning", "tuned", "expected_best"]
    read = {name: pd.read_csv(results / "report" / f"{name}.csv") for name in tuning_tables_of(STUDY)}
    trials = read["tuning"]
    assert len(trials) == 9 and trials["chosen"].tolist() == [False, False, True] * 3
    assert trials[RATE].tolist() == [1.0, 2.0, 3.0] * 3 and trials["score"].tolist() == SCORES * 3
    row = read["tuned"].set_index("stage").loc["grpo_tuned"]
    # quartiles of 0.2, 0.3, 0.6: halfway between neighbors, 0.25 and 0.45
    spread = [row[f"dev_{n}"] for n in ("lowest", "median", "highest", "interquartile_range")]
    assert spread == pytest.approx([0.2, 0.3, 0.6, 0.2])
    assert row["default"] == "grpo" and row["verdict"] == "higher" and row["chosen"] == f"{RATE} 3"
    gap = stages["grpo_tuned"].grid("mean@2").mean() - stages["grpo"].grid("mean@2").mean()
    assert row["difference"] == pytest.approx(gap, abs=1e-5)
    # a run: 1000 tokens and 3.6 s; three trials: 300 tokens, and 9 s with their evaluation
    assert (row["generated_tokens_with_tuning"], row["train_seconds_with_tuning"]) == (1300, pytest.approx(12.6))
    best = read["expected_best"].groupby("stage")["expected_best"].apply(list)
    assert best["gspo_tuned"] == pytest.approx([11 / 30, 0.5, 0.6])
    comparison = pd.read_csv(results / "report" / "comparison.csv", index_col=0)
    assert comparison["generated_tokens_with_tuning"].dropna().to_dict() == dict.fromkeys(best.index, 1300)


def test_the_page_says_what_tuning_changed(results):
    page = (results / "report" / "report.html").read_text()
    assert "Order of the means untuned: gspo, " in page and "Tuned: gspo_tuned" not in page
    assert "1,300 with tuning" in page and 'href="#tuning"' in page
    assert page.count("<td>●</td>") == 3  # a chosen trial of each


def test_a_study_that_tunes_nothing_has_no_such_tables(tmp_path):
    made = write_results(tmp_path, study(one=rl("base"), two=rl("base", "gspo")))
    write(tmp_path, made, tmp_path / "report")
    assert tuning_tables_of(made) == [] and not (tmp_path / "report" / "tuning.csv").exists()
    assert "with_tuning" not in (tmp_path / "report" / "comparison.csv").read_text()
    assert 'id="tuning"' not in (tmp_path / "report" / "report.html").read_text()
