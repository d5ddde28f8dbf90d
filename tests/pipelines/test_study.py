"""Study files: the graph that follows from one, the settings of each stage, and what is refused."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import LoraSettings, RunConfig
from algos.training.sampling.config import VllmConfig
from pipelines.study import Study, load
from pipelines.tree import tree

PIPELINES = Path(__file__).parents[2] / "pipelines"
FILES = [PIPELINES / "config.yaml", *sorted((PIPELINES / "studies").glob("*.yaml"))]
SMOKE = yaml.safe_load((PIPELINES / "studies" / "smoke.yaml").read_text())
REMOVED = object()


def changed(path: str, value: object) -> dict:
    """The smoke study with one key set, or removed."""
    config = copy.deepcopy(SMOKE)
    *parents, last = path.split("/")
    section = config
    for key in parents:
        section = section[key]
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    return config


def small(**stages: dict) -> dict:
    """The smoke study with these stages alone."""
    return {**copy.deepcopy(SMOKE), "stages": stages}


def sft(start: str = "base", **own) -> dict:
    return {"kind": "sft", "from": start, "data": "demonstrations", **own}


def rl(start: str = "base", **own) -> dict:
    return {"kind": "rl", "from": start, "algorithm": "grpo", **own}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_study_file_is_valid(path):
    study = load(path)
    assert study.evaluated and set(study.stages) == study.needed


def test_the_smoke_study_has_every_kind_and_the_default_studys_keys():
    from pipelines.kinds import KINDS

    assert {stage["kind"] for stage in SMOKE["stages"].values() if "kind" in stage} == set(KINDS)
    assert list(yaml.safe_load((PIPELINES / "config.yaml").read_text())) == list(SMOKE)


# ---- what is refused

MISTAKES = [
    # the study
    ("seedz", [0], "the study, key: 'seedz' is unknown. Did you mean 'seed"),
    ("seeds", [], "seeds must be different whole numbers"),
    ("seeds", [0, 0], r"seeds must be different whole numbers, at least one, got \[0, 0\]"),
    ("seeds", "0", "seeds must be .*'0'"),
    ("seeds", [0.0], r"seeds.* must be .*got .*0\.0"),
    ("task", REMOVED, "task is missing"),
    ("task/name", "word_problem", "Did you mean 'word_problems'"),
    ("task/settings/stepz", 1, "'stepz' is unknown. .*Allowed: double_share"),
    ("task/test", 0, "test must be above 0"),
    ("dtype", "float16", "dtype.*'float16'.*bfloat16"),
    ("results", "my {results}", "results: Snakemake reads braces as wildcards; .* got 'my {results}'"),
    ("study", "a/b", "study: 'a/b' is no name of a folder; choose another, or write `results:`"),
    ("evaluation/samples", 0, "samples must be above 0"),
    ("sampling/temperature", "hot", "sampling.temperature must be"),
    # models
    ("models/base/path", "/no/such/folder", "models.base.path: '/no/such/folder' is neither a folder nor a hub id"),
    ("models/base/path", "./nothing", "neither a folder nor a hub id"),
    ("models/base/hidden_size", 33, "models.base: hidden_size must be a multiple"),
    ("models/student/tokenizer", "bass", "models.student.tokenizer: 'bass' is unknown. Did you mean 'base'"),
    ("models/base/tokenizer", "student", "models.(base|student).tokenizer: .* takes its own from another model"),
    ("models/train", {}, "models.train: this is the name of a split"),
    ("models/Base", {}, "models.Base: a name is lower-case letters, digits and _"),
    # stages, kinds and defaults
    ("stages/grpo", None, "stages.grpo must be a mapping of settings, got None"),
    ("stages/grpo/kind", REMOVED, "stages.grpo: write `kind:`, one of sft, preferences"),
    ("stages/grpo/kind", "reinforcement", "stages.grpo.kind: 'reinforcement' is unknown. Allowed: distillation"),
    ("stages/trl_grpo/kind", "sft", "stages.trl_grpo.kind is sft, but grpo, which it is like, is of kind rl"),
    ("stages/base", {"kind": "sft"}, "stages.base: there is a model of this name"),
    ("stages/test", {"kind": "sft"}, "stages.test: this is the name of a split"),
    ("stages/cold-start", {"kind": "sft"}, "stages.cold-start: a name is lower-case letters"),
    ("defaults/ppo", {}, "defaults, key: 'ppo' is unknown"),
    ("defaults/rl/learning_rate", 1.0, "defaults.rl, key: 'learning_rate' is unknown"),
    ("stages/grpo/algorithm", REMOVED, "stages.grpo: write `algorithm: <name>`"),
    ("stages/grpo/algorithm", "grop", "stages.grpo: algorithm: 'grop' is unknown. Did you mean 'grpo'"),
    ("stages/grpo/stepz", 1, "stages.grpo, key: 'stepz' is unknown. Did you mean 'steps'"),
    ("stages/gspo/settings/clip_lo", 0.1, "Did you mean 'clip_low'"),
    ("stages/gspo/settings/clip_low", -1.0, "stages.gspo: settings.clip_low must be at least 0, got -1.0"),
    ("stages/grpo/evaluate", "no", "stages.grpo.evaluate must be true or false, got 'no'"),
    ("stages/accepted/evaluate", True, "stages.accepted.evaluate: a stage of kind rejection_sampling is never"),
    ("stages/grpo/threads", 0, "stages.grpo.threads must be at least 1, got 0"),
    (
        "defaults/rl/optimizer/learning_rate",
        "1e-4",
        "optimizer.learning_rate must be .*number, got '1e-4'. YAML reads 1e-4 as text; write 1.0e-04",
    ),
    ("defaults/rl/group_size", 1, "stages.grpo: group_size must be at least 2 for grpo, got 1"),
    ("defaults/rl/minibatches", 5, "must be a multiple of minibatches, got 5"),
    ("defaults/rl/rewards", {"helpful": 1.0}, "'helpful' is unknown. Allowed: correctness, edit_similarity, format"),
    ("defaults/rl/optimizer/adam_beta1", 2.0, "adam_beta1 must be below 1, got 2.0"),
    ("stages/preferences/responses", 1, "responses must be at least 2"),
    ("stages/expert_iteration/rounds", 0, "stages.expert_iteration.rounds must be above 0, got 0"),
    ("stages/expert_iteration/hint", "so", r"stages.expert_iteration: hint must contain \{answer\} once"),
    ("stages/student_gkd/betta", 1.0, "'betta' is unknown. Did you mean 'beta'"),
    ("stages/student_gkd/beta", 1.5, r"stages.student_gkd.beta must be at most 1, got 1.5"),
    # edges
    (
        "stages/grpo/from",
        REMOVED,
        "stages.grpo.from is missing: a model, or a stage of kind sft or rl .* There are: ",
    ),
    ("stages/grpo/from", "cold_strat", "stages.grpo.from: 'cold_strat' is unknown. Did you mean 'cold_start'"),
    ("stages/grpo/from", ["base"], r"stages.grpo.from must be the name of one stage or model, got \['base'\]"),
    ("stages/grpo/from", "accepted", "from: accepted is a stage of kind rejection_sampling, but this must be a model"),
    ("stages/grpo/from", "reward_model", "stages.grpo.from: reward_model is a stage of kind reward_model, but"),
    ("stages/grpo/from", "demonstrations", "stages.grpo.from: demonstrations is a split of the data, but this must"),
    ("stages/grpo/from", "grpo_kl", "grpo_kl varies; name one of grpo_kl-kl_coef=0.01, grpo_kl-kl_coef=0.1"),
    ("stages/cold_start/data", "test", "stages.cold_start.data: test is there to measure with; train on train or"),
    ("stages/cold_start/data", "grpo", "stages.cold_start.data: grpo is a stage of kind rl, but this must be a split"),
    ("stages/reward_model/data", "accepted", "stages.reward_model.data: accepted is .* must be a stage of kind pref"),
    ("stages/student_gkd/teacher", "reward_model", "stages.student_gkd.teacher: reward_model is a stage of kind rew"),
    ("stages/student_gkd/teacher", "gpro", "stages.student_gkd.teacher: 'gpro' is unknown. Did you mean"),
    ("stages/ppo_rm/reward_model", REMOVED, "stages.ppo_rm: it needs a reward model; write .* There are: reward_model"),
    ("stages/grpo/reward_model", "reward_model", "stages.grpo.reward_model: without effect, as rewards do not name"),
    ("stages/preferences/from", REMOVED, "stages.preferences: write `from:`, whose responses .*, or `path:`"),
    ("stages/preferences/path", "x.jsonl", "stages.preferences: write `from:`, .* one of them"),
    ("stages/cold_start/from", "grpo", "stages.\\w+.from: a circle, .*cold_start.*; a stage cannot come from itself"),
    ("stages/grpo/from", "grpo", "stages.grpo.from: a circle, grpo -> grpo; a stage cannot come from itself"),
    # like and vary
    ("stages/grpo/like", "grpo", "stages.grpo.like: a circle, grpo -> grpo; remove one `like`"),
    ("stages/trl_grpo/like", "gpro", "stages.trl_grpo.like: 'gpro' is unknown. Did you mean"),
    ("stages/trl_grpo/like", "grpo_kl", "stages.trl_grpo.like: grpo_kl varies; name one of grpo_kl-kl_coef=0.01"),
    ("stages/grpo_kl/vary", {"kl_coeff": [0.1]}, "stages.grpo_kl.vary: 'kl_coeff' is unknown. Did you mean 'kl_coef'"),
    ("stages/grpo_kl/vary", {"kl_coef": 0.1}, "stages.grpo_kl.vary.kl_coef must be a list of at least one value"),
    ("stages/grpo_kl/vary", {"kl_coef": []}, "stages.grpo_kl.vary.kl_coef must be a list of at least one value"),
    ("stages/grpo_kl/vary", {}, "stages.grpo_kl.vary must be a mapping of settings to lists"),
    ("stages/grpo_kl/vary", {"kl_coef": [0.1, 0.1]}, "stages.grpo_kl.vary makes grpo_kl-kl_coef=0.1 twice; two stages"),
    ("stages/grpo_kl/vary", {"kl_coef": ["a b"]}, "a varied value is a number, .* or a plain word, got 'a b'"),
    ("stages/grpo_kl/vary", {"kl_coef": [-1.0]}, "stages.grpo_kl-kl_coef=-1.0: settings.kl_coef must be at least 0"),
    # seeds
    ("stages/grpo/seeds", [], "stages.grpo.seeds must be a list of different whole numbers"),
    ("stages/grpo/seeds", [0, "a"], "stages.grpo.seeds must be a list of different whole numbers"),
    # TRL baselines
    ("stages/trl_ppo/settings", {"clip_high": 0.3}, "stages.trl_ppo: .*TRL's PPO has one clip range"),
    ("stages/ppo/settings/gae_lambda", 0.95, "stages.trl_ppo: .*only with gae_lambda 1 and gamma 1, got 0.95"),
    ("stages/grpo/settings/std_epsilon", 1.0e-6, "stages.trl_grpo: .*TRL's std_epsilon is fixed"),
    ("stages/trl_student_gkd/temperature", 0.9, "stages.trl_student_gkd: trainer trl: .*got 0.9"),
    # more problems than there are
    ("stages/preferences/prompts", 5000, "stages.preferences: prompts is 5000, but task.train is 120"),
    ("stages/accepted/prompts", 121, "stages.accepted: prompts is 121, but task.train is 120"),
    ("defaults/rl/prompts_per_step", 200, "prompts_per_step is 200, but task.train is 120"),
    (
        "stages/expert_iteration/sampling/prompts",
        121,
        "sampling.prompts is 121, but task.train is 120",
    ),
    (
        "defaults/distillation/prompts_per_step",
        121,
        "student_gkd: prompts_per_step is 121, but task.train is 120",
    ),
]


@pytest.mark.parametrize("path, value, message", MISTAKES, ids=lambda x: x if isinstance(x, str) else None)
def test_mistakes_are_named_with_file_key_value_and_what_is_allowed(path, value, message):
    with pytest.raises(SettingsError, match=message) as raised:
        Study(changed(path, value), "studies/mine.yaml")
    assert str(raised.value).startswith("studies/mine.yaml: ") and "\n" not in str(raised.value)


def test_a_stage_with_other_seeds_than_the_stage_it_starts_from_is_refused():
    config = small(first=sft(seeds=[0, 1]), second=rl("first", seeds=[0, 2]))
    message = "stages.second.from: first has the seeds 0, 1, but second runs with seed 2; give first one seed, or the"
    with pytest.raises(SettingsError, match=message):
        Study(config, "x")


@pytest.mark.parametrize(
    "written, wrong, line",
    [
        ("clip_low: 0.03,", "clip_low: -1,", "clip_low: -1"),  # in the stage itself
        ("kind: reward_model,", "kind: reward_modle,", "kind: reward_modle"),
        ("epochs: 1\n    micro", "epochs: 0\n    micro", "epochs: 0"),  # in the defaults of its kind
        ("teacher: grpo", "teacher: grop", "teacher: grop"),
        ("clip_low: 0.2, clip_high: 0.28", "clip_low: 0.2, clip_hihg: 0.28", "clip_hihg"),
        ("seed: 0\n", "sede: 0\n", "sede: 0"),
        ("hidden_size: 32", "hidden_size: 33", "base: {"),
        ("vary: {kl_coef: [0.01, 0.1]}", "vary: {kl_coef: [0.01, -0.1]}", "grpo_kl: {"),  # of the stage that varies
    ],
)
def test_a_message_names_the_line_that_is_wrong(tmp_path, written, wrong, line):
    text = (PIPELINES / "studies" / "smoke.yaml").read_text()
    assert text.count(written) >= 1
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(written, wrong, 1))
    number = next(i for i, row in enumerate(path.read_text().splitlines(), 1) if line in row)
    with pytest.raises(SettingsError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}, line {number}: "), raised.value


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (PIPELINES / "studies" / "smoke.yaml").read_text()
    path.write_text(text + "\nstages:\n  other: {kind: sft, from: base, data: train}\n")
    first, second = (i for i, row in enumerate(path.read_text().splitlines(), 1) if row == "stages:")
    with pytest.raises(SettingsError, match=f"line {second}: the key 'stages' stands in line {first} already"):
        load(path)
    path.write_text(text.replace("  gspo:\n", "  grpo: {kind: sft}\n  gspo:\n"))
    with pytest.raises(SettingsError, match=r"the key 'stages\.grpo' stands in line \d+ already"):
        load(path)


def test_a_key_that_yaml_reads_as_a_truth_value_is_named():
    with pytest.raises(SettingsError, match="stages: the key True is no text"):
        Study(yaml.safe_load("study: x\nstages: {on: {kind: rl}}"), "x")


def test_gsm8k_without_its_files_is_refused():
    config = changed("task", {"name": "gsm8k", "settings": {"path": "/no/such/folder"}})
    with pytest.raises(SettingsError, match=r"/no/such/folder/train\.jsonl does not exist"):
        Study(config, "x")


def test_an_unreadable_study_file_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    cases = {"bad": "not YAML", "none": "No such file", "list": "expected a mapping", "bytes": "not text in UTF-8"}
    for name, message in cases.items():
        with pytest.raises(SettingsError, match=message) as raised:
            load(tmp_path / f"{name}.yaml")
        assert "\n" not in str(raised.value)


# ---- the graph


def test_a_chain_of_ones_own_is_a_study():
    config = small(
        zero=rl("base"),
        accepted={"kind": "rejection_sampling", "from": "zero", "prompts": 10},
        tuned=sft("base", data="accepted"),
        again={"like": "zero", "from": "tuned"},
        student_rl={"like": "zero", "from": "student"},
    )
    study = Study(config, "x")
    assert study.evaluated == ["zero", "tuned", "again", "student_rl"]
    assert study.options("zero", 0)[:2] == ["--from", "results/smoke/models/base/checkpoint"]
    assert study.options("tuned", 0) == [
        *("--from", "results/smoke/models/base/checkpoint"),
        *("--data", "results/smoke/stages/accepted/seed0/accepted.jsonl"),
    ]
    assert study.options("again", 0)[1] == "results/smoke/stages/tuned/seed0/checkpoint"
    assert study.report()["stages"]["again"]["from"] == "tuned" and study.origin("again") == "base"


def test_an_edge_takes_the_only_seed_of_a_stage_or_the_same_one():
    config = small(first=sft(seeds=[7]), second=rl("first"), third=rl("second"))
    study = Study({**config, "seeds": [0, 1]}, "x")
    assert study.options("second", 1)[1] == "results/smoke/stages/first/seed7/checkpoint"
    assert study.options("third", 1)[1] == "results/smoke/stages/second/seed1/checkpoint"


def test_like_copies_all_settings_and_what_stands_beside_it_is_the_change():
    study = Study(SMOKE, "smoke")
    own, baseline = study.resolved("grpo", 0), study.resolved("trl_grpo", 0)
    assert {key for key in baseline if baseline[key] != own[key]} == {"trainer"}
    first, second = study.resolved("ppo", 0), study.resolved("ppo_rm", 0)
    assert second["rewards"] == {"reward_model": 1.0} and second["settings"]["gae_lambda"] == 1.0
    assert {k for k in first["settings"] if first["settings"][k] != second["settings"][k]} == {"kl_coef", "value_clip"}
    assert study.resolved("second_rl", 0) == own and study.edges("second_rl") == {"from": "rejection_sft"}


def test_an_edge_that_a_like_stage_does_not_use_is_left_out():
    config = changed("stages/again", {"like": "ppo_rm", "rewards": {"correctness": 1.0}, "reward_clip": None})
    study = Study(config, "x")
    assert study.edges("again") == {"from": "cold_start"} and "reward_model" in study.edges("ppo_rm")


def test_vary_makes_a_stage_for_each_combination_that_others_may_name():
    config = small(
        one=rl("base"),
        many={"like": "one", "vary": {"kl_coef": [0.0, 0.1], "optimizer.learning_rate": [1.0e-4, 1.0e-5]}},
        next={
            "like": "many-kl_coef=0.1-optimizer.learning_rate=1e-05",
            "from": "many-kl_coef=0.1-optimizer.learning_rate=0.0001",
        },
    )
    study = Study(config, "x")
    assert list(study.stages) == [
        "one",
        "many-kl_coef=0.0-optimizer.learning_rate=0.0001",
        "many-kl_coef=0.0-optimizer.learning_rate=1e-05",
        "many-kl_coef=0.1-optimizer.learning_rate=0.0001",
        "many-kl_coef=0.1-optimizer.learning_rate=1e-05",
        "next",
    ]
    last = study.resolved("next", 0)
    assert last["settings"]["kl_coef"] == 0.1 and last["optimizer"]["learning_rate"] == 1.0e-5
    assert study.resolved("one", 0)["settings"]["kl_coef"] == 0.0  # the stage that others are like stays as it is


def test_a_varied_stage_may_leave_settings_without_effect():
    config = small(one=rl("base", settings={"kl_estimator": "k2", "kl_coef": 0.1}))
    config["stages"]["many"] = {"like": "one", "vary": {"kl_coef": [0, 0.1]}}
    assert Study(config, "x").resolved("many-kl_coef=0", 0)["settings"]["kl_coef"] == 0


def test_edges_of_rl_lead_to_reference_critic_and_reward_model():
    config = changed("stages/ppo_rm/reference", "base")
    config["stages"]["ppo_rm"]["critic"] = "grpo"
    study = Study(config, "x")
    words = study.options("ppo_rm", 0)
    assert words[words.index("--reference") + 1] == "results/smoke/models/base/checkpoint"
    assert words[words.index("--critic") + 1] == "results/smoke/stages/grpo/seed0/checkpoint"
    assert words[words.index("--reward-model") + 1] == "results/smoke/stages/reward_model/seed0/checkpoint"
    assert set(words[1::2]) == set(study.inputs("ppo_rm", 0))


def test_preferences_may_come_from_a_file(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    own = {"kind": "preferences", "path": str(tmp_path / "pairs.jsonl")}
    study = Study(changed("stages/preferences", own), "x")
    assert study.options("preferences", 0) == ["--pairs", str(tmp_path / "pairs.jsonl")]
    assert study.inputs("preferences", 0) == []


def test_a_stage_that_nothing_needs_is_not_run_and_warned_of():
    study = Study(changed("stages/unused", {"kind": "rejection_sampling", "from": "grpo", "prompts": 10}), "x")
    assert study.warnings == ["stages.unused: no evaluated stage needs it, so it is not run."]
    assert "unused" not in study.report()["stages"] and "not run: nothing needs it" in tree(study)
    quiet = Study(changed("stages/second_rl/evaluate", False), "x")
    assert quiet.warnings[0].startswith("stages.second_rl: no evaluated stage needs it")


def test_the_tree_shows_every_stage_below_its_start_and_counts_jobs_and_what_is_done(tmp_path):
    study = Study({**copy.deepcopy(SMOKE), "results": str(tmp_path)}, "x")
    lines = tree(study).splitlines()
    assert lines[0] == f"smoke: 21 stages, 42 jobs with data and evaluation, 0 of them done ({tmp_path})"
    second = next(line for line in lines if "second_rl" in line)
    assert second.startswith("   │  └─ second_rl ") or "└─ second_rl" in second
    folder = tmp_path / "stages" / "grpo" / "seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    assert "1 of them done" in tree(study) and "[1 of 2 done]" in tree(study)


# ---- settings


def test_commands_carry_all_settings_so_that_changed_defaults_count():
    study = Study(SMOKE, "smoke")
    assert study.resolved("gspo", 1)["settings"]["std_epsilon"] == 1.0e-4
    assert study.resolved("gspo", 1)["optimizer"]["adam_beta1"] == 0.9 and study.resolved("gspo", 1)["seed"] == 1
    assert study.resolved("cold_start", 0)["optimizer"]["schedule"] == "cosine"
    assert study.evaluation() and study.model("student") and all(study.resolved(stage, 0) for stage in study.stages)
    written_out = changed("sampling/temperature", 1.0)  # the default
    assert Study(written_out, "x").resolved("ppo", 0) == study.resolved("ppo", 0)


def test_a_stages_own_settings_win_and_nested_ones_merge():
    study = Study(changed("stages/grpo/optimizer", {"adam_epsilon": 1.0e-8}), "x")
    values = study.values("grpo", 3)
    assert values["optimizer"] == {"learning_rate": 1.0e-4, "adam_epsilon": 1.0e-8} and values["seed"] == 3


def test_every_stage_that_samples_shares_the_sampling():
    config = changed("sampling/max_response_tokens", 31)
    study = Study(config, "x")
    names = ("grpo", "preferences", "accepted", "student_gkd")
    assert {study.resolved(name, 0)["max_response_tokens"] for name in names} == {31}
    rounds = study.resolved("expert_iteration", 3)
    assert rounds["sampling"]["seed"] == rounds["training"]["seed"] == 3
    assert rounds["sampling"]["max_response_tokens"] == study.evaluation()["max_response_tokens"] == 31


def test_a_stage_may_leave_out_the_adapters_that_the_others_share():
    config = copy.deepcopy(SMOKE)
    config["defaults"]["rl"] |= {"lora": {"rank": 4, "targets": ["q_proj"]}}
    config["stages"]["grpo"]["lora"] = {"rank": 8}
    config["stages"]["gspo"]["lora"] = None
    for name in ("trl_ppo", "trl_grpo", "trl_gspo"):
        del config["stages"][name]
    study = Study(config, "x")
    assert study.parsed("grpo", 0).lora == LoraSettings(8, 32.0, ("q_proj",))
    assert study.parsed("gspo", 0).lora is None and study.parsed("ppo", 0).lora.rank == 4
    resolved = json.loads(json.dumps(study.resolved("grpo", 0)))  # as a command gets it
    assert from_dict(RunConfig, resolved, "x").lora == study.parsed("grpo", 0).lora


def test_a_study_may_name_the_engine_for_all_stages_but_the_trl_baselines():
    config = copy.deepcopy(SMOKE)
    config["defaults"]["rl"] |= {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.5}}
    config["stages"]["gspo"]["vllm"] = {"sleep": False}
    with pytest.raises(
        SettingsError, match="stages.trl_ppo: engine: vllm belongs to trainer: own; .* Write engine: tr"
    ):
        Study(config, "x")
    for name in ("trl_ppo", "trl_grpo", "trl_gspo"):
        config["stages"][name] |= {"engine": "transformers"}
    study = Study(config, "x")
    assert study.parsed("grpo", 0).vllm == VllmConfig(gpu_memory_utilization=0.5)
    assert study.parsed("gspo", 0).vllm == VllmConfig(gpu_memory_utilization=0.5, sleep=False)


def test_bfloat16_is_placed_into_every_stage():
    config = changed("dtype", "bfloat16")
    del config["stages"]["trl_ppo"]  # TRL's PPO has no bfloat16
    study = Study(config, "x")
    resolved = [study.resolved(stage, 0) for stage in study.stages] + [study.evaluation()]
    assert {settings.get("dtype", settings.get("sampling", {}).get("dtype")) for settings in resolved} == {"bfloat16"}


def test_the_ladder_changes_one_thing_at_a_time():
    study = load(PIPELINES / "studies" / "ladder.yaml")
    rungs = [study.resolved(name, 0) for name in study.of_kind("rl")]
    keys = [
        {key for key in after["settings"] if before["settings"].get(key) != after["settings"][key]}
        for before, after in pairwise(rungs)
    ]
    assert keys[0] - {"kl_in", "kl_estimator"} == {"baseline"}  # without a KL term those two say nothing
    assert keys[1:] == [{"scale"}, {"aggregation"}, {"clip_high"}, {"clip_low", "clip_high"}, {"ratio"}]
    default = load(PIPELINES / "config.yaml")
    assert study.resolved("grpo", 0) == default.resolved("grpo", 0)
    assert {**study.resolved("gspo", 0), "algorithm": "gspo"} == default.resolved("gspo", 0)
