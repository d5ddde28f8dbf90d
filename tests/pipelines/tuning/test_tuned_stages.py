"""A stage that is tuned, as it is planned: its trials, its command, and what is refused."""

import json
from copy import deepcopy

import pytest
from studies import changed, rl, small

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from algos.training.stage.record import load_settings
from evaluation.tasks.files import write_json
from pipelines.study import Study
from pipelines.tree import tree

RATE = "optimizer.learning_rate"
RANGE = {"low": 1.0e-5, "high": 1.0e-3, "scale": "log"}
SAMPLING = {"sampling": {"prompts": 10}}
TUNE = {"trials": 3, "space": {RATE: RANGE, "clip_high": [0.2, 0.28]}}
COLD = {"kind": "sft", "from": "base", "data": "demonstrations", "steps": 2, "seeds": [0]}


def study(tune: object = TUNE, **own) -> dict:
    """The smoke study with a stage, the same tuned, and TRL's."""
    return small(
        cold=COLD,
        plain=rl("cold", settings={"std_epsilon": 1.0e-4}),  # which TRL has
        tuned={"like": "plain", "tune": deepcopy(tune), **own},
        trl_tuned={"like": "tuned", "trainer": "trl"},
    )


def planned(tune: object = TUNE, **own) -> Study:
    return Study(study(tune, **own), "x.yaml")


def test_every_arm_tries_the_same_configurations_with_seeds_of_their_own():
    made = planned()
    assert made.tuned == ["tuned", "trl_tuned"] and len(made.trials) == 6
    tried = {name: [made.stages[trial].chosen for trial in made.stages[name].trials] for name in made.tuned}
    assert tried["tuned"] == tried["trl_tuned"] and len(tried["tuned"]) == 3
    assert set(tried["tuned"][0]) == {RATE, "settings.clip_high"}
    for trial in made.trials:
        assert made.seeds_of(trial) == [100] and made.seeds_of(made.stages[trial].trial_of) == [0]
        assert made.edges(trial) == {"from": "cold"}
        run = made.parsed(trial, 100)
        assert run.optimizer.learning_rate == made.stages[trial].chosen[RATE]
        assert run.hparams.clip_high == made.stages[trial].chosen["settings.clip_high"]
        assert run.trainer == ("trl" if trial.startswith("trl") else "own")
        assert run.steps == made.parsed("plain", 0).steps


def test_trials_are_made_and_never_evaluated_on_test():
    made = planned()
    assert set(made.trials) <= made.needed and made.evaluated == ["cold", "plain", "tuned", "trl_tuned"]
    facts = made.report()["stages"]
    assert not any(facts[trial]["evaluated"] for trial in made.trials)
    assert [name for name, stage in facts.items() if stage.get("tuned")] == made.tuned
    assert made.warnings == []


def test_a_tuned_stage_that_nobody_needs_costs_nothing():
    made = planned(evaluate=False)
    assert made.needed == {"cold", "plain"} and all(name.endswith("tuned") for name in made.tuned)
    assert [warning.partition(":")[0] for warning in made.warnings] == ["stages.tuned", "stages.trl_tuned"]


@pytest.mark.parametrize("name", ["tuned", "trl_tuned"])
@pytest.mark.parametrize("number", range(3))
def test_a_stage_runs_with_the_settings_of_the_trial_that_is_chosen(tmp_path, name, number):
    """The planned settings of its command, with the choice over them, are the resolved settings of the trial."""
    made = planned()
    trial = made.tuning(name)["trials"][number]
    write_json(tmp_path / "tuning.json", {"settings": trial["settings"]})
    command = json.dumps(made.resolved(name, 0))
    run = from_dict(RunConfig, load_settings(command, str(tmp_path / "tuning.json")), "settings")
    assert json.loads(json.dumps(run.resolved())) == json.loads(json.dumps(made.resolved(trial["stage"], 0)))
    options = made.options(name, 0)
    assert options[options.index("--tuned") + 1] == made.choice(name) and made.choice(name) in made.inputs(name, 0)
    assert "--tuned" not in made.options(trial["stage"], 100)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "--tuned .*tuning.json: No such file or directory; the job that chooses the settings makes it"),
        ("{", "--tuned .*tuning.json is not JSON: "),
        ("[]", "--tuned .*tuning.json: there is no mapping `settings`; the job"),
        ('{"settings": 1}', "--tuned .*tuning.json: there is no mapping `settings`; the job"),
    ],
)
def test_a_choice_that_cannot_be_read_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings("{}", str(tmp_path / "tuning.json"))


def test_a_wrong_value_in_a_choice_is_refused_by_the_settings_class(tmp_path):
    write_json(tmp_path / "tuning.json", {"settings": {"optimizer": {"learning_rate": -1.0}}})
    merged = load_settings(json.dumps({"algorithm": "grpo", "seed": 0}), str(tmp_path / "tuning.json"))
    with pytest.raises(SettingsError, match=r"settings.optimizer.learning_rate must be above 0, got -1\.0"):
        from_dict(RunConfig, merged, "settings")


def test_the_tree_shows_each_trial_below_its_stage():
    lines = tree(planned()).splitlines()
    assert lines[0].startswith("smoke: 4 stages with 6 trials, 24 jobs with data and evaluation, 0 of them done")
    number = next(i for i, line in enumerate(lines) if line.lstrip(" ├─└│").startswith("tuned "))
    assert "tuned by 3 trials" in lines[number]
    assert "trial 1" in lines[number + 2] and f"{RATE} 0.00" in lines[number + 2] and "seeds 100" in lines[number + 2]


