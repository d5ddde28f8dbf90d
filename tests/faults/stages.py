"""Tiny stages of every kind, run by their own commands in processes that can be killed at any of their moments.

A moment is an access to a file of the stage: between two of them a process leaves the same behind, whenever it is
killed. So killing at each of the moments, one after the other, would be killing at all times.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from algos.training.models.checkpoints import save_policy
from algos.training.stage.record import main_guard
from algos.training.stage.records import same_again
from evaluation.tasks.files import read_jsonl, write_jsonl
from tests.tiny import tiny_model, tiny_tokenizer

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.utime", "shutil.rmtree")
EVERY_STEP = {"steps": 1, "minutes": None}
RL = {
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 2,
    "minibatches": 2,
    "max_response_tokens": 8,
    "rewards": {"correctness": 1.0, "edit_similarity": 1.0},
    "optimizer": {"learning_rate": 1e-2, "schedule": "linear"},
    "sample_every": 2,
}
LEARNED = {"rewards": {"reward_model": 1.0, "edit_similarity": 1.0}, "reward_scale_running": True}
SFT = {"steps": 6, "batch_size": 4, "log_every": 2}
SAMPLING = {"prompts": 16, "responses": 64, "max_response_tokens": 8}  # 8 prompts at once
MODULES = {
    "rl": "algos.training.train",
    "sft": "algos.training.supervised.sft",
    "reward_model": "algos.training.rewards.reward_model",
    "preferences": "algos.training.rewards.preferences",
    "rejection_sampling": "algos.training.supervised.rejection_sampling",
    "expert_iteration": "algos.training.supervised.expert_iteration",
    "distillation": "algos.training.supervised.distillation",
}
CASES: dict[str, tuple[str, dict]] = {  # name -> kind, settings
    "ppo": ("rl", {**RL, **LEARNED, "algorithm": "ppo_adaptive_kl", "settings": {"kl_coef": 0.1, "value_warmup": 1}}),
    "ppo shared": ("rl", {**RL, "algorithm": "ppo_shared"}),
    "grpo": ("rl", {**RL, "algorithm": "grpo"}),
    "grpo lora": ("rl", {**RL, "algorithm": "grpo", "settings": {"kl_coef": 0.1}, "lora": {"rank": 2}}),
    "grpo adafactor": ("rl", {**RL, "algorithm": "grpo", "optimizer": {"name": "adafactor", "learning_rate": 1e-2}}),
    "gspo bfloat16": ("rl", {**RL, "algorithm": "gspo", "dtype": "bfloat16"}),
    "dapo": ("rl", {**RL, "algorithm": "dapo", "settings": {"max_rounds": 2}}),
    "reinforce": ("rl", {**RL, **LEARNED, "algorithm": "reinforce"}),
    "remax": ("rl", {**RL, "algorithm": "remax"}),
    "trpo": ("rl", {**RL, "algorithm": "trpo", "minibatches": 1}),
    "sft": ("sft", SFT),
    "sft bfloat16 adafactor": ("sft", {**SFT, "dtype": "bfloat16", "optimizer": {"name": "adafactor"}}),
    "reward_model": ("reward_model", {"epochs": 2, "prompts_per_batch": 2}),
    "preferences": ("preferences", SAMPLING),
    "rejection_sampling": ("rejection_sampling", SAMPLING),
    "expert_iteration": (
        "expert_iteration",
        {"rounds": 2, "restart": False, "sampling": SAMPLING, "training": {**SFT, "steps": 2}},
    ),
    "expert_iteration restart": (
        "expert_iteration",
        {"rounds": 2, "sampling": {**SAMPLING, "prompts": 8}, "training": {**SFT, "steps": 2, "dtype": "bfloat16"}},
    ),
    "distillation": (
        "distillation",
        {"steps": 4, "prompts_per_step": 2, "responses": 2, "max_response_tokens": 8, "on_policy_share": 0.5},
    ),
}


def make_inputs(folder: Path) -> None:
    """Two policies that often end their responses, a reward model, problems, worked solutions and pairs."""
    from algos.training.models.checkpoints import ScalarModel

    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("policy", "teacher")):
        policy = tiny_model(tokenizer, seed, torch.float32)
        with torch.no_grad():
            policy.get_input_embeddings().weight[tokenizer.eos_token_id] *= 4
        save_policy(policy, tokenizer, folder / name)
    ScalarModel(policy.base_model, "linear", 0.5, torch.Generator().manual_seed(0)).save(folder / "reward_model")
    grader = {"extract": "last_number", "compare": "number", "accepted": ["1", "2", "3", "4", "5"]}  # or not
    problems = [
        {"id": f"train/{i}", "question": f"{i}+1", "prompt": f"{i}+1=", "answer": "3", **grader} for i in range(16)
    ]
    write_jsonl(folder / "train.jsonl", problems)
    pairs = [{"id": str(i), "prompt": f"{i}+1=", "responses": [f"{i}", f"{i + 1}=1", "#"]} for i in range(8)]
    (folder / "pairs").mkdir()
    for split in ("train", "held_out"):
        write_jsonl(folder / "pairs" / f"{split}.jsonl", [{**row, "pairs": [[0, 1], [2, 1]]} for row in pairs])


def words(kind: str, inputs: Path) -> list[str]:
    """The options of a kind that name its inputs."""
    start, prompts = ["--from", str(inputs / "policy")], ["--prompts", str(inputs / "train.jsonl")]
    more = {
        "rl": [*prompts, "--reward-model", str(inputs / "reward_model")],
        "sft": ["--data", str(inputs / "train.jsonl")],
        "reward_model": ["--data", str(inputs / "pairs")],
        "distillation": [*prompts, "--teacher", str(inputs / "teacher"), "--data", str(inputs / "train.jsonl")],
    }
    return [*start, *more.get(kind, prompts)]


def settings_of(case: str) -> dict:
    kind, settings = CASES[case]
    placed = {"seed": 0, "device": "cpu"}
    if kind == "expert_iteration":
        training = {"dtype": "float32", **settings["training"], **placed}
        sampling = {**settings["sampling"], **placed, "dtype": training["dtype"]}
        return {**settings, "training": training, "sampling": sampling}
    return {**settings, **placed}


def run(case: str, inputs: Path, out: Path, kill_at: int | None = None, saving: dict | None = None) -> tuple[int, int]:
    """Run a stage in a process of its own, killed at a moment: its exit status, and how many moments it had."""
    fork = multiprocessing.get_context("fork")
    moments = fork.Value("i", 0)
    arguments = (case, inputs, out, kill_at, EVERY_STEP if saving is None else saving, moments)
    process = fork.Process(target=_stage, args=arguments)
    process.start()
    process.join()
    return process.exitcode or 0, moments.value


def _stage(case: str, inputs: Path, out: Path, kill_at: int | None, saving: dict, moments) -> None:
    kind, _ = CASES[case]
    out.mkdir(parents=True, exist_ok=True)
    options = ["--settings", json.dumps(settings_of(case)), "--saving", json.dumps(saving), "--threads", "1"]
    sys.argv = ["stage", *options, "--out", str(out), *words(kind, inputs)]
    sys.stdout = sys.stderr = (out.parent / f"{out.name}.log").open("a", buffering=1)

    def count(event: str, given: tuple) -> None:
        if event in EVENTS and str(given[0]).startswith(f"{out}{os.sep}"):
            moments.value += 1
            if moments.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    main_guard(importlib.import_module(MODULES[kind]).main)


def warm_up() -> None:
    """Import the stages' code once, for all processes that are forked from this one."""
    for module in (*MODULES.values(), "peft", "transformers.optimization", "transformers.models.qwen2.modeling_qwen2"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def result(out: Path) -> dict:
    """All that a stage leaves behind, but for what is measured: every file's bytes, and the figures."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in ("run.json", "metrics.jsonl")]
    facts = json.loads((out / "run.json").read_text())
    kept = ("status", "settings", "generated_tokens", "generated_responses", "optimizer_steps", "trained_tokens")
    return {
        **{str(path.relative_to(out)): path.read_bytes() for path in files},
        "metrics": [same_again(line) for line in read_jsonl(out / "metrics.jsonl")],
        "facts": {key: facts.get(key) for key in (*kept, "teacher_tokens", "held_out")},
    }


def differences(one: dict, other: dict) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if repr(one.get(key)) != repr(other.get(key)))


Killed = Callable[[int], int]  # number of moments -> the moment to be killed at


def finish(case: str, inputs: Path, out: Path, kill: Killed, moments: int, kills: int = 1) -> int:
    """Run a stage, killed `kills` times, until it is finished; how often it was really killed."""
    killed = 0
    for _ in range(kills):
        status, _ = run(case, inputs, out, kill(moments))
        killed += status == -signal.SIGKILL
        if status == 0:
            return killed
    status, _ = run(case, inputs, out)
    if status:
        raise RuntimeError(f"{case}: status {status}\n{(out.parent / f'{out.name}.log').read_text()}")
    return killed
