"""The MLflow mirror: complete, additive, and no danger to the record."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from algos.training.stage import mirror as tracking
from algos.training.stage.record import Record

SEED, EVALUATION = "stages/grpo/seed0", "stages/grpo/evaluation/seed0"


def write_record(directory: Path, kind: str, lines: list[dict], started: float = 100.0, **facts) -> None:
    """A record as Record leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    fixed = {
        "kind": kind,
        "status": "finished",
        "settings": {"optimizer": {"learning_rate": 0.1}, "seed": 0},
        "packages": {"torch": "2"},
        "commit": "abc",
        "command": ["python", "-m", "algos.training.train", "--out", str(directory)],
        "started": started,
        "finished": started + 10,
        "seconds": 10.0,
    }
    (directory / "run.json").write_text(json.dumps({**fixed, **facts}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(step: int, **metrics) -> dict:
    return {"step": step, "time": 100.0 + step, "seconds": float(step), **metrics}


LINES = [line(step, reward=step / 2, clip_fraction=None) for step in range(3)]


@pytest.fixture
def results(tmp_path):
    """A results folder with data, one finished run and its evaluation."""
    results = tmp_path / "results"
    write_record(results / "data", "data", [line(0, train_problems=4)])
    (results / "data" / "train.jsonl").write_text("{}\n")
    command = ["python", "-m", "algos.training.train", "--from", "results/stages/cold/seed0/checkpoint"]
    command += ["--prompts", str(results / "data" / "train.jsonl")]
    facts = {"algorithm": "grpo", "trainer": "own", "seed": 0, "command": command, "phase_seconds": {"update": 2.0}}
    write_record(results / SEED, "rl", LINES, estimator={"ratio_level": "token"}, **facts)
    write_record(results / EVALUATION, "evaluation", [line(0, **{"mean@8": 0.5})])
    return results


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri):
    """The runs by directory; a directory has one."""
    found = client(uri).search_runs([client(uri).get_experiment_by_name("study").experiment_id])
    assert len({run.data.tags["directory"] for run in found}) == len(found)
    return {run.data.tags["directory"]: run for run in found}


def history(uri, run, name):
    return [(m.step, m.value) for m in client(uri).get_metric_history(run.info.run_id, name)]


def mirrored(results, uri) -> dict:
    summary = tracking.mirror_once(results, uri, "study")
    assert summary["errors"] == []
    return summary


def make_running(results, lines=LINES, started=200.0):
    """The stage again, as it is while it runs; returns its metrics, open and locked as its process has them."""
    write_record(results / SEED, "rl", lines, started, status="running", algorithm="grpo", seed=0)
    metrics = (results / SEED / "metrics.jsonl").open("a")
    fcntl.flock(metrics, fcntl.LOCK_EX)
    return metrics


def test_a_stage_is_one_run_with_its_seeds_below_and_the_study_one_with_data_and_models(results, uri):
    assert mirrored(results, uri)["records"] == 2
    found = runs(uri)
    assert {key: run.info.run_name for key, run in found.items()} == {
        "report": "study",
        "data": "data",
        "stages/grpo": "grpo",
        SEED: "grpo/seed0",
    }
    above = {key: run.data.tags.get("mlflow.parentRunId") for key, run in found.items()}
    assert above[SEED] == found["stages/grpo"].info.run_id and above["data"] == found["report"].info.run_id
    run = found[SEED]
    assert history(uri, run, "reward/reward") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    shared = {"optimizer.learning_rate": "0.1", "estimator.ratio_level": "token"}
    assert run.data.params == {**shared, "seed": "0", "package.torch": "2"}
    assert found["stages/grpo"].data.params == shared
    assert run.data.metrics["time/phase_seconds.update"] == 2.0 and run.data.metrics["eval/mean_at_8"] == 0.5
    assert found["stages/grpo"].data.metrics["eval/mean_at_8"] == 0.5
    expected = {"study": "study", "kind": "rl", "algorithm": "grpo", "seed": "0", "from": "cold", "trainer": "own"}
    expected |= {"mlflow.source.name": "algos.training.train", "mlflow.source.git.commit": "abc"}
    assert run.data.tags.items() >= expected.items()
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "results/data/train" and data.tags[0].value == "training"
    assert {a.path for a in client(uri).list_artifacts(run.info.run_id)} == {"run.json", "metrics.jsonl", "evaluation"}


def test_a_stage_that_goes_on_goes_on_in_its_run(results, uri):
    """Killed by a signal after three lines, two of which it had saved: it writes the third again, and a fourth."""
    folder = results / SEED
    write_record(folder, "rl", LINES, 200.0, status="interrupted", algorithm="grpo", seed=0)
    for name in ("run.json", "metrics.jsonl"):
        (folder / name).rename(folder / f"interrupted-{name}")
    mirrored(results, uri)
    killed = runs(uri)[SEED]
    assert killed.info.status == "KILLED" and {runs(uri)[key].info.status for key in ("stages/grpo",)} == {"KILLED"}
    metrics = make_running(results, LINES[:2])
    mirrored(results, uri)
    run = runs(uri)[SEED]
    assert run.info.run_id == killed.info.run_id and run.info.status == "RUNNING"
    assert history(uri, run, "reward/reward") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    metrics.close()
    write_record(folder, "rl", [*LINES, line(3, reward=7.0)], 200.0, algorithm="grpo", seed=0)
    mirrored(results, uri)
    run = runs(uri)[SEED]
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert history(uri, run, "reward/reward") == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 7.0)]
    assert runs(uri)["stages/grpo"].info.status == "FINISHED"


