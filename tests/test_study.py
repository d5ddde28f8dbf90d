"""Study files: what is refused before anything runs, and the settings that follow from them."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from algos.training import config as stages
from evaluation.data import PromptSettings
from evaluation.evaluate import EvaluationConfig
from evaluation.settings import SettingsError
from evaluation.tasks import TaskSettings
from pipelines.study import SCHEMA, Study, load

PIPELINES = Path(__file__).parents[1] / "pipelines"
SMOKE = yaml.safe_load((PIPELINES / "studies" / "smoke.yaml").read_text())


def changed(path: str, value) -> dict:
    """The smoke study with one key set; value None deletes it."""
    config = copy.deepcopy(SMOKE)
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return config


@pytest.mark.parametrize(
    "path", [PIPELINES / "config.yaml", *sorted((PIPELINES / "studies").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_every_study_file_is_valid(path):
    assert load(path).checkpoints()["cold_start"]


def test_the_smoke_study_has_the_default_studys_keys():
    default = yaml.safe_load((PIPELINES / "config.yaml").read_text())
    assert list(default) == list(SMOKE) and set(default["runs"]) >= set(SMOKE["runs"])


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("seedz", [0], "the study, key: 'seedz' is unknown. Did you mean 'seed"),
        ("seeds", [], r"seeds: .*\[\]"),
        ("seeds", "0", "seeds must be of type array, got '0'"),
        ("task", None, "task is missing"),
        ("task.name", "word_problem", "Did you mean 'word_problems'"),
        ("task.settings.stepz", 1, "'stepz' is unknown. .*Allowed: double_share"),
        ("task.test", 0, "test must be above 0"),
        ("rl.learning_rate", 1.0, "rl, key: 'learning_rate' is unknown"),
        (
            "rl.optimiser.learning_rate",
            "1e-4",
            "rl.optimiser.learning_rate must be of type number, got '1e-4'. YAML reads 1e-4 as text; write 1.0e-04",
        ),
        ("rl.group_size", 1, "runs.grpo: group_size must be at least 2 for grpo, got 1"),
        ("rl.minibatches", 5, "must be a multiple of minibatches, got 5"),
        ("rl.rewards", {"helpful": 1.0}, "'helpful' is unknown. Allowed: correctness, format, reward_model"),
        ("runs.grpo.algorithm", "grop", "runs.grpo: algorithm: 'grop' is unknown. Did you mean 'grpo'"),
        ("runs.gspo.settings.clip_lo", 0.1, "Did you mean 'clip_low'"),
        ("runs.gspo.settings.clip_low", -1.0, "runs.gspo: settings: clip_low must be at least 0, got -1.0"),
        ("runs.trl_grpo.twin_of", "gpro", "runs.trl_grpo.twin_of: 'gpro' is unknown"),
        ("runs.trl_grpo.algorithm", "grpo", "a twin takes everything from the run it names; remove algorithm"),
        ("runs.ppo.settings.clip_high", 0.3, "runs.trl_ppo.*TRL's PPO has one clip range"),
        ("runs.cold_start", {"algorithm": "ppo"}, "a run's name"),
        ("runs.x", {"settings": {}}, "write `algorithm: <name>`"),
        ("reward_model", None, "runs.ppo_rm: its rewards name reward_model; add the sections"),
        ("base_model.path", "/no/such/folder", "base_model.path: '/no/such/folder' is neither a folder nor a hub id"),
        ("base_model.hidden_size", 33, "hidden_size must be a multiple"),
        ("rejection_sampling.teacher", "grpo2", "rejection_sampling.teacher: 'grpo2'"),
        ("dtype", "float16", "dtype: 'float16' is unknown. Allowed: float32"),
        ("preferences.responses", 1, "responses must be at least 2"),
        ("evaluation.samples", 0, "samples must be above 0"),
        ("preferences.prompts", 5000, "preferences.prompts is 5000, but task.train is 120"),
        (
            "rejection_sampling.sampling.prompts",
            121,
            "rejection_sampling.sampling.prompts is 121, but task.train is 120",
        ),
        ("rl.prompts_per_step", 200, "prompts_per_step is 200, but task.train is 120"),
        ("rl.optimiser.adam_beta1", 2.0, "adam_beta1 must be at least 0 and below 1, got 2.0"),
        ("results", "my results", "results: 'my results' does not match"),
        ("seeds", [0.0], r"seeds must be a list of whole numbers, got \[0.0\]"),
        ("base_model.path", "./nothing", "neither a folder nor a hub id"),
        ("runs.ppo.settings.gae_lambda", 0.95, "runs.trl_ppo: .*only with gae_lambda 1 and gamma 1, got 0.95"),
        ("runs.grpo.settings.std_epsilon", 1.0e-6, "runs.trl_grpo: .*TRL's std_epsilon is fixed"),
    ],
)
def test_mistakes_are_named_with_file_key_value_and_what_is_allowed(path, value, message):
    with pytest.raises(SettingsError, match=message) as raised:
        Study(changed(path, value), "studies/mine.yaml")
    assert str(raised.value).startswith("studies/mine.yaml: ") and "\n" not in str(raised.value)


def test_a_key_that_yaml_reads_as_a_truth_value_is_named():
    with pytest.raises(SettingsError, match="runs: the key True is no text"):
        Study(yaml.safe_load("study: x\nruns: {on: {algorithm: ppo}}"), "x")


def test_commands_carry_all_settings_so_that_changed_defaults_count():
    study = Study(SMOKE, "smoke")
    assert study.resolved("gspo", 1)["settings"]["std_epsilon"] == 1.0e-4
    assert study.resolved("gspo", 1)["optimiser"]["adam_beta1"] == 0.9 and study.resolved("gspo", 1)["seed"] == 1
    assert study.resolved("cold_start")["optimiser"]["schedule"] == "cosine"
    for stage in ("base_model", "student", "preferences", "reward_model", "accept", "evaluation", "rejection_sft"):
        assert study.resolved(stage)
    written_out = changed("rl.temperature", 1.0)  # the default
    assert Study(written_out, "x").resolved("ppo") == study.resolved("ppo")


def test_gsm8k_without_its_files_is_refused():
    config = changed("task", {"name": "gsm8k", "settings": {"path": "/no/such/folder"}})
    with pytest.raises(SettingsError, match=r"/no/such/folder/train\.jsonl does not exist"):
        Study(config, "x")


def test_an_unreadable_study_file_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    for name, message in (("bad.yaml", "not YAML"), ("none.yaml", "No such file")):
        with pytest.raises(SettingsError, match=message):
            load(tmp_path / name)


def test_a_twin_differs_from_its_run_in_the_trainer_alone():
    study = Study(SMOKE, "smoke")
    ours, twin = study.run("grpo", 0), study.run("trl_grpo", 0)
    assert {key for key in twin if twin[key] != ours.get(key)} == {"trainer"}


def test_a_runs_own_settings_win_and_nested_ones_merge():
    study = Study(changed("runs.grpo.optimiser", {"adam_epsilon": 1.0e-8}), "x")
    run = study.run("grpo", 3)
    assert run["optimiser"] == {"learning_rate": 1.0e-4, "adam_epsilon": 1.0e-8} and run["seed"] == 3


def test_runs_alone_are_a_study():
    config = changed("runs", {"grpo": SMOKE["runs"]["grpo"]})
    for section in ("preferences", "reward_model", "rejection_sampling", "distillation"):
        del config[section]
    assert Study(config, "x").checkpoints() == {"cold_start": [0], "grpo": [0]}


def test_the_schema_knows_exactly_the_settings_that_the_stages_know():
    properties = yaml.safe_load(SCHEMA.read_text())["properties"]
    placed = {"seed", "device", "dtype"}  # set by the study as a whole
    for schema, cls, without in [
        (properties["task"], TaskSettings, set()),
        (properties["prompt"], PromptSettings, set()),
        (properties["base_model"], stages.ModelConfig, set()),
        (properties["cold_start"], stages.SupervisedConfig, placed),
        (properties["cold_start"]["properties"]["optimiser"], stages.OptimiserConfig, set()),
        (properties["preferences"], stages.PreferenceConfig, placed),
        (properties["reward_model"], stages.RewardModelConfig, placed),
        (properties["rl"], stages.RunConfig, {*placed, "algorithm", "trainer", "settings"}),
        (properties["rejection_sampling"]["properties"]["sampling"], stages.RejectionConfig, placed),
        (properties["evaluation"], EvaluationConfig, placed),
    ]:
        assert set(schema["properties"]) == {f.name for f in dataclasses.fields(cls)} - without, cls.__name__
