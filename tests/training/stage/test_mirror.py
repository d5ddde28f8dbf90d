"""The MLflow mirror: complete, additive, and no danger to the record."""

import json
import sqlite3
import subprocess
import sys

import pytest

from algos.training.stage import mirror as tracking


@pytest.fixture
def results(tmp_path):
    """A results folder with one finished run and its evaluation, as Record writes them."""
    stage = tmp_path / "results" / "stages" / "grpo"
    for directory, kind in ((stage / "seed0", "rl"), (stage / "evaluation" / "seed0", "evaluation")):
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(
            json.dumps(
                {
                    "kind": kind,
                    "status": "finished",
                    "settings": {"optimizer": {"learning_rate": 0.1}},
                    "estimator": {"ratio_level": "token"},
                    "packages": {"torch": "2"},
                    "commit": "abc",
                    "command": ["python"],
                    "started": 100.0,
                    "finished": 110.0,
                    "seconds": 10.0,
                }
            )
        )
        (directory / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"step": i, "time": 100.0 + i, "reward": i / 2, "mean@8": None}) + "\n" for i in range(3)
            )
        )
    (stage / "evaluation" / "seed0" / "scores.json").write_text(
        json.dumps({"overall": {"mean@8": 0.5, "greedy_wilson95": [0, 1]}})
    )
    return tmp_path / "results"


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri):
    found = client(uri).search_runs([client(uri).get_experiment_by_name("study").experiment_id])
    return {run.data.tags["directory"]: run for run in found}


def history(uri, run, name):
    return [(m.step, m.value) for m in client(uri).get_metric_history(run.info.run_id, name)]


def test_everything_is_mirrored_once_and_what_is_new_is_added(results, uri):
    summary = tracking.mirror_once(results, uri, "study")
    assert (summary["records"], summary["errors"]) == (2, [])
    run = runs(uri)["stages/grpo/seed0"]
    assert history(uri, run, "reward") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert run.data.params["optimizer.learning_rate"] == "0.1" and run.data.params["estimator.ratio_level"] == "token"
    assert (
        run.data.params["package.torch"] == "2" and run.data.tags["commit"] == "abc" and run.info.status == "FINISHED"
    )
    assert run.data.metrics["test/mean_at_8"] == 0.5  # from the evaluation, which is its child
    assert runs(uri)["stages/grpo/evaluation/seed0"].data.tags["mlflow.parentRunId"] == run.info.run_id
    assert {a.path for a in client(uri).list_artifacts(run.info.run_id)} >= {"run.json", "metrics.jsonl"}

    again = tracking.mirror_once(results, uri, "study")
    assert again["new_lines"] == 0 and again["records"] == 2 and len(runs(uri)) == 2
    with (results / "stages" / "grpo" / "seed0" / "metrics.jsonl").open("a") as lines:
        lines.write(
            json.dumps({"step": 3, "time": 103.0, "reward": 7.0}) + "\n" + '{"step": 4, "time": 104.0, "rew'
        )  # half a line
    assert tracking.mirror_once(results, uri, "study")["new_lines"] == 1
    assert history(uri, runs(uri)["stages/grpo/seed0"], "reward")[-1] == (3, 7.0)


def test_a_stage_that_ran_again_replaces_its_run(results, uri):
    tracking.mirror_once(results, uri, "study")
    first = runs(uri)["stages/grpo/seed0"].info.run_id
    path = results / "stages" / "grpo" / "seed0" / "run.json"
    path.write_text(path.read_text().replace('"started": 100.0', '"started": 200.0'))
    tracking.mirror_once(results, uri, "study")
    assert runs(uri)["stages/grpo/seed0"].info.run_id != first and len(runs(uri)) == 2


def test_a_locked_store_costs_nothing_and_is_caught_up_with(results, uri, tmp_path, monkeypatch):
    tracking.mirror_once(results, uri, "study")  # the store's tables exist
    with (results / "stages" / "grpo" / "seed0" / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 3, "time": 103.0, "reward": 7.0}) + "\n")
    monkeypatch.setattr(tracking, "ATTEMPTS", 1)
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        summary = tracking.mirror_once(results, uri, "study")
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert summary["errors"]
    assert tracking.mirror_once(results, uri, "study")["errors"] == []
    assert history(uri, runs(uri)["stages/grpo/seed0"], "reward")[-1] == (3, 7.0)


def test_a_store_that_is_away_is_reported_and_not_raised(results, monkeypatch):
    monkeypatch.setattr(tracking, "ATTEMPTS", 1)
    summary = tracking.mirror_once(results, "sqlite:////dev/null/mlflow.db", "study")
    assert len(summary["errors"]) == 1 and "Error" in summary["errors"][0]


def test_one_broken_stage_does_not_stop_the_others(results, uri, monkeypatch):
    monkeypatch.setattr(tracking, "ATTEMPTS", 1)
    broken = results / "stages" / "aaa" / "seed0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    summary = tracking.mirror_once(results, uri, "study")
    assert len(summary["errors"]) == 1 and summary["errors"][0].startswith("stages/aaa/seed0") and len(runs(uri)) == 2


def test_a_store_that_was_deleted_is_made_anew(results, uri, tmp_path):
    tracking.mirror_once(results, uri, "study")
    (tmp_path / "mlflow.db").unlink()
    command = [
        sys.executable,
        "-m",
        "algos.training.stage.mirror",
        "--results",
        str(results),
        "--uri",
        uri,
        "--experiment",
        "study",
    ]
    subprocess.run(command, check=True, timeout=120)  # a new process, as a user would: engines are cached within one
    assert len(history(uri, runs(uri)["stages/grpo/seed0"], "reward")) == 3


def test_another_study_below_the_results_folder_is_not_mirrored(results, uri):
    other = results / "smoke" / "stages" / "ppo" / "seed0"
    other.mkdir(parents=True)
    (other / "run.json").write_text((results / "stages" / "grpo" / "seed0" / "run.json").read_text())
    assert tracking.mirror_once(results, uri, "study")["records"] == 2


def test_runs_are_tagged_with_their_kind_and_named_by_stage_and_seed(results, uri):
    tracking.mirror_once(results, uri, "study")
    found = {run.info.run_name: run.data.tags["kind"] for run in runs(uri).values()}
    assert found == {"grpo/seed0": "rl", "grpo/evaluation/seed0": "evaluation"}


def test_a_stage_may_be_called_evaluation(results, uri):
    (results / "stages" / "grpo").rename(results / "stages" / "evaluation")
    assert tracking.mirror_once(results, uri, "study")["errors"] == []
    run = runs(uri)["stages/evaluation/seed0"]
    assert "mlflow.parentRunId" not in run.data.tags and run.data.metrics["test/mean_at_8"] == 0.5


def test_a_measurement_that_a_record_corrects_at_its_end_is_mirrored(results, uri):
    """The evaluation of a second seed finds out at its end that its process had started already."""
    path = results / "stages" / "grpo" / "evaluation" / "seed0" / "run.json"
    finished = json.loads(path.read_text())
    path.write_text(json.dumps({**finished, "status": "running", "start_up_seconds": 12.5}))
    assert tracking.mirror_once(results, uri, "study")["errors"] == []
    path.write_text(json.dumps({**finished, "start_up_seconds": 0.0}))
    assert tracking.mirror_once(results, uri, "study")["errors"] == []
    assert runs(uri)["stages/grpo/evaluation/seed0"].info.status == "FINISHED"