def test_an_edited_space_changes_the_parameters_of_its_trials_and_of_the_choice():
    """By which Snakemake makes them again; one more trial leaves the earlier trials as they are."""
    old, more = planned(), planned(TUNE | {"trials": 4})
    other = planned(TUNE | {"space": TUNE["space"] | {RATE: RANGE | {"high": 1.0e-2}}})
    for new, same in ((more, True), (other, False)):
        assert new.tuning("tuned") != old.tuning("tuned")
        assert [new.resolved(t, 100) == old.resolved(t, 100) for t in old.trials] == [same] * 6


def test_stages_with_other_trials_are_warned_of():
    config = study()
    config["stages"]["trl_tuned"]["tune"] = {"trials": 2}
    (warning,) = Study(config, "x").warnings
    assert warning.startswith("stages.trl_tuned.tune differs from that of tuned: what the two gain cannot be compared")


def test_null_removes_the_tuning_that_a_stage_takes_over():
    config = study()
    config["stages"]["trl_tuned"]["tune"] = None
    assert Study(config, "x").tuned == ["tuned"]


@pytest.mark.parametrize("kind", ["sft", "expert_iteration", "distillation"])
def test_every_kind_that_makes_a_policy_can_be_tuned(kind):
    key = "training.optimizer.learning_rate" if kind == "expert_iteration" else RATE
    own = {"sft": {"data": "train"}, "expert_iteration": SAMPLING, "distillation": {"teacher": "cold"}}[kind]
    made = Study(
        small(cold=COLD, x={"kind": kind, "from": "cold", **own, "tune": {"trials": 2, "space": {key: RANGE}}}), "x"
    )
    words = made.options("x", 0)
    assert words[words.index("--tuned") + 1] == made.choice("x") and len(made.trials) == 2


# what is refused

PREFERENCES = {"kind": "preferences", "from": "cold", "prompts": 8, "tune": TUNE}
REFUSED = [
    (study(tune=3), "x.yaml: stages.tuned.tune must be a mapping of space, trials, seeds and metric, got 3"),
    (study(TUNE | {"trial": 3}), "stages.tuned.tune, key: 'trial' is unknown. Did you mean 'trials'"),
    (study(TUNE | {"trials": 0}), "stages.tuned.tune.trials must be above 0, got 0"),
    (study({"space": {RATE: RANGE}}), "stages.tuned.tune.trials is missing"),
    (study(TUNE | {"metric": "loss"}), "stages.tuned.tune.metric: 'loss' is unknown. .*greedy, maj, mean, pass"),
    (study(TUNE | {"seeds": [0]}), "stages.tuned.tune.seeds: 0 is a seed of tuned too, which must run with fresh ones"),
    (study(TUNE | {"seeds": []}), r"stages.tuned.tune: seeds must be different whole numbers from 0, .* got \[\]"),
    (study(TUNE | {"space": {"clip_hihg": [0, 1]}}), "stages.tuned.tune.space: 'clip_hihg' is unknown. .*'clip_high'"),
    (
        study({"space": {"optimizer.rate": [1.0, 2.0]}, "trials": 2}),
        "stages.tuned.optimizer, key: 'rate' is unknown. .* This is trial 0 of its `tune`, with optimizer.rate",
    ),
    (
        study({"space": {"clip_high": [0.2, -1.0]}, "trials": 2}),
        "stages.tuned: settings.clip_high must be .*got -1.0. This is trial 1 of its `tune`, with settings.clip_high",
    ),
    (study(TUNE | {"space": {"clip_high": [0, 1], "settings.clip_high": [0, 1]}}), "clip_high is there under another"),
    (study(TUNE | {"space": {"steps": [2, 3]}}), "stages.tuned.tune.space: steps would change the budget"),
    (study(TUNE | {"space": {"algorithm": ["grpo", "gspo"]}}), "algorithm is what stages are compared by"),
    (study(TUNE | {"space": {"reference": ["cold", "base"]}}), "reference is what stages are compared by"),
    (study(vary={"kl_coef": [0, 0.1]}), "stages.tuned-kl_coef=0.tune: tuned has `vary`; a stage varies or is tuned"),
    (
        small(cold=COLD, pairs=PREFERENCES),
        "stages.pairs.tune: a stage of kind preferences makes no policy that dev could judge; remove this key",
    ),
    (
        study({"space": {"std_epsilon": [1.0e-4, 1.0e-3]}, "trials": 2}),
        "stages.trl_tuned: trainer trl: .* got 0.001; .* This is trial 1 of its `tune`, with settings.std_eps",
    ),
    (
        study(TUNE | {"space": {"kl_coef": [0, 0.1]}, "trials": 2}, reference="base"),
        "stages.tuned.tune.space: some trials use the edge reference and others do not; tune within one of the two",
    ),
    (small(cold=COLD | {"seeds": [0, 1]}, x=rl("cold", tune=TUNE)), "x.*: cold has the seeds 0, 1, but x-trial=0 runs"),
    (small(cold=COLD, x=rl("cold", tune=TUNE), y=rl("x-trial=0")), "stages.y.from: 'x-trial=0' is unknown"),
    (small(cold=COLD, x=rl("cold", tune=TUNE), y={"like": "x-trial=0"}), "stages.y.like: 'x-trial=0' is unknown"),
    (changed("defaults/rl/tune", TUNE), "defaults.rl, key: 'tune' is unknown"),
]


@pytest.mark.parametrize("config, message", REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_wrong_tuning_is_refused_in_one_sentence(config, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Study(config, "x.yaml")
    assert "\n" not in str(caught.value)


def test_a_dev_split_that_is_too_small_is_refused():
    config = study()
    config["task"] = config["task"] | {"dev": 9}
    config["defaults"]["rl"] = config["defaults"].get("rl", {}) | {"dev_every": None}
    with pytest.raises(SettingsError, match=r"task\.dev is 9, but tuned is tuned on the dev split; at least 10"):
        Study(config, "x")