def test_a_loaded_model_has_the_scores_of_its_evaluation(results, uri):
    write_record(results / "models" / "base", "model", [line(0, parameters=9)])
    write_record(results / "models" / "base" / "evaluation" / "base", "evaluation", [line(0, **{"mean@8": 0.25})])
    assert mirrored(results, uri)["records"] == 3
    assert runs(uri)["models/base"].data.metrics["eval/mean_at_8"] == 0.25


def test_what_is_new_is_added_and_nothing_comes_twice(results, uri):
    metrics = make_running(results)
    assert mirrored(results, uri)["new_lines"] == 4  # one of data
    assert mirrored(results, uri)["new_lines"] == 0 and runs(uri)[SEED].info.status == "RUNNING"
    metrics.write(json.dumps(line(3, reward=7.0)) + "\n" + '{"step": 4, "time": 104.0, "rew')  # half a line
    metrics.flush()
    assert mirrored(results, uri)["new_lines"] == 1
    assert history(uri, runs(uri)[SEED], "reward/reward") == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 7.0)]


def test_lines_that_the_store_took_before_a_fault_come_once(results, uri, monkeypatch):
    metrics, tag = make_running(results), tracking.Mirror._tag
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Mirror, "_tag", lambda *args: 1 / 0 if args[3] == "3" else tag(*args))
        assert "ZeroDivisionError" in tracking.mirror_once(results, uri, "study")["errors"][0]
    mirrored(results, uri)
    assert history(uri, runs(uri)[SEED], "reward/reward") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    metrics.close()


def test_a_stage_or_an_evaluation_that_was_made_again_replaces_its_run(results, uri):
    mirrored(results, uri)
    write_record(results / EVALUATION, "evaluation", [line(0, **{"mean@8": 0.75})], started=300.0)
    mirrored(results, uri)
    run = runs(uri)[SEED]
    assert history(uri, run, "eval/mean_at_8") == [(0, 0.75)] and len(history(uri, run, "reward/reward")) == 3
    write_record(results / SEED, "rl", LINES[:1], started=400.0, settings={"optimizer": {"learning_rate": 0.2}})
    mirrored(results, uri)
    assert history(uri, runs(uri)[SEED], "reward/reward") == [(0, 0.0)]
    assert {runs(uri)[key].data.params["optimizer.learning_rate"] for key in (SEED, "stages/grpo")} == {"0.2"}
    assert runs(uri)[SEED].data.tags["mlflow.parentRunId"] == runs(uri)["stages/grpo"].info.run_id
    assert runs(uri)["stages/grpo"].data.metrics["eval/mean_at_8"] == 0.75


