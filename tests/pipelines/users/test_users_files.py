"""Files of the user's own: an edit runs again the stage that reads the file."""

import json
import os

import pytest
import torch
import yaml
from project import STUDY, copy_project, planned, snakemake
from tiny import tiny_model, tiny_tokenizer

from evaluation.tasks import TaskSettings
from pipelines.digests import of_task

TARGETS = ("results/mine/models/base/evaluation", "results/mine/stages/pairs/seed0/train.jsonl")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a finished study of a model, GSM8K's files and pairs on disk, which lie in its folder `mine`."""
    project = copy_project(tmp_path_factory.mktemp("users") / "project")
    model, data = project / "mine" / "model", project / "mine" / "data"
    tiny_model(tiny_tokenizer(), dtype=torch.float32).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    data.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(20)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{i}+1?", "chosen": f"#### {i + 1}", "rejected": "?"} for i in range(8)]
    (project / "mine" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (project / "mine" / "text.txt").write_text("Mia has 7 apples.\n")
    config = {
        "study": "mine",
        "seeds": [0],
        "task": {"name": "gsm8k", "settings": {"path": "mine/data"}},
        "models": {"base": "mine/model"},
        "stages": {
            "pairs": {"kind": "preferences", "path": "mine/pairs.jsonl"},
            "tuned": {"kind": "sft", "from": "base", "data": "demonstrations"},
        },
        "sampling": {"max_response_tokens": 4},
        "evaluation": {"samples": 1, "text": "mine/text.txt"},
    }
    (project / STUDY).write_text(yaml.safe_dump(config))
    run = snakemake(project, *TARGETS)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return project


@pytest.mark.parametrize(
    "file, jobs",
    [
        ("pairs.jsonl", {"preferences": 1}),
        ("data/train.jsonl", {"data": 1, "model": 1, "evaluate_model": 1}),  # a built model's tokenizer is of the data
        ("model/config.json", {"model": 1, "evaluate_model": 1}),
        ("text.txt", {"evaluate_model": 1}),
    ],
)
def test_an_edited_file_runs_again_what_reads_it(project, file, jobs):
    path = project / "mine" / file
    before = path.stat()
    text = path.read_text()
    assert planned(project, *TARGETS) == {}
    path.write_text(text + "\n")
    assert planned(project, *TARGETS) == jobs
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_digest_of_own_rows_is_that_of_all_their_files(tmp_path):
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "test", "dev")}
    for file in files.values():
        file.write_text("")
    task = TaskSettings(name="rows", settings={split: str(file) for split, file in files.items()})
    digests = [of_task(task)]
    for file in files.values():
        file.write_text("{}")
        digests.append(of_task(task))
    assert len(set(digests)) == 4
