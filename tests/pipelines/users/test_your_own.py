"""docs/your-own.md, word for word, with a user's tiny model and rows."""

import re
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from project import PROJECT, copy_project, environment
from studies import PIPELINES
from tiny import tiny_model

from algos.training.models.checkpoints import save_policy
from algos.training.models.tokens import train_tokenizer
from evaluation.tasks.files import write_jsonl

PAGE = (PIPELINES.parent / "docs" / "your-own.md").read_text(encoding="utf-8")


def block(language: str, holds: str) -> str:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.S | re.M)
    (found,) = (text for kind, text in blocks if kind == language and holds in text)
    return found


@pytest.fixture
def project(tmp_path):
    tree = copy_project(tmp_path / "suite")
    shutil.copytree(PROJECT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tree / "my"
    folder.mkdir()
    rows = [{"problem": f"What is {i} + {i}?", "solution": rf"{i}+{i}=\boxed{{{2 * i}}}"} for i in range(24)]
    write_jsonl(folder / "train.jsonl", rows[:18])
    pd.DataFrame(rows[18:]).to_parquet(folder / "test.parquet")
    texts = [row[field] for row in rows for field in ("problem", "solution")]
    tokenizer = train_tokenizer([*texts, "user: assistant:"], 160)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    save_policy(tiny_model(tokenizer, dtype=torch.float32), tokenizer, folder / "model")
    (folder / "rewards.py").write_text(block("python", "def brevity"))
    (folder / "drgrpo_v2.py").write_text(block("python", "DR_GRPO"))
    (folder / "study.yaml").write_text(block("yaml", "study: mine"))
    return tree


def test_the_page_works_word_for_word(project):
    commands = [line.partition("#")[0].split() for line in block("", "python -m algos check").splitlines()]
    assert [command[0] for command in commands] == ["python", "python", "snakemake"]
    for command in commands:
        run = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    report = (project / "results" / "mine" / "report" / "report.html").read_text()
    assert "my/drgrpo_v2.py" in report and "brevity" in report
