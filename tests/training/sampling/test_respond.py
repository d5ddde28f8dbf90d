"""Graded responses of a checkpoint: their order, their number, their budget."""

import json
from types import SimpleNamespace

import torch
from tiny import TEXTS, tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import save_policy
from algos.training.sampling.respond import respond

CONFIG = SimpleNamespace(seed=0, temperature=1.0, max_response_tokens=4, rows_at_once=4, device="cpu", dtype="float32")


def test_a_budget_of_tokens_ends_the_sampling_after_the_batch_that_reaches_it(tmp_path):
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer, dtype=torch.float32), tokenizer, tmp_path)
    problems = [{"id": str(i), "prompt": TEXTS[0], "question": "?", "answer": "#### 1"} for i in range(8)]
    everything = respond(str(tmp_path), problems, 2, CONFIG)
    assert [row["problem"] for row in everything] == [str(i) for i in range(8) for _ in range(2)]
    part = respond(str(tmp_path), problems, 2, CONFIG, budget_tokens=sum(row["tokens"] for row in everything[:4]) + 1)
    assert part == everything[:8] and json.dumps(part)
