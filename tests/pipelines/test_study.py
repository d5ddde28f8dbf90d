"""Study files: what is refused before anything runs, and the settings that follow from them."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from algos.pieces.settings import SettingsError, from_dict
from algos.training import config as stages
from evaluation.config import EvaluationConfig, PromptSettings
from evaluation.tasks import TaskSettings
from pipelines.study import SCHEMA, Study, load

PIPELINES = Path(__file__).parents[2] / "pipelines"
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
    optional = {"expert_iteration", "on_policy_distillation"}
    assert list(default) == [key for key in SMOKE if key not in optional]
    assert set(default["runs"]) >= set(SMOKE["runs"])


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
            "rl.optimizer.learning_rate",
            "1e-4",
            "rl.optimizer.learning_rate must be of type number, got '1e-4'. YAML reads 1e-4 as text; write 1.0e-04",
        ),
        ("rl.group_size", 1, "runs.grpo: group_size must be at least 2 for grpo, got 1"),
        ("rl.minibatches", 5, "must be a multiple of minibatches, got 5"),
        ("rl.rewards", {"helpful": 1.0}, "'helpful' is unknown. Allowed: correctness, edit_similarity, format"),
        ("runs.grpo.algorithm", "grop", "runs.grpo: algorithm: 'grop' is unknown. Did you mean 'grpo'"),
        ("runs.gspo.settings.clip_lo", 0.1, "Did you mean 'clip_low'"),
        ("runs.gspo.settings.clip_low", -1.0, "runs.gspo: settings.clip_low must be at least 0, got -1.0"),
        ("runs.trl_grpo.twin_of", "gpro", "runs.trl_grpo.twin_of: 'gpro' is unknown"),
        ("runs.trl_grpo.algorithm", "grpo", "a twin takes everything from the run it names; remove algorithm"),
        ("runs.ppo.settings.clip_high", 0.3, "runs.trl_ppo.*TRL's PPO has one clip range"),
        ("runs.cold_start", {"algorithm": "ppo"}, "a run's name"),
        ("runs.x", {"settings": {}}, "write `algorithm: <name>`"),
        ("reward_model", None, "runs.ppo_rm: its rewards name reward_model; add the sections"),
        ("base_model.path", "/no/such/folder", "base_model.path: '/no/such/folder' is neither a folder nor a hub id"),
        ("base_model.hidden_size", 33, "hidden_size must be a multiple"),
        ("rejection_sampling.teacher", "grpo2", "rejection_sampling.teacher: 'grpo2'"),
        ("dtype", "float16", "dtype: 'float16' is unknown. Allowed: float32, bfloat16"),
        ("preferences.responses", 1, "responses must be at least 2"),
        ("evaluation.samples", 0, "samples must be above 0"),
        ("preferences.prompts", 5000, "preferences.prompts is 5000, but task.train is 120"),
        (
            "rejection_sampling.sampling.prompts",
            121,
            "rejection_sampling.sampling.prompts is 121, but task.train is 120",
        ),
        ("rl.prompts_per_step", 200, "prompts_per_step is 200, but task.train is 120"),
        ("rl.optimizer.adam_beta1", 2.0, "optimizer.adam_beta1 must be below 1, got 2.0"),
        ("results", "my results", "results: 'my results' does not match"),
        ("seeds", [0.0], r"seeds must be a list of whole numbers, got \[0.0\]"),
        ("base_model.path", "./nothing", "neither a folder nor a hub id"),
        ("runs.ppo.settings.gae_lambda", 0.95, "runs.trl_ppo: .*only with gae_lambda 1 and gamma 1, got 0.95"),
        ("runs.grpo.settings.std_epsilon", 1.0e-6, "runs.trl_grpo: .*TRL's std_epsilon is fixed"),
        ("distillation", None, "on_policy_distillation goes on from student_cold, .*add the section distillation"),
        ("runs.expert_iteration", {"algorithm": "ppo"}, "a run's name is .* none of .*expert_iteration"),
        ("rejection_sampling.twin", "yes", "rejection_sampling.twin must be of type boolean, got 'yes'"),
        ("expert_iteration.rounds", 0, "expert_iteration.rounds must be above 0, got 0"),
        ("expert_iteration.hint", "so", r"expert_iteration: hint must contain \{answer\} once"),
        ("expert_iteration.training.trainer", "trl", "expert_iteration.training, key: 'trainer' is unknown"),
        ("expert_iteration.sampling.prompts", 121, "expert_iteration.sampling.prompts is 121, but task.train is 120"),
        (
            "on_policy_distillation.training.prompts_per_step",
            121,
            "on_policy_distillation.runs.student_gkd: prompts_per_step is 121, but task.train is 120",
        ),
        ("on_policy_distillation.runs.student_gkd.betta", 1.0, "'betta' is unknown. Did you mean 'beta'"),
        ("on_policy_distillation.runs.student_gkd.beta", 1.5, "runs.student_gkd.beta must be at most 1, got 1.5"),
        ("on_policy_distillation.runs.grpo", {}, "on_policy_distillation.runs.grpo: there is a run of this name"),
        ("on_policy_distillation.runs.student_cold", {}, "a run's name is"),
        (
            "on_policy_distillation.runs.student_gkd.objective",
            "policy_gradient",
            "runs.student_gkd: on_policy_share must be 1 for the policy gradient",
        ),
        ("on_policy_distillation.runs.trl_student_gkd.twin_of", "grpo", "trl_student_gkd.twin_of: 'grpo' is unknown"),
        ("on_policy_distillation.runs.trl_student_gkd.beta", 1.0, "a twin takes everything .*; remove beta"),
        ("on_policy_distillation.training.temperature", 0.9, "runs.trl_student_gkd: trainer trl: .*got 0.9"),
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
    assert study.resolved("gspo", 1)["optimizer"]["adam_beta1"] == 0.9 and study.resolved("gspo", 1)["seed"] == 1
    assert study.resolved("cold_start")["optimizer"]["schedule"] == "cosine"
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
    study = Study(changed("runs.grpo.optimizer", {"adam_epsilon": 1.0e-8}), "x")
    run = study.run("grpo", 3)
    assert run["optimizer"] == {"learning_rate": 1.0e-4, "adam_epsilon": 1.0e-8} and run["seed"] == 3


def test_runs_alone_are_a_study():
    config = changed("runs", {"grpo": SMOKE["runs"]["grpo"]})
    optional = ("rejection_sampling", "expert_iteration", "distillation", "on_policy_distillation")
    for section in ("preferences", "reward_model", *optional):
        del config[section]
    study = Study(config, "x")
    assert study.checkpoints() == {"cold_start": [0], "grpo": [0]} and study.report()["twins"] == {}
    config["expert_iteration"] = SMOKE["expert_iteration"]  # needs no teacher
    assert list(Study(config, "x").checkpoints()) == ["cold_start", "grpo", "expert_iteration"]


def test_offspring_and_their_twins_are_evaluated_and_reported():
    study = Study(SMOKE, "smoke")
    offspring = list(study.checkpoints())[1 + len(SMOKE["runs"]) :]
    assert offspring == [
        "rejection_sft",
        "trl_rejection_sft",
        "expert_iteration",
        "student_cold",
        "student_distilled",
        "student_gkd",
        "trl_student_gkd",
    ]
    twins = study.report()["twins"]
    assert twins["trl_rejection_sft"] == "rejection_sft" and twins["trl_student_gkd"] == "student_gkd"
    for twin in ("trl_rejection_sft", "trl_student_gkd"):
        ours, theirs = study.resolved(twins[twin], 3), study.resolved(twin, 3)
        assert {key: theirs[key] for key in theirs if theirs[key] != ours[key]} == {"trainer": "trl"}
    without = Study(changed("rejection_sampling.twin", False), "x")
    assert "trl_rejection_sft" not in without.checkpoints() and "trl_rejection_sft" not in without.report()["twins"]


def test_students_and_rounds_share_what_all_stages_share():
    config = changed("rl.max_response_tokens", 31)
    config["on_policy_distillation"]["training"]["optimizer"] = {"learning_rate": 1.0e-3, "warmup_steps": 1}
    config["on_policy_distillation"]["runs"]["student_gkd"]["optimizer"] = {"warmup_steps": 2}
    config["on_policy_distillation"]["runs"]["student_reverse_kl"] = {"beta": 1.0}
    study = Study(config, "x")
    student, rounds = study.resolved("student_gkd", 3), study.resolved("expert_iteration", 3)
    assert student["seed"] == rounds["sampling"]["seed"] == rounds["training"]["seed"] == 3
    assert student["max_response_tokens"] == rounds["sampling"]["max_response_tokens"] == 31
    assert (student["optimizer"]["learning_rate"], student["optimizer"]["warmup_steps"]) == (1.0e-3, 2)
    other = study.resolved("student_reverse_kl", 3)
    assert other["optimizer"]["warmup_steps"] == 1 and {**other, "beta": 0.5, "optimizer": 0} == {
        **student,
        "optimizer": 0,
    }


def test_the_schema_knows_exactly_the_settings_that_the_stages_know():
    properties = yaml.safe_load(SCHEMA.read_text())["properties"]
    placed = {"seed", "device", "dtype"}  # set by the study as a whole
    for schema, cls, without in [
        (properties["task"], TaskSettings, set()),
        (properties["prompt"], PromptSettings, set()),
        (properties["base_model"], stages.ModelConfig, set()),
        (properties["cold_start"], stages.SupervisedConfig, {*placed, "trainer"}),
        (properties["expert_iteration"], stages.ExpertIterationConfig, set()),
        (
            properties["on_policy_distillation"]["properties"]["training"],
            stages.DistillationConfig,
            {*placed, "trainer"},
        ),
        (properties["cold_start"]["properties"]["optimizer"], stages.OptimizerConfig, set()),
        (properties["preferences"], stages.PreferenceConfig, placed),
        (properties["reward_model"], stages.RewardModelConfig, placed),
        (properties["rl"]["properties"]["reward_settings"], stages.RewardSettings, set()),
        (properties["rl"]["properties"]["vllm"], stages.VllmConfig, set()),
        (properties["rl"], stages.RunConfig, {*placed, "algorithm", "trainer", "settings"}),
        (properties["rejection_sampling"]["properties"]["sampling"], stages.RejectionConfig, placed),
        (properties["evaluation"], EvaluationConfig, placed),
    ]:
        assert set(schema["properties"]) == {f.name for f in dataclasses.fields(cls)} - without, cls.__name__


def test_a_run_may_leave_out_the_adapters_that_the_others_share():
    config = copy.deepcopy(SMOKE)
    config["rl"] |= {"lora": {"rank": 4, "targets": ["q_proj"]}}
    config["runs"]["grpo"]["lora"] = {"rank": 8}
    config["runs"]["gspo"]["lora"] = None
    for name in [name for name, run in config["runs"].items() if "twin_of" in run]:
        del config["runs"][name]
    study = Study(config, "x")
    assert study.run_config("grpo").lora == stages.LoraSettings(8, 32.0, ("q_proj",))
    assert study.run_config("gspo").lora is None and study.run_config("ppo").lora.rank == 4
    resolved = json.loads(json.dumps(study.resolved("grpo")))  # as a command gets it
    assert from_dict(stages.RunConfig, resolved, "x").lora == study.run_config("grpo").lora


def test_bfloat16_is_placed_into_every_stage():
    config = changed("dtype", "bfloat16")
    del config["runs"]["trl_ppo"]  # which TRL cannot do
    study = Study(config, "x")
    stages_ = ("cold_start", "preferences", "reward_model", "accept", "evaluation", *config["runs"])
    assert {study.resolved(stage)["dtype"] for stage in stages_} == {"bfloat16"}
