"""Graded responses of a checkpoint: their order, their number, their budget."""

import json
import sys

import pytest
import torch
from tiny import TEXTS, tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import save_policy
from algos.training.sampling.respond import respond
from algos.training.supervised import rejection_sampling
from evaluation.config import EvaluationConfig
from evaluation.tasks.files import write_jsonl

CONFIG = EvaluationConfig(max_response_tokens=4, rows_at_once=4, device="cpu")


def test_a_budget_of_tokens_ends_the_sampling_after_the_batch_that_reaches_it(tmp_path):
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer, dtype=torch.float32), tokenizer, tmp_path)
    problems = [{"id": str(i), "prompt": TEXTS[0], "question": "?", "answer": "#### 1"} for i in range(8)]
    everything = respond(str(tmp_path), problems, 2, CONFIG)
    assert [row["problem"] for row in everything] == [str(i) for i in range(8) for _ in range(2)]
    part = respond(str(tmp_path), problems, 2, CONFIG, budget_tokens=sum(row["tokens"] for row in everything[:4]) + 1)
    assert part == everything[:8] and json.dumps(part)


@pytest.mark.parametrize("budget, left", [(12, False), (13, True)])
def test_rejection_sampling_says_so_if_its_prompts_end_before_its_budget(monkeypatch, tmp_path, capsys, budget, left):
    rows = [{"id": f"train/{i}", "question": "q", "prompt": "1+1=", "answer": "#### 2"} for i in range(2)]
    said = {"response": "#### 2", "correct": True, "truncated": False, "tokens": 3}
    write_jsonl(tmp_path / "train.jsonl", rows)
    save_policy(tiny_model(tiny_tokenizer(), dtype=torch.float32), tiny_tokenizer(), tmp_path / "policy")
    monkeypatch.setattr(rejection_sampling, "respond", lambda *_: [said] * 4)
    settings = json.dumps({"seed": 0, "prompts": 2, "responses": 2, "budget_tokens": budget})
    words = ["--settings", settings, "--from", str(tmp_path / "policy"), "--prompts", str(tmp_path / "train.jsonl")]
    monkeypatch.setattr(sys, "argv", ["", *words, "--out", str(tmp_path / "out"), "--threads", "1"])
    rejection_sampling.main()
    warning = "warning: 2 prompts generated 12 of budget_tokens = 13 tokens; raise prompts\n"
    assert (warning in capsys.readouterr().out) == left
