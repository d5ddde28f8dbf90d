"""Run.step(): what survives an interruption, where its models come from, and what it takes of memory."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from lean import CPU, TOKENIZER, folder_of
from tiny import tiny_model

from algos.pieces.settings import SettingsError
from algos.training import train as training
from algos.training.assemble import Checkpoints, make_learner, make_run
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import build_model, import_model, load_policy, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.tokens import train_tokenizer
from algos.training.rewards import reward_model
from algos.training.rewards.config import RewardModelConfig
from algos.training.run import Run
from algos.training.sampling.engines import RatioCanary
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import Phases
from algos.training.supervised import distillation, expert_iteration, sft
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)
from evaluation.tasks.files import read_jsonl, write_jsonl

PROJECT = Path(__file__).parents[2]
PROBLEMS = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", PROBLEMS)
    return folder_of(tmp_path)


def config_of(algorithm: str, settings: dict | None = None, **changes) -> RunConfig:
    changes = {
        "rewards": {"reward_model": 1.0, "edit_similarity": 1.0},
        "steps": 4,
        "prompts_per_step": 4,
        "group_size": 2,
        "minibatches": 2,
        "optimizer": OptimizerConfig(learning_rate=1e-2, schedule="linear"),
        **changes,
    }
    return RunConfig(algorithm, 0, settings or {}, max_response_tokens=8, device="cpu", **changes)


def made(folder, config: RunConfig) -> Run:
    torch.manual_seed(0)
    return make_run(config, Checkpoints(str(folder / "policy"), str(folder / "reward_model")), PROBLEMS, CPU)


def figures(metrics: dict) -> dict:
    return {k: float(v) for k, v in metrics.items() if not k.endswith(("seconds", "per_second"))}


INTERRUPTED = [
    ("ppo_adaptive_kl", {"kl_coef": 0.1, "kl_horizon": 80, "value_warmup": 1}, {"reward_scale_running": True}),
    ("dapo", {"max_rounds": 2}, {"dtype": "bfloat16"}),
    ("remax", {}, {"minibatches": 1, "lora": LoraSettings(rank=2)}),
    ("gspo", {}, {"sync_every": 3}),
]


@pytest.mark.parametrize("algorithm, settings, changes", INTERRUPTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_run_that_takes_over_the_state_goes_on_as_the_first_would_have(folder, algorithm, settings, changes):
    """Everything but the State is made anew after two steps: so nothing that a step changes is kept elsewhere."""
    config = config_of(algorithm, settings, **changes)
    whole, first, fresh = (made(folder, config) for _ in range(3))
    expected = [figures(whole.step()) for _ in range(4)]
    begun = [figures(first.step()) for _ in range(2)]
    inputs = made(folder, config).inputs
    second = Run(config, first.state, inputs, fresh.engine, Phases(CPU))
    assert str(begun + [figures(second.step()) for _ in range(2)]) == str(expected)
    assert second.finished and whole.finished and not fresh.finished
    weights = [run.state.learner.policy.state_dict() for run in (whole, second)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_each_part_of_the_state_changes_in_a_step_or_is_where_it_matters(folder):
    config = config_of("ppo_adaptive_kl", {"kl_coef": 0.1, "kl_horizon": 80}, reward_scale_running=True)
    run = made(folder, config)
    run.step()
    state = run.state
    assert {f.name for f in fields(state)} == {
        "learner", "generator", "order", "hparams", "reward_scale", "canary", "held", "step", "generated_tokens",
        "generated_responses", "optimizer_steps",
    }  # fmt: skip
    assert (state.step, state.generated_responses, state.optimizer_steps, state.order.drawn) == (1, 8, 2, 4)
    assert state.hparams.kl_coef < 0.1 and state.reward_scale.count == 8 and state.canary.limit == 1e-4
    assert isinstance(state.canary, RatioCanary) and state.generated_tokens == run.experience.generated_tokens


def test_a_tool_sees_every_phase_of_a_step(folder):
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def around(name: str):
        seen.append(name)
        yield

    run = made(folder, config_of("ppo"))
    run.phases.around = around
    run.step()
    assert seen == ["generate", "reward", "logprobs", "update"]


# where the models come from


def other(folder, tokenizer=TOKENIZER) -> str:
    save_policy(tiny_model(tokenizer, 9, torch.float32), tokenizer, folder / "other")
    return str(folder / "other")


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_the_reference_may_be_another_checkpoint(folder, lora):
    config = config_of("grpo", {"kl_coef": 0.1}, lora=lora, rewards={"reward_model": 1.0})
    paths = Checkpoints(str(folder / "policy"), str(folder / "reward_model"), reference=other(folder))
    learner, models = make_learner(config, paths, CPU)
    expected = load_policy(folder / "other", CPU).state_dict()
    assert all(torch.equal(learner.reference.state_dict()[name], tensor) for name, tensor in expected.items())
    assert models["reference"][0] is learner.reference and not any(
        p.requires_grad for p in learner.reference.parameters()
    )
    assert models["reward_model"][0].backbone is not None  # its backbone is the policy's, not the reference's


def run_train(folder, config, **paths):
    training.train(config, str(folder / "policy"), str(folder / "train.jsonl"), str(folder / "out"), **paths)
    return json.loads((folder / "out" / "run.json").read_text()), read_jsonl(folder / "out" / "metrics.jsonl")


def test_a_run_compares_with_the_reference_that_it_is_given(folder):
    config = config_of("grpo", {"kl_coef": 0.1}, steps=1, rewards={"correctness": 1.0})
    record, lines = run_train(folder, config, reference_path=other(folder))
    assert lines[0]["kl_to_ref_k3"] > 0.01 and record["kind"] == "rl" and "reference" in record["memory"]
    _, lines = run_train(folder, config, reference_path=str(folder / "policy"))
    assert lines[0]["kl_to_ref_k3"] == pytest.approx(0, abs=1e-6)


def test_a_reference_that_nothing_is_compared_with_is_warned_of(folder, capsys):
    record, _ = run_train(
        folder, config_of("grpo", rewards={"correctness": 1.0}, steps=1), reference_path=other(folder)
    )
    assert "--reference is given, but kl_coef is 0" in record["warnings"][-1]
    assert "--reference is given" in capsys.readouterr().out and "reference" not in record["memory"]


@pytest.mark.parametrize(
    "algorithm, settings, message",
    [
        ("grpo", {}, "--critic is given, but this algorithm has no critic"),
        ("ppo_shared", {}, "--critic is given, but critic shared stands on the policy's backbone"),
        ("ppo", {"critic_init": "fresh"}, "--critic is given, but critic_init fresh says what the critic starts from"),
    ],
)
def test_a_critics_checkpoint_that_no_critic_starts_from_is_refused(folder, algorithm, settings, message):
    with pytest.raises(SettingsError, match=message):
        make_learner(config_of(algorithm, settings), Checkpoints(str(folder / "policy"), critic=other(folder)), CPU)


def test_a_reference_with_other_tokens_is_refused(folder):
    path = other(folder, train_tokenizer(["something else"] * 3, 60))
    config = config_of("grpo", {"kl_coef": 0.1}, rewards={"correctness": 1.0})
    with pytest.raises(SettingsError, match=r"--reference: .*other must have the policy's tokenizer"):
        make_learner(config, Checkpoints(str(folder / "policy"), reference=path), CPU)


# memory


def test_importing_a_models_code_reads_no_weights(folder):
    (folder / "policy" / "model.safetensors").unlink()
    import_model(folder / "policy")
    with pytest.raises(SettingsError, match="cannot be read"):
        import_model(folder / "nothing")


class Measured(Exception):
    pass


STAGES = {
    training: lambda *files: training.train(config_of("grpo", rewards={"correctness": 1.0}), *files),
    sft: lambda *files: sft.train(SupervisedConfig(0), *files),
    expert_iteration: lambda *files: expert_iteration.train(
        ExpertIterationConfig(RejectionConfig(0, prompts=4), SupervisedConfig(0)), *files
    ),
    distillation: lambda policy, prompts, out: distillation.train(
        DistillationConfig(0, prompts_per_step=2), policy, policy, prompts, None, out
    ),
    reward_model: lambda policy, prompts, out: reward_model.train(RewardModelConfig(0), policy, out, out, "", 1),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_memory_is_measured_once_the_code_of_the_models_is_imported(folder, monkeypatch, stage):
    for split in ("train", "held_out"):
        write_jsonl(folder / f"{split}.jsonl", PROBLEMS)
    imported = []

    def measure():
        raise Measured

    monkeypatch.setattr(stage, "import_model", imported.append)
    monkeypatch.setattr(stage, "resident_bytes", measure)
    with pytest.raises(Measured):
        STAGES[stage](str(folder / "policy"), str(folder / "train.jsonl"), str(folder))
    assert str(folder / "policy") in imported


def test_the_reported_peak_includes_the_policy(tmp_path):
    """By the command, in a process of its own: the weights, gradients and moments of 10 million parameters."""
    shape = ModelConfig(hidden_size=512, layers=4, heads=4, intermediate_size=1024)
    save_policy(build_model(shape, TOKENIZER, 0), TOKENIZER, tmp_path / "policy")
    write_jsonl(tmp_path / "train.jsonl", PROBLEMS)
    settings = {"algorithm": "grpo", "seed": 0, "steps": 1, "prompts_per_step": 1, "group_size": 2, "minibatches": 1}
    settings |= {"max_response_tokens": 4, "rewards": {"edit_similarity": 1.0}, "device": "cpu"}
    paths = ["--from", str(tmp_path / "policy"), "--prompts", str(tmp_path / "train.jsonl"), "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "algos.training.train", "--settings", json.dumps(settings), *paths, "--threads", "1"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=True,
        capture_output=True,
    )
    record = json.loads((tmp_path / "run.json").read_text())
    sizes = record["memory"]["policy"]
    states = sizes["weights"] + sizes["gradients"] + sizes["optimizer"]
    assert sizes["weights"] > 3e7 and states < record["peak_memory"]["peak_bytes"]


@pytest.mark.parametrize("change", [{"rewards": {"correctness": 1.0, "overlong": 1.0}}, {"missing_end_penalty": 1.0}])
def test_a_mean_reward_that_may_be_negative_is_no_divisor_without_a_warning(change):
    assert not any("group_mean" in warning for warning in RunConfig("maxrl", 0).warnings())
    (found,) = [warning for warning in RunConfig("maxrl", 0, **change).warnings() if "group_mean" in warning]
    assert "near 0 or below" in found