def test_a_stage_whose_process_is_gone_is_failed_and_running_when_it_goes_on(results, uri):
    metrics = make_running(results)
    mirrored(results, uri)
    assert {runs(uri)[key].info.status for key in (SEED, "stages/grpo", "report")} == {"RUNNING"}
    metrics.close()  # SIGKILL leaves nothing else
    mirrored(results, uri)
    assert {runs(uri)[key].info.status for key in (SEED, "stages/grpo", "report")} == {"FAILED"}
    metrics = make_running(results)  # as a stage does that resumes
    mirrored(results, uri)
    assert {runs(uri)[key].info.status for key in (SEED, "stages/grpo", "report")} == {"RUNNING"}
    assert len(history(uri, runs(uri)[SEED], "reward/reward")) == 3


def test_a_stage_whose_files_snakemake_removed_is_failed(results, uri):
    metrics = make_running(results)
    mirrored(results, uri)
    metrics.close()
    for path in (results / SEED).iterdir():
        path.unlink()
    mirrored(results, uri)
    assert runs(uri)[SEED].info.status == "FAILED"


def test_a_stage_that_was_stopped_has_the_lines_of_its_record_that_was_set_aside(results, uri):
    record = Record(results / SEED, "rl", {}, threads=1, seed=0)
    record.log(0, {"reward": 1.0})
    mirrored(results, uri)
    assert runs(uri)[SEED].info.status == "RUNNING"
    record.log(1, {"reward": 2.0})
    record.set_aside()
    Record.unfinished.remove(record)
    mirrored(results, uri)
    run = runs(uri)[SEED]
    assert run.info.status == "FAILED" and history(uri, run, "reward/reward") == [(0, 1.0), (1, 2.0)]
    assert "interrupted-run.json" in {a.path for a in client(uri).list_artifacts(run.info.run_id)}


def test_the_report_is_an_artifact_of_the_studys_run(results, uri):
    mirrored(results, uri)
    assert runs(uri)["report"].info.status == "KILLED"  # nothing runs, and there is no report
    (results / "report").mkdir()
    (results / "report" / "report.html").write_text("<p>")
    (results / "report" / "comparison.csv").write_text("a")
    mirrored(results, uri)
    run = runs(uri)["report"]
    assert run.info.status == "FINISHED" and run.data.tags["kind"] == "study"
    assert {a.path for a in client(uri).list_artifacts(run.info.run_id)} == {"report.html", "comparison.csv"}


def test_checkpoints_are_registered_where_it_is_asked_for(results, uri):
    write_record(results / "models" / "base", "model", [line(0, parameters=1)])
    for directory in (results / SEED, results / "models" / "base"):
        (directory / "checkpoint").mkdir()
        (directory / "checkpoint" / "config.json").write_text("{}")
    mirrored(results, uri)
    assert not client(uri).search_registered_models()
    for _ in range(2):
        assert tracking.mirror_once(results, uri, "study", register_models=True)["errors"] == []
    (version,) = client(uri).search_model_versions()
    assert (
        version.name == "study.grpo" and version.run_id == runs(uri)[SEED].info.run_id and version.tags == {"seed": "0"}
    )
    assert (Path(version.source.removeprefix("file://")) / "config.json").is_file()


