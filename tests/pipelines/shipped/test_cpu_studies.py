"""The shipped studies that run on a laptop, at toy size. The smoke study runs as it is, in test_workflow.py."""

import json

import pytest
import torch
from studies import FILES
from tiny import tiny_model, tiny_tokenizer
from toy import FOR_GPUS, TASK, run_toy

from pipelines.study import load

PATHS = [path for path in FILES if path.stem not in (*FOR_GPUS, "smoke")]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The folder of a tiny model with a chat template, and GSM8K's files beside it."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tiny_model(tokenizer, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for split, count in (("train", 30), ("test", 6)):
        rows = [{"question": f"{split} {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_study_runs_at_toy_size(path, tmp_path, chat_model):
    gsm8k = load(path).settings.task.name == "gsm8k"
    run_toy(path, tmp_path, chat_model, {"name": "gsm8k", "path": str(chat_model), "dev": 4} if gsm8k else TASK)
