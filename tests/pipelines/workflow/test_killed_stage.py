"""Kills under Snakemake: of a stage, of Snakemake alone, of both. The same command goes on, without a flag."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from project import STUDY, copy_project, environment, record, snakemake

TARGET = "results/smoke/stages/cold_start/seed0/run.json"
LOCKS = Path(".snakemake", "locks")


@pytest.fixture
def tree(tmp_path):
    """The project with a study of one stage, which saves its state every other step."""
    tree = copy_project(tmp_path / "project")
    config = yaml.safe_load((tree / STUDY).read_text())
    config["stages"] = {"cold_start": {**config["stages"]["cold_start"], "steps": 60, "batch_size": 8, "threads": 1}}
    config |= {"saving": {"steps": 2, "minutes": None}, "models": {"base": config["models"]["base"]}}
    (tree / STUDY).write_text(yaml.safe_dump(config))
    return tree


@pytest.fixture
def start(tree):
    """Starts Snakemake, and gives it back when a new state of the stage lies on the disk."""
    command, started = [sys.executable, "-m", "snakemake", "--cores", "2", TARGET, "--configfile", STUDY], []

    def start() -> subprocess.Popen:
        with (tree / "log").open("w") as file:
            streams = {"stdout": file, "stderr": file, "start_new_session": True}
            started.append(subprocess.Popen(command, cwd=tree, env=environment(tree), **streams))
        new_state(tree, started[-1])
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def new_state(tree: Path, process: subprocess.Popen) -> None:
    """Wait for one while Snakemake runs."""
    deadline, before = time.time() + 600, saved(tree)
    while saved(tree) <= before:
        assert process.poll() is None and time.time() < deadline, (tree / "log").read_text()[-3000:]
        time.sleep(0.05)


def saved(tree: Path) -> float:
    """When the last state was saved; 0 without one."""
    return max((path.stat().st_mtime for path in record(tree, "cold_start").glob("resume/0*/state.sha256")), default=0)


def stage_of(process: subprocess.Popen) -> psutil.Process:
    """The Python process of the stage that runs."""
    below = psutil.Process(process.pid).children(recursive=True)
    return next(p for p in below if p.cmdline()[1:3] == ["-m", "algos.training.supervised.sft"])


def finish(tree: Path) -> dict:
    """The same command once more, to the end: what its stage records."""
    again, folder = snakemake(tree, TARGET), record(tree, "cold_start")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    facts, lines = json.loads((folder / "run.json").read_text()), (folder / "metrics.jsonl").read_text().splitlines()
    assert facts["status"] == "finished" and facts["resumed"][-1]["lines"] >= 1
    assert [json.loads(line)["step"] for line in lines] == [*range(0, 60, 10), 59]
    assert not (folder / "resume").exists() and not (tree / LOCKS).exists()
    return facts


def test_a_stage_that_is_killed_goes_on_when_snakemake_makes_it_again(tree, start):
    first, folder = start(), record(tree, "cold_start")
    stage_of(first).kill()
    assert first.wait(timeout=300) == 1
    assert not (folder / "metrics.jsonl").exists() and (folder / "resume").is_dir()
    assert len(finish(tree)["resumed"]) == 1


def test_all_are_asked_to_end(tree, start):
    """As in a job that is preempted: the shell and Snakemake wait until the stage has saved."""
    first, folder = start(), record(tree, "cold_start")
    stage = stage_of(first)
    shell = stage.ppid()
    stage.suspend()  # a long step
    os.killpg(first.pid, signal.SIGTERM)
    time.sleep(2)
    assert stage.ppid() == shell and first.poll() is None
    stage.resume()
    assert first.wait(timeout=300) == 1
    assert json.loads((folder / "interrupted-run.json").read_text())["status"] == "interrupted"
    last = max((folder / "resume").glob("0*"))
    assert (folder / "interrupted-metrics.jsonl").read_text() == (last / "metrics.jsonl").read_text()
    assert len(finish(tree)["resumed"]) == 1


def test_snakemake_is_killed_without_and_with_its_stage(tree, start):
    first = start()
    stage = stage_of(first)
    stage.suspend()  # it must not end meanwhile
    other = snakemake(tree, TARGET)  # in another terminal
    assert other.returncode == 1 and "makes results/smoke now; --unlock would be of no use" in other.stderr
    first.kill()
    first.wait()
    stage.resume()
    assert stage.is_running() and [*(tree / LOCKS).glob("*.lock")]  # Snakemake's own, which would stop the next run
    second = start()  # its stage waits for the first one to end, which follows its Snakemake, and goes on from there
    stage.wait(timeout=300)
    new_state(tree, second)
    os.killpg(second.pid, signal.SIGKILL)  # as a reset of the machine
    second.wait()
    assert len(finish(tree)["resumed"]) == 2
