"""Study files: the graph that follows from one, the settings of each stage, and what is refused."""

import copy
import json
import re
from itertools import pairwise

import pytest
import yaml
from studies import FILES, PIPELINES, REMOVED, SMOKE, changed, rl, sft, small

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import LoraSettings, RunConfig
from algos.training.sampling.config import VllmConfig
from pipelines.study import Study, load
from pipelines.tree import tree


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_study_file_is_valid(path):
    study = load(path)
    assert study.evaluated and set(study.stages) == study.needed


def test_the_smoke_study_has_every_kind_and_the_default_studys_keys():
    from pipelines.kinds import KINDS

    assert {stage["kind"] for stage in SMOKE["stages"].values() if "kind" in stage} == set(KINDS)
    assert list(yaml.safe_load((PIPELINES / "config.yaml").read_text())) == list(SMOKE)


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


def test_vary_may_choose_the_algorithm_and_what_it_brings_for_its_runs():
    config = small(
        many={"kind": "rl", "from": "base", "vary": {"algorithm": ["grpo", "dapo", "ppo_as_trl"], "kl_coef": [0.1]}},
        written={"like": "many-algorithm=grpo-kl_coef=0.1", "algorithm": "ppo_as_trl"},
    )
    study = Study(config, "x")
    made = [f"many-algorithm={name}-kl_coef=0.1" for name in ("grpo", "dapo", "ppo_as_trl")]
    assert [*study.stages] == [*made, "written"] and len({study.folder(name, 0) for name in study.stages}) == 4
    grpo, dapo, ppo = (study.parsed(name, 0) for name in made)
    assert [run.algorithm for run in (grpo, dapo, ppo)] == ["grpo", "dapo", "ppo_as_trl"]
    assert dapo.rewards == {"correctness": 1.0, "overlong": 1.0} and grpo.rewards == {"correctness": 1.0}
    assert (grpo.epochs, grpo.minibatches, ppo.epochs, ppo.minibatches) == (1, 4, 4, 1)
    assert ppo.hparams.value_coef == 0.1 and {run.hparams.kl_coef for run in (grpo, dapo, ppo)} == {0.1}
    assert study.parsed("written", 0) == ppo


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


def test_settings_of_a_kl_beside_vary_may_be_idle_where_a_stage_of_the_family_has_a_kl():
    study = Study(small(many=rl(settings={"kl_estimator": "k2"}, vary={"kl_coef": [0, 0.1]})), "x")
    both = [study.resolved(f"many-kl_coef={value}", 0)["settings"] for value in ("0", "0.1")]
    assert [(made["kl_coef"], made["kl_estimator"]) for made in both] == [(0, "k2"), (0.1, "k2")]
    study = Study(small(many=rl(settings={"kl_coef": 0.1}, vary={"kl_estimator": ["k1", "k3"]})), "x")
    assert study.resolved("many-kl_estimator=k1", 0)["settings"]["kl_estimator"] == "k1"


@pytest.mark.parametrize(
    "own",
    [
        {"vary": {"kl_estimator": ["k1", "k3"]}},
        {"vary": {"settings.kl_estimator": ["k1", "k3"]}},
        {"vary": {"clip_low": [0.1, 0.2]}, "settings": {"kl_estimator": "k1"}},
    ],
)
def test_varied_settings_of_a_kl_are_refused_where_no_stage_of_the_family_has_one(own):
    message = r"stages\.many-[^ ]*\.settings: kl_estimator without effect, as kl_coef is 0"
    with pytest.raises(SettingsError, match=message):
        Study(small(many=rl(**own)), "x")


def test_a_varied_reward_leaves_the_others_as_they_are():
    varied = {"vary": {"rewards.format": [0.0, 0.1]}}
    config = small(
        shared=rl(**varied),  # its rewards come from the defaults of rl
        own=rl(rewards={"edit_similarity": 0.5}, **varied),
        preset=rl(algorithm="dapo", **varied),
        next={"like": "shared-rewards.format=0.1", "algorithm": "dapo"},
    )
    study = Study(config, "x")
    assert study.resolved("shared-rewards.format=0.0", 0)["rewards"] == {"correctness": 1.0, "format": 0.0}
    assert study.resolved("shared-rewards.format=0.1", 0)["rewards"] == {"correctness": 1.0, "format": 0.1}
    assert study.resolved("own-rewards.format=0.1", 0)["rewards"] == {"edit_similarity": 0.5, "format": 0.1}
    added = {"correctness": 1.0, "overlong": 1.0, "format": 0.1}
    assert study.resolved("preset-rewards.format=0.1", 0)["rewards"] == study.resolved("next", 0)["rewards"] == added
    del config["defaults"]["rl"]["rewards"]
    assert Study(config, "x").resolved("preset-rewards.format=0.1", 0)["rewards"] == added


