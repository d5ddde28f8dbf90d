"""A run that fails: said in one line, recorded with its last good checkpoint and the batch that broke it."""

import json

import pytest
import torch
from lean import TOKENIZER
from tiny import tiny_model

from algos.training import failure, train
from algos.training.config import RunConfig
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.rewards import own
from algos.training.run import Run
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import Record
from algos.training.update import update
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
REWARDS = """
import time

calls = []

def fair(prompts, responses, answers, rows):
    return [float(len(text) % 3) for text in responses]

def second(prompts, responses, answers, rows):
    calls.append(1)
    return fair(prompts, responses, answers, rows) if len(calls) < 2 else {what}
"""


@pytest.fixture
def run(tmp_path):
    """Runs three steps with a reward of the user's own; returns the exit status, the record and the folder."""
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "policy")
    rows = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(8)]
    write_jsonl(tmp_path / "train.jsonl", rows)

    def run(function: str = "second", what: str = "0", trainer: str = "own", learning_rate: float = 1e-2, **changes):
        (tmp_path / "mine.py").write_text(REWARDS.replace("{what}", what))
        config = RunConfig(
            "grpo",
            0,
            {"std_epsilon": 1.0e-4},
            trainer=trainer,
            **{"steps": 3, "prompts_per_step": 4, "group_size": 2, "minibatches": 2, **changes},
            max_response_tokens=8,
            device="cpu",
            optimizer=OptimizerConfig(learning_rate=learning_rate),
            rewards={f"{tmp_path / 'mine.py'}:{function}": 1.0},
        )
        train_it = train.train
        if trainer == "trl":
            from algos.training.trl import baseline

            train_it = baseline.train
        Record.unfinished.clear()  # of stages that other tests in this process have killed
        status = 0
        try:
            train_it(config, str(tmp_path / "policy"), str(tmp_path / "train.jsonl"), str(tmp_path / "out"))
        except SystemExit as stop:
            status = stop.code
        assert Record.unfinished == []
        return status, json.loads((tmp_path / "out" / "run.json").read_text()), tmp_path / "out"

    return run


def weights(folder):
    return load_policy(folder, CPU).state_dict()


def equal(first, second) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("trainer", ["own", "trl"])
@pytest.mark.parametrize(
    "what, reason",
    [
        ("[float('nan')] * len(rows)", "must return finite numbers, got nan for row 'train/"),
        ("1 / 0", "second fails on row 'train/"),
        ("time.sleep(60)", "took more than reward_settings.own_seconds = 0.2 for the 8 responses"),
        ("[1.0]", "must return a list of 8 numbers"),
    ],
)
def test_a_reward_that_fails_in_the_second_step(run, capsys, what, reason, trainer):
    limit = {"reward_settings": own.RewardSettings(own_seconds=0.2)} if "sleep" in what else {}
    status, record, out = run(what=what, trainer=trainer, **limit)
    assert status == failure.FAILED and record["status"] == "failed" and record["finished"] >= record["started"]
    assert record["failure"]["step"] == 1 and reason in record["failure"]["reason"]
    said = capsys.readouterr().err.splitlines()
    (line,) = {line for line in said if line.startswith("failed: ")}
    assert line.startswith("failed: step 1: rewards: ") and "Kept: its last policy, and the batch in " in line
    assert len(read_jsonl(out / "metrics.jsonl")) == 1
    batch = read_jsonl(out / "failed_batch.jsonl")
    assert len(batch) == 8 and all(row["reward"] is None and row["id"].startswith("train/") for row in batch)
    assert not equal(weights(out / "checkpoint"), weights(out.parent / "policy"))  # the first step is in them


def test_the_weights_that_are_kept_are_those_before_the_step_that_failed(run):
    _, _, out = run("fair", steps=1)
    first = weights(out / "checkpoint")
    _, record, out = run(what="1 / 0", steps=1 + 2)
    assert record["optimizer_steps"] == 2 and equal(weights(out / "checkpoint"), first)


def test_the_row_that_broke_the_run_comes_first(run):
    what = "[1 / (row['id'] != 'train/3') for row in rows]"
    _, record, out = run(what=what, prompts_per_step=8, minibatches=1)
    assert "second fails on row 'train/3'" in record["failure"]["reason"]
    assert read_jsonl(out / "failed_batch.jsonl")[0]["id"] == "train/3"


