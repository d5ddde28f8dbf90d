"""A rollout batch, models on disk and a short training loop, for the tests of runs."""

import copy
import json

import torch
from tiny import random_rollouts, tiny_model, tiny_tokenizer

from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel, save_policy
from algos.training.train import train
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
ROLLOUTS = random_rollouts(TOKENIZER, PROMPTS, 4, [4, 7, 1, 5, 6, 3, 7, 2])
REWARDS = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])


def batch_of():
    return make_batch(ROLLOUTS, REWARDS, TOKENIZER.pad_token_id)


def run_config(algorithm: str = "ppo", settings: dict | None = None, **changes) -> RunConfig:
    changes = {"prompts_per_step": 2, "group_size": 4, "minibatches": 1, "micro_batch_size": 3, **changes}
    return RunConfig(algorithm, 0, settings or {}, device="cpu", **changes)


def folder_of(tmp_path):
    """A policy, and a reward model on its backbone, on disk."""
    policy = tiny_model(TOKENIZER, 7, torch.float32)
    save_policy(policy, TOKENIZER, tmp_path / "policy")
    head = ScalarModel(copy.deepcopy(policy.base_model), "linear", 0.5, torch.Generator().manual_seed(0))
    head.save(tmp_path / "reward_model")
    return tmp_path


def loop_in(tmp_path):
    """Runs the loop on a tiny policy and eight problems; returns its record and the lines of its metrics."""
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "policy")
    rows = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(8)]
    write_jsonl(tmp_path / "train.jsonl", rows)

    def run(algorithm: str, settings: dict | None = None, **changes):
        changes = {"steps": 3, "prompts_per_step": 4, "group_size": 2, "minibatches": 2, **changes}
        config = RunConfig(
            algorithm,
            0,
            settings or {},
            max_response_tokens=8,
            device="cpu",
            rewards={"correctness": 1.0, "edit_similarity": 1.0},
            **changes,
        )
        train(config, str(tmp_path / "policy"), str(tmp_path / "train.jsonl"), str(tmp_path / "out"))
        return json.loads((tmp_path / "out" / "run.json").read_text()), read_jsonl(tmp_path / "out" / "metrics.jsonl")

    return run