@pytest.mark.parametrize(
    "own, key, values, edge",
    [
        (rl(reference="student"), "kl_coef", [0.0, 0.1], "reference"),
        (rl(algorithm="ppo", critic="student"), "critic_init", ["fresh", "policy"], "critic"),
        (
            {"kind": "distillation", "from": "base", "teacher": "base", "data": "text"},
            "on_policy_share",
            [1.0, 0.5],
            "data",
        ),
    ],
)
def test_an_edge_of_a_stage_that_varies_needs_one_of_its_stages_to_use_it(own, key, values, edge):
    study = Study(small(many={**own, "vary": {key: values}}), "x")
    assert [edge in study.edges(name) for name in study.stages] == [False, True]
    with pytest.raises(SettingsError, match=rf"stages\.many-{key}={values[0]}\.{edge}: without effect"):
        Study(small(many={**own, "vary": {key: values[:1]}}), "x")


def test_a_varied_edge_needs_an_effect():
    with pytest.raises(SettingsError, match=r"stages\.many-reference=base\.reference: without effect, as kl_coef is 0"):
        Study(small(many=rl(vary={"reference": ["base", "student"]})), "x")


def test_a_model_with_a_tokenizer_of_null_has_one_of_its_own(tmp_path):
    study = Study(changed("models/base/tokenizer", None), "x")  # the student takes the base's
    assert study.tokenizer_of("base") is None and study.tokenizer_of("student") == "base"
    Study(changed("models/base", {"path": str(tmp_path), "tokenizer": None}), "x")


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


def test_the_models_that_are_evaluated_are_loaded_and_evaluated_stages_start_from_them(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = small(one=sft("base"), two=sft("loaded"), three=sft("built"))
    shape = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16}
    config["models"] = {"base": str(tmp_path), "loaded": str(tmp_path), "built": shape, "idle": str(tmp_path)}
    assert Study(config, "x").evaluated_models == ["base", "loaded"]
    config["stages"]["two"]["evaluate"] = False
    study = Study(config, "x")
    assert study.evaluated_models == ["base"]
    assert [name for name, facts in study.report()["stages"].items() if facts["kind"] == "model"] == ["base"]


def test_the_tree_shows_every_stage_below_its_start_and_counts_jobs_and_what_is_done(tmp_path):
    study = Study({**copy.deepcopy(SMOKE), "results": str(tmp_path)}, "x")
    lines = tree(study).splitlines()
    assert lines[0] == f"smoke: 21 stages, 43 jobs with data and evaluation, 0 of them done ({tmp_path})"
    second = next(line for line in lines if "second_rl" in line)
    assert second.startswith("   │  └─ second_rl ") or "└─ second_rl" in second
    folder = tmp_path / "stages" / "grpo" / "seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    assert "1 of them done" in tree(study) and "[1 of 2 done]" in tree(study)


def test_the_tree_names_algorithm_and_trainer_wherever_they_are_written():
    config = small(one={"kind": "rl", "from": "base"}, two={"like": "one", "trainer": "trl"})
    config["defaults"]["rl"] |= {"algorithm": "grpo"}
    config["stages"]["one"]["settings"] = {"std_epsilon": 1.0e-4}
    assert re.findall(r" (one|two) +rl  (.*?)  \[", tree(Study(config, "x"))) == [
        ("one", "grpo  seeds 0"),
        ("two", "grpo  seeds 0  by TRL"),
    ]


# ---- settings


def test_reach_is_of_the_test_problems_and_a_study_without_it_has_the_commands_of_before():
    study, plain = Study(SMOKE, "smoke"), Study(changed("evaluation", {"samples": 8}), "plain")
    assert study.evaluation()["reach"] == {"problems": 5, "samples": 16} and "reach" not in plain.evaluation()
    assert study.evaluation_of_trial() == plain.evaluation_of_trial() == plain.evaluation() | {"text": None}
    assert "other_task" not in study.evaluation() and study.other_task.test == 10 and plain.other_task is None
    assert study.report()["reach"] == 16 and "reach" not in plain.report()


def test_commands_carry_all_settings_so_that_changed_defaults_count():
    study = Study(SMOKE, "smoke")
    assert study.resolved("gspo", 1)["settings"]["std_epsilon"] == 1.0e-4
    assert study.resolved("gspo", 1)["optimizer"]["adam_beta1"] == 0.9 and study.resolved("gspo", 1)["seed"] == 1
    assert study.resolved("cold_start", 0)["optimizer"]["schedule"] == "cosine"
    assert study.evaluation() and study.model("student") and all(study.resolved(stage, 0) for stage in study.stages)
    written_out = changed("sampling/temperature", 1.0)  # the default
    assert Study(written_out, "x").resolved("ppo", 0) == study.resolved("ppo", 0)


