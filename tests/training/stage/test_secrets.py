"""No secret of the environment is in a record, a log, MLflow or a message."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from lean import TOKENIZER
from tiny import tiny_model

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import save_policy
from algos.training.stage import masking, mirror
from algos.training.stage.masking import masked
from algos.training.stage.record import main_guard
from evaluation.tasks.files import write_jsonl
from pipelines.study import Study
from tests.faults.bad.commands import call

CANARY = "canary-5e1f0c7a"
NAMES = (
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "JUDGE_KEY",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
)
REWARD = """
import os

def judge(prompts, responses, answers, rows):
    key = os.environ["JUDGE_KEY"]
    if {fails}:
        raise ConnectionError(f"no answer from https://me:{key}@judge.example/v1?api_key={key}, header Bearer {key}")
    return [1.0] * len(rows)
"""


@pytest.fixture
def secrets(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)


def hits(folder: Path) -> list[Path]:
    """The files that hold the canary; MLflow's database is one of them."""
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_of_a_run_or_of_mlflow_holds_a_secret(secrets, tmp_path, capsys, fails):
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "policy")
    rows = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "judge.py").write_text(REWARD.replace("{fails}", str(fails)))
    results = tmp_path / "results"
    settings = {"algorithm": "grpo", "seed": 0, "steps": 2, "prompts_per_step": 2, "group_size": 2, "minibatches": 1}
    settings |= {"max_response_tokens": 4, "device": "cpu", "rewards": {f"{tmp_path / 'judge.py'}:judge": 1.0}}
    out = results / "stages" / "one" / "seed0"
    paths = ["--from", str(tmp_path / "policy"), "--prompts", str(tmp_path / "train.jsonl"), "--out", str(out)]
    said = call("algos.training.train", "--settings", json.dumps(settings), *paths, "--name", CANARY)
    assert said.status == (3 if fails else 0) and said.crash is None and CANARY not in said.err
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = mirror.mirror_once(results, uri, "x")
    assert done["records"] == 1 and done["errors"] == []
    assert hits(tmp_path) == [] and CANARY not in capsys.readouterr().out
    facts = json.loads((out / "run.json").read_text())
    assert "***" in json.dumps(facts["command"]) and ("***" in facts["failure"]["reason"] if fails else True)


def test_the_search_would_find_one(tmp_path):
    (tmp_path / "x").write_bytes(b"\x00" + CANARY.encode())
    assert hits(tmp_path) == [tmp_path / "x"]


def test_a_store_that_is_away_is_named_without_its_password(secrets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    summary = tmp_path / "summary.json"
    words = ["--results", str(tmp_path / "results"), "--uri", f"http://me:{CANARY}@127.0.0.1:9", "--experiment", "x"]
    said = call("algos.training.stage.mirror", *words, "--summary", str(summary))
    assert "not mirrored into MLflow" in said.err and CANARY not in said.err + capsys.readouterr().out
    assert json.loads(summary.read_text())["uri"] == "http://***@127.0.0.1:9" and hits(tmp_path) == []


def test_a_crash_is_printed_without_secrets(secrets, guarded, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def main():
        raise OSError(f"no such place: {CANARY}")

    with pytest.raises(OSError):
        main_guard(main)
    sys.excepthook(*sys_exc(main))
    assert "OSError: no such place: ***" in sys.stderr.getvalue() and CANARY not in sys.stderr.getvalue()


def sys_exc(main) -> tuple:
    try:
        main()
    except OSError:
        return sys.exc_info()
    raise AssertionError


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"token {CANARY}.", "token ***."),
        ("http://me:pass@host/x", "http://***@host/x"),
        ("https://host/v1?key=abc&n=1", "https://host/v1?key=***&n=1"),
        ("http://127.0.0.1:5000 and a@b.c", "http://127.0.0.1:5000 and a@b.c"),
        ("a key, a token and a secret", "a key, a token and a secret"),
    ],
)
def test_what_is_masked_and_what_is_not(secrets, text, shown):
    assert masked(text) == shown


def test_a_port_before_an_address_of_mail_is_no_password():
    """A record stays JSON, however closely it is written."""
    facts = {"server": "http://host:80", "mail": "me@home"}
    assert masked(json.dumps(facts, separators=(",", ":"))) == json.dumps(facts, separators=(",", ":"))
    assert masked(json.dumps({"uri": "http://me:word@host"})) == '{"uri": "http://***@host"}'


def test_short_values_are_no_secrets(monkeypatch):  # they may be a part of any word
    monkeypatch.setenv("SOME_KEY", "on")
    assert masked("one") == "one" and masking.SHORTEST == 8


@pytest.mark.parametrize("uri", ["http://me:pass@host:5000", "postgresql://me:pass@host/mlflow"])
def test_a_study_with_a_password_in_it_is_refused(uri):
    config = {
        "study": "x",
        "seeds": [0],
        "task": {"name": "word_problems", "train": 4, "dev": 4, "test": 4, "demonstrations": 4},
        "models": {"base": {}},
        "stages": {"one": {"kind": "sft", "from": "base", "data": "demonstrations"}},
        "mlflow": {"tracking_uri": uri},
    }
    with pytest.raises(SettingsError, match=r"mlflow\.tracking_uri holds a password"):
        Study(config, "mine.yaml")
    Study({**config, "mlflow": {"tracking_uri": uri.replace("me:pass@", "me@")}}, "mine.yaml")