def test_seeds_that_ran_on_different_machines_are_below_one_run_without_a_machine(results, uri):
    mirrored(results, uri)
    above = runs(uri)["stages/grpo"].info.run_id
    command = ["python", "-m", "algos.training.train", "--from", "results/stages/cold/seed0/checkpoint"]
    facts = {"packages": {"torch": "3"}, "hardware": {"cpu": "another"}, "estimator": {"ratio_level": "token"}}
    facts |= {"algorithm": "grpo", "trainer": "own", "command": command}
    write_record(results / "stages" / "grpo" / "seed1", "rl", LINES, seed=1, **facts)
    mirrored(results, uri)
    found = runs(uri)
    assert found["stages/grpo/seed1"].data.tags["mlflow.parentRunId"] == above == found["stages/grpo"].info.run_id
    assert found["stages/grpo/seed1"].data.params["package.torch"] == "3"
    assert not [name for name in found["stages/grpo"].data.params if name.startswith(("package.", "hardware."))]


def test_an_experiment_that_was_deleted_in_the_ui_is_restored_without_runs_that_were_replaced(results, uri):
    mirrored(results, uri)
    write_record(results / SEED, "rl", LINES, started=400.0)
    mirrored(results, uri)
    experiment = client(uri).get_experiment_by_name("study")
    assert "What to look at" in experiment.tags["mlflow.note.content"]
    client(uri).delete_experiment(experiment.experiment_id)
    mirrored(results, uri)
    assert runs(uri)[SEED].info.start_time == 400_000
    assert client(uri).get_experiment_by_name("study").lifecycle_stage == "active"


def test_two_folders_in_one_experiment_have_runs_of_their_own(results, uri, tmp_path):
    mirrored(results, uri)
    write_record(tmp_path / "other" / SEED, "rl", LINES, started=400.0)
    mirrored(tmp_path / "other", uri)
    mirrored(results, uri)
    found = client(uri).search_runs([client(uri).get_experiment_by_name("study").experiment_id])
    assert sorted(r.info.start_time for r in found if r.data.tags["directory"] == SEED) == [100_000, 400_000]


def test_a_locked_store_costs_nothing_and_is_caught_up_with(results, uri, tmp_path, monkeypatch):
    mirrored(results, uri)  # the store's tables exist
    write_record(results / SEED, "rl", [*LINES, line(3, reward=7.0)], started=400.0)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def locked(*_, **__):
        raise MlflowException("locked")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", locked)
        summary = tracking.mirror_once(results, uri, "study")
    assert len(summary["errors"]) == 1  # the first one ends the pass
    assert mirrored(results, uri)["new_lines"] == 4
    assert history(uri, runs(uri)[SEED], "reward/reward")[-1] == (3, 7.0)


def test_a_store_that_is_away_is_reported_and_not_raised(results):
    summary = tracking.mirror_once(results, "sqlite:////dev/null/mlflow.db", "study")
    assert len(summary["errors"]) == 1 and "Error" in summary["errors"][0]


def test_one_broken_stage_does_not_stop_the_others(results, uri):
    broken = results / "stages" / "aaa" / "seed0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    summary = tracking.mirror_once(results, uri, "study")
    assert len(summary["errors"]) == 1 and summary["errors"][0].startswith("stages/aaa/seed0") and SEED in runs(uri)


def test_a_store_that_was_deleted_is_made_anew(results, uri, tmp_path):
    mirrored(results, uri)
    (tmp_path / "mlflow.db").unlink()
    command = [sys.executable, "-m", "algos.training.stage.mirror", "--results", str(results)]
    # a new process, as a user would: engines are cached within one
    subprocess.run([*command, "--uri", uri, "--experiment", "study"], check=True, timeout=120)
    assert len(history(uri, runs(uri)[SEED], "reward/reward")) == 3


def test_a_stage_may_be_called_evaluation_and_another_study_may_lie_below(results, uri):
    (results / "stages" / "grpo").rename(results / "stages" / "evaluation")
    write_record(results / "smoke" / "stages" / "ppo" / "seed0", "rl", LINES)
    assert mirrored(results, uri)["records"] == 2
    assert runs(uri)["stages/evaluation/seed0"].data.metrics["eval/mean_at_8"] == 0.5