def test_a_stage_reads_dev_problems_only_to_measure_on_them_and_no_stage_reads_the_test_problems():
    study = Study(SMOKE, "x")
    dev = "results/smoke/data/dev.jsonl"
    for name in study.stages:
        words = study.options(name, 0)
        assert (words[-2:] == ["--dev", dev]) == (dev in study.inputs(name, 0)) == (study.stages[name].kind == "rl")
        assert not any("test.jsonl" in word for word in words)
    without = Study(changed("defaults/rl/dev_every", REMOVED), "x")
    assert not any(dev in without.options(name, 0) for name in without.stages)


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


def test_null_removes_a_shared_value_so_that_the_fields_own_default_holds():
    config = copy.deepcopy(SMOKE)
    config["defaults"]["rl"] |= {"threads": 2, "reward_clip": 5.0, "temperature": 0.5}
    config["defaults"]["rl"]["optimizer"] |= {"max_grad_norm": 0.5, "weight_decay": 0.1}
    config["stages"]["one"] = rl(seeds=[3], settings={"clip_low": 0.1, "dual_clip": 2.0}, evaluate=False)
    removed = {key: None for key in ("steps", "seeds", "threads", "evaluate", "rewards", "reward_clip", "temperature")}
    nulls = {"max_grad_norm": None, "weight_decay": None}
    settings = {"clip_low": None, "dual_clip": None}
    config["stages"]["two"] = {"like": "one", **removed, "optimizer": nulls, "settings": settings}
    config["stages"]["rounds"] = {"like": "expert_iteration", "sampling": {"responses": None}, "hint": None}
    config["stages"]["whole"] = {"like": "one", "optimizer": None, "settings": None}
    config["stages"]["varied"] = {"like": "one", "vary": {"rewards.format": [None, 0.1], "clip_low": [None]}}
    study = Study(config, "x")
    two, plain = study.parsed("two", 0), RunConfig("grpo", 0)
    assert [getattr(two, key) for key in ("steps", "rewards", "temperature")] == [30, {"correctness": 1.0}, 1.0]
    assert two.reward_clip is None and two.optimizer.max_grad_norm is None and two.optimizer.weight_decay == 0.0
    assert two.hparams.clip_low == plain.hparams.clip_low and two.hparams.dual_clip is None
    assert two.optimizer.learning_rate == 1.0e-4 and study.seeds_of("two") == [0] and study.threads("two") == 1
    assert "two" in study.evaluated and "one" not in study.evaluated
    assert study.parsed("rounds", 0).sampling.responses == 4 and study.parsed("rounds", 0).hint is None
    assert study.parsed("whole", 0).optimizer == plain.optimizer and study.parsed("whole", 0).hparams == plain.hparams
    varied = study.parsed("varied-rewards.format=null-clip_low=null", 0)
    assert varied.rewards == {"correctness": 1.0} and varied.hparams.clip_low == plain.hparams.clip_low


@pytest.mark.parametrize("removed", [{"rewards": None}, {}])
def test_an_algorithms_rewards_are_added_to_the_default_where_no_others_are_shared(removed):
    config = {**small(one=rl(algorithm="dapo")), "defaults": {"rl": removed}}
    assert Study(config, "x").parsed("one", 0).rewards == {"correctness": 1.0, "overlong": 1.0}


def test_a_study_may_name_the_engine_for_all_stages_but_the_trl_baselines():
    config = copy.deepcopy(SMOKE)
    config["defaults"]["rl"] |= {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.5}}
    config["stages"]["gspo"]["vllm"] = {"sleep": False}
    with pytest.raises(
        SettingsError, match=r"stages.trl_ppo: engine: vllm belongs to trainer: own; .* Write engine: tr"
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


def test_the_description_for_the_report_fits_a_command_line():
    study = load(PIPELINES / "studies" / "family.yaml")
    assert len(json.dumps(study.report())) < 200 * len(study.stages)  # Linux allows 131,072 bytes in one argument


def test_one_setting_takes_an_engine_for_every_stage_that_samples_but_trls():
    study = Study({**copy.deepcopy(SMOKE), "sampling": {"max_response_tokens": 24, "engine": "vllm"}}, "x")
    engines = {}
    for name, stage in study.stages.items():
        config = study.parsed(name, 0)
        config = config.sampling if stage.kind == "expert_iteration" else config
        engines.setdefault((stage.kind, getattr(config, "trainer", "own")), getattr(config, "engine", None))
    sampling = {kind for kind, engine in engines.items() if engine == "vllm"}
    assert sampling == {
        ("rl", "own"), ("preferences", "own"), ("rejection_sampling", "own"), ("expert_iteration", "own"),
    }  # fmt: skip
    assert engines["rl", "trl"] == "transformers" and study.evaluation()["engine"] == "vllm"
