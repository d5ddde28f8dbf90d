"""A stage forked from the warm process does, writes and ends as one in a process of its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import save_policy
from evaluation.tasks.files import write_jsonl
from pipelines import warm

PROJECT = Path(__file__).parents[2]
STARTER = "from pipelines import warm; warm.start(); import os; print(os.environ[warm.SOCKET], flush=True); input()"
SETTINGS = {"algorithm": "grpo", "seed": 0, "steps": 2, "prompts_per_step": 2, "group_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def study():
    """A process that stands for Snakemake, with a warm process beside it; its socket."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer).float(), tokenizer, folder / "policy")
    problems = [{"id": str(i), "question": f"{i}+1", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
    write_jsonl(folder / "prompts.jsonl", problems)
    return ["--policy", str(folder / "policy"), "--prompts", str(folder / "prompts.jsonl"), "--threads", "1"]


def command(socket, *words: str, **options) -> subprocess.Popen:
    environment = {**os.environ, warm.SOCKET: str(socket)}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", warm.__file__, "-m", *words], cwd=PROJECT, env=environment, text=True, **options
    )


def train(socket, inputs, out, **changes) -> subprocess.Popen:
    settings = json.dumps({**SETTINGS, **changes})
    words = ["algos.training.train", "--settings", settings, *inputs, "--out", str(out)]
    return command(socket, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_warm_and_cold_write_the_same(study, inputs, tmp_path):
    records, weights, metrics = [], [], []
    for name, socket in (("warm", study), ("cold", "/nowhere")):
        run = train(socket, inputs, tmp_path / name)
        out, error = run.communicate(timeout=120)
        assert run.returncode == 0 and "2/2" in out, error
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
        weights.append(hashlib.sha256((tmp_path / name / "checkpoint" / "model.safetensors").read_bytes()).hexdigest())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        metrics.append([{k: v for k, v in line.items() if "second" not in k and k != "time"} for line in lines])
    assert weights[0] == weights[1] and metrics[0] == metrics[1]
    assert sorted(p.relative_to(tmp_path / "warm") for p in (tmp_path / "warm").rglob("*")) == sorted(
        p.relative_to(tmp_path / "cold") for p in (tmp_path / "cold").rglob("*")
    )
    hot, cold = records
    assert hot.keys() == cold.keys() and hot["settings"] == cold["settings"]
    assert hot["command"][:-3] == cold["command"][:-3] and hot["command"][1:3] == ["-m", "algos.training.train"]
    assert hot["start_up_seconds"] < 0.5 * cold["start_up_seconds"]  # the warm one really was


def test_bad_input_ends_with_one_line_and_status_2(study, inputs, tmp_path):
    run = train(study, inputs, tmp_path / "out", prompts_per_step=100)
    out, error = run.communicate(timeout=120)
    assert run.returncode == 2 and "Traceback" not in out + error
    assert error.startswith("error: prompts_per_step is 100") and out == error


def test_a_crash_is_one_and_streams_go_where_the_job_says(study, inputs, tmp_path):
    (tmp_path / "file").touch()
    words = ["algos.training.train", "--settings", json.dumps(SETTINGS), *inputs, "--out", str(tmp_path / "file")]
    with (tmp_path / "out.log").open("w") as out, (tmp_path / "error.log").open("w") as error:
        assert command(study, *words, stdout=out, stderr=error).wait(timeout=60) == 1
    said = (tmp_path / "error.log").read_text()
    assert "Traceback" in said and "FileExistsError" in said and not (tmp_path / "out.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_record_aside(study, inputs, tmp_path, number):
    run = train(study, inputs, tmp_path, steps=100_000)
    wait_for((tmp_path / "metrics.jsonl").exists)
    run.send_signal(number)
    assert run.wait(timeout=30) == 130
    assert (tmp_path / "interrupted-run.json").exists() and not (tmp_path / "run.json").exists()
    run.communicate()


def test_a_stage_ends_with_its_job(study, inputs, tmp_path):
    run = train(study, inputs, tmp_path, steps=100_000)
    wait_for((tmp_path / "metrics.jsonl").exists)
    run.kill()
    run.communicate()
    wait_for((tmp_path / "interrupted-run.json").exists)


def test_without_a_warm_process_or_for_other_modules_it_is_plain_python(study):
    for socket, module in (("", "algos.training.train"), ("/nowhere", "algos.training.train"), (study, "json.tool")):
        run = command(socket, module, "--help", stdout=subprocess.PIPE)
        assert run.communicate(timeout=60)[0].startswith("usage: ") and run.returncode == 0


def test_an_environment_that_imports_look_at_gets_a_process_of_its_own(study, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    trace = command(study, "evaluation.evaluate", "--help", stdout=subprocess.PIPE)
    assert trace.communicate(timeout=60)[0].startswith("usage: ")


def test_python_and_python3_of_one_environment_are_one_interpreter(tmp_path):
    (tmp_path / "python3").symlink_to(sys.executable)
    (tmp_path / "python").symlink_to("python3")
    assert warm.interpreter(f"{tmp_path}/python") == warm.interpreter(f"{tmp_path}/python3")
    assert warm.interpreter(f"{tmp_path}/python") != warm.interpreter(sys.executable)  # another environment


def test_the_warm_process_ends_with_its_parent():
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    socket = Path(process.stdout.readline().strip())
    assert socket.is_socket() and socket.parent.stat().st_mode & 0o777 == 0o700
    process.kill()
    process.communicate()
    wait_for(lambda: not socket.parent.exists())


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("WARM", "0")
    monkeypatch.delenv(warm.SOCKET, raising=False)
    warm.start()
    assert warm.SOCKET not in os.environ


def wait_for(true, seconds: float = 30.0) -> None:
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline
        time.sleep(0.05)