@pytest.mark.parametrize("figure", ["policy_loss", "gradient norm"])
def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_change(run, monkeypatch, figure):
    real, calls = update.accumulate_gradients, []

    def spoiled(minibatch, learner, *others):
        metrics = real(minibatch, learner, *others)
        calls.append(1)
        if len(calls) == 3:
            if figure == "policy_loss":
                return metrics | {"policy_loss": torch.tensor(float("nan"))}
            next(learner.policy.parameters()).grad[0, 0] = float("inf")
        return metrics

    _, _, out = run("fair", steps=1)
    first = weights(out / "checkpoint")
    monkeypatch.setattr(update, "accumulate_gradients", spoiled)
    status, record, out = run("fair")
    assert status == failure.FAILED and f"step 1: the {figure} is " in record["failure"]["reason"]
    assert equal(weights(out / "checkpoint"), first) and record["failure"]["checkpoint"] == "its last policy"
    batch = read_jsonl(out / "failed_batch.jsonl")
    assert len(batch) == 8 and {row["reward"] for row in batch} <= {0.0, 1.0, 2.0}


def test_a_reward_of_the_rules_or_of_a_model_that_is_not_finite(run, monkeypatch):
    real = Run.collect

    def spoiled(self):
        made = real(self)
        made.rewards[5] = float("nan")
        return made

    monkeypatch.setattr(Run, "collect", spoiled)
    _, record, out = run("fair")
    assert "step 0: 1 of 8 rewards are not finite: nan, of row 'train/" in record["failure"]["reason"]
    batch = read_jsonl(out / "failed_batch.jsonl")
    assert batch[0]["reward"] == "nan" and all(isinstance(row["reward"], float) for row in batch[1:])


def test_weights_that_are_not_finite_are_not_kept(run, monkeypatch):
    """They are not a checkpoint that anyone could go on from; the one that the run started from is."""
    monkeypatch.setattr(update, "check_losses", lambda metrics: None)
    monkeypatch.setattr(
        update, "optimizer_step", lambda model, *_: next(model.parameters()).data.fill_(float("nan")) is None or 1.0
    )
    monkeypatch.setattr("algos.training.run.check_first_ratio", lambda *_: None)
    status, record, out = run("fair")
    assert status == failure.FAILED and "log-probabilities of sampled tokens are not finite" in str(record["failure"])
    assert record["failure"]["checkpoint"] == "the checkpoint that it started from"
    assert equal(weights(out / "checkpoint"), weights(out.parent / "policy"))


def test_the_batch_on_disk_has_at_most_a_megabyte(tmp_path):
    record = Record(tmp_path, "rl", {}, 1)
    rows = [{"id": str(i), "prompt": "p", "response": "é" * 50_000, "reward": 0.0} for i in range(30)]
    failure.write_batch(record, rows, FloatingPointError())
    Record.unfinished.remove(record)
    assert 800_000 < (tmp_path / "failed_batch.jsonl").stat().st_size <= failure.MOST_BYTES


def test_a_run_that_is_made_again_leaves_no_batch_of_the_failed_one(run):
    _, _, out = run(what="1 / 0")
    assert (out / "failed_batch.jsonl").exists()
    status, record, _ = run("fair")
    assert status == 0 and record["status"] == "finished" and "failure" not in record
    assert not (out / "failed_batch.jsonl").exists()


def test_a_collapse_of_the_entropy_is_a_warning_and_a_figure(run, capsys, tmp_path):
    _, record, _ = run("fair")
    assert "entropy_collapse_step" not in record
    made = Record(tmp_path, "rl", {}, 1)
    for step, entropy in enumerate((2.0, 0.2, 0.09, 0.05)):
        made.log(step, {"entropy": entropy})
    assert failure.collapse(made) == {"entropy_collapse_step": 2}
    assert "warning: the entropy collapsed: 0.09 nats a token in step 2, after 2 in step 0" in capsys.readouterr().err
    Record.unfinished.remove(made)


def test_a_reward_without_a_limit_has_one_all_the_same(run, monkeypatch):
    monkeypatch.setattr(own, "HANGS", 0.2)
    status, record, _ = run(what="time.sleep(60)")
    assert status == failure.FAILED and "took more than reward_settings.own_seconds = 0.2" in str(record["failure"])
