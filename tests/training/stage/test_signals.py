"""Signals set the record aside. Ctrl-C ends a stage at once, with status 130; SIGTERM after its step, saved, with 75.

A shell without job control starts its background jobs with SIGINT ignored, and the tests may run in such a job. A stage
must not undo that: Ctrl-C in the terminal would then end the stages of a study that runs in the background, while
Snakemake goes on. So each test says whether its stage starts with SIGINT ignored.
"""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import save_policy
from evaluation.tasks.files import write_jsonl

PROJECT = Path(__file__).parents[3]
SETTINGS = {"seed": 0, "steps": 20_000, "log_every": 1, "batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer).float(), tokenizer, folder / "model")
    rows = [{"id": str(i), "question": f"{i}+1", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
    write_jsonl(folder / "rows.jsonl", rows)
    return ["--from", str(folder / "model"), "--data", str(folder / "rows.jsonl"), "--threads", "1"]


@pytest.fixture
def start(inputs, tmp_path):
    """Starts a long stage, with SIGINT as a shell's foreground (SIG_DFL) or background (SIG_IGN) has it."""
    started = []

    def start(interrupt) -> subprocess.Popen:
        words = ["-m", "algos.training.supervised.sft", "--settings", json.dumps(SETTINGS), "--out", str(tmp_path)]
        stage = subprocess.Popen(
            [sys.executable, *words, *inputs],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(signal.signal, signal.SIGINT, interrupt),
        )
        started.append(stage)
        wait_for_lines(tmp_path / "metrics.jsonl")
        return stage

    yield start
    for stage in started:
        stage.kill()
        stage.wait()


def wait_for_lines(path: Path, more_than: int = 0, seconds: float = 300.0) -> int:
    """The size of a file of metrics, once it is above `more_than` bytes."""
    deadline = time.time() + seconds
    while not path.exists() or path.stat().st_size <= more_than:
        assert time.time() < deadline, "the stage does not get on"
        time.sleep(0.05)
    return path.stat().st_size


def set_aside(folder: Path) -> bool:
    return (folder / "interrupted-run.json").exists() and not (folder / "run.json").exists()


def test_ctrl_c_sets_the_record_aside(start, tmp_path):
    stage = start(signal.SIG_DFL)
    stage.send_signal(signal.SIGINT)
    assert stage.wait(timeout=120) == 130 and set_aside(tmp_path) and not (tmp_path / "resume").exists()


def test_after_sigterm_a_stage_saves_and_the_same_command_goes_on(start, tmp_path):
    stage = start(signal.SIG_DFL)
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(timeout=120) == 75 and set_aside(tmp_path)
    first = (tmp_path / "interrupted-metrics.jsonl").read_text()
    assert json.loads((tmp_path / "interrupted-run.json").read_text())["status"] == "interrupted"
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["000000"]
    stage = start(signal.SIG_DFL)
    wait_for_lines(tmp_path / "metrics.jsonl", len(first) + 1)
    for name in ("run.json", "metrics.jsonl", "samples.jsonl"):  # a Snakemake that got the signal, too, deletes them
        (tmp_path / name).unlink()
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(timeout=120) == 75 and len([*(tmp_path / "resume").glob("0*")]) == 2
    lines = (tmp_path / "interrupted-metrics.jsonl").read_text()
    assert lines.startswith(first) and len(lines) > len(first)
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [*range(lines.count("\n"))]
    assert len(json.loads((tmp_path / "interrupted-run.json").read_text())["resumed"]) == 1


def test_a_stage_in_the_background_goes_on_after_ctrl_c_and_ends_by_sigterm(start, tmp_path):
    stage = start(signal.SIG_IGN)
    stage.send_signal(signal.SIGINT)
    wait_for_lines(tmp_path / "metrics.jsonl", wait_for_lines(tmp_path / "metrics.jsonl"))
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(timeout=120) == 75 and set_aside(tmp_path)
