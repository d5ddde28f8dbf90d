"""Mirrors the records of a study into MLflow. The files are the record, MLflow is a view of the files.

Training never talks to MLflow: this program alone writes to MLflow's store. So no stage fails or loses a metric because
the store is locked or away, and the mirror can be made anew from the files at any time:
    python -m algos.training.stage.mirror --results results --uri sqlite:///results/mlflow.db --experiment default
Each call adds the lines that are new since the last call. With --watch PID the program mirrors again and again until
the process PID ends.
"""

import argparse
import fcntl
import json
import os
import shlex
import sys
import time
from pathlib import Path

STATE = ".mlflow_state.json"  # in the results folder: the MLflow run of each record, and how many lines it has
WATCH_SECONDS = 20.0
METRICS_PER_CALL = 900  # MLflow takes 1,000 at most
ATTEMPTS = 3  # at a store that is locked or away
FOLDERS = ("data", "models", "stages")  # of a study's results
ARTIFACT_FOLDER = "mlflow_artifacts"  # in the results folder, if the store is SQLite
ARTIFACTS = ("run.json", "metrics.jsonl", "samples.jsonl", "scores.json", "responses.jsonl", "accepted.jsonl")
NO_PARAMETERS = {
    "settings",
    "estimator",
    "packages",
    "hardware",
    "command",
    "memory",
    "peak_memory",
    "phase_seconds",
    "held_out",
    "started",
    "finished",
    "seconds",
    "start_up_seconds",
    "status",
    "rows",
}


def metric_name(name: str) -> str:
    """MLflow allows no @ in a metric's name."""
    return name.replace("@", "_at_")


def flatten(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def find_records(results: Path) -> list[Path]:
    """The directories of this study that hold a run.json, evaluations last; studies in folders below are left out."""
    found = [path.parent for folder in FOLDERS for path in (results / folder).rglob("run.json")]
    return sorted(found, key=lambda directory: (evaluated_by(key_of(results, directory)) is not None, directory))


def key_of(results: Path, directory: Path) -> str:
    return directory.relative_to(results).as_posix()


def evaluated_by(key: str) -> str | None:
    """stages/grpo/evaluation/seed0 -> stages/grpo/seed0, models/base/evaluation/base -> models/base; else None."""
    folder, *inside = key.split("/")
    if folder == "data" or len(inside) != 3 or inside[1] != "evaluation":
        return None
    return f"stages/{inside[0]}/{inside[2]}" if folder == "stages" else f"models/{inside[0]}"


class Mirror:
    """One results folder and its MLflow experiment."""

    def __init__(self, results: Path, uri: str, experiment: str):
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.results, self.client = results, MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        local = uri.startswith("sqlite:")
        self.experiment = (
            found.experiment_id
            if found
            else self.client.create_experiment(
                experiment, artifact_location=(results / ARTIFACT_FOLDER).resolve().as_uri() if local else None
            )
        )
        self.state_path = results / STATE
        self.state = json.loads(self.state_path.read_text(encoding="utf-8")) if self.state_path.is_file() else {}

    def mirror_all(self) -> dict:
        """Mirror every record. An error of one record is noted, and the others go on. Returns a summary."""
        lines, errors, records = 0, [], find_records(self.results)
        for directory in records:
            key = key_of(self.results, directory)
            try:
                lines += self.mirror(directory, key)
            except Exception as error:  # of MLflow or its store: the files still hold everything
                errors.append(f"{key}: {type(error).__name__}: {error}")
            partial = self.state_path.with_suffix(".partial")
            partial.write_text(json.dumps(self.state, indent=1), encoding="utf-8")
            partial.replace(self.state_path)  # never half a file, whenever this program is stopped
        return {"records": len(records), "new_lines": lines, "errors": errors}

    def mirror(self, directory: Path, key: str) -> int:
        """Add the new lines of one record to its MLflow run; returns the number of new metrics lines."""
        facts = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        entry = self._entry(key, facts)
        new = self._metrics(directory, entry, facts)
        if facts["status"] == "finished" and entry["status"] != "finished":
            summary = {
                f"{group}.{name}": value
                for group in ("memory", "peak_memory", "phase_seconds", "held_out")
                for name, value in flatten(facts.get(group, {})).items()
                if isinstance(value, (int, float))
            }
            summary["seconds"] = facts["seconds"]
            self._log_metrics(entry["run_id"], summary, facts["finished"], 0)
            self._log_parameters(entry["run_id"], facts)  # a finished record holds more facts
            for name in ARTIFACTS:
                if (directory / name).is_file():
                    self.client.log_artifact(entry["run_id"], str(directory / name))
            if evaluated_by(key):
                self._copy_scores_to_parent(directory, key, facts)
            self.client.set_terminated(entry["run_id"], "FINISHED", int(facts["finished"] * 1000))
            entry["status"] = "finished"
        return new

    def _entry(self, key: str, facts: dict) -> dict:
        """The state of one record; a new MLflow run if the record is new, was made again, or is gone from the store."""
        entry = self.state.get(key)
        if entry is not None and self._exists(entry["run_id"]):
            if entry["started"] == facts["started"]:
                return entry
            self.client.delete_run(entry["run_id"])  # the stage ran again, and the earlier files are gone
        tags = {
            "kind": facts["kind"],
            "directory": key,
            "commit": str(facts.get("commit")),
            "device": str(facts.get("device", "cpu")),
            "command": shlex.join(facts.get("command", [])),
        }
        parent = self.state.get(evaluated_by(key) or "")
        if parent:
            tags["mlflow.parentRunId"] = parent["run_id"]
        run = self.client.create_run(
            self.experiment, start_time=int(facts["started"] * 1000), run_name=key.removeprefix("stages/"), tags=tags
        )
        self._log_parameters(run.info.run_id, facts)
        self.state[key] = {"run_id": run.info.run_id, "started": facts["started"], "lines": 0, "status": "running"}
        return self.state[key]

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _log_parameters(self, run_id: str, facts: dict) -> None:
        from mlflow.entities import Param

        values = {
            **flatten(facts.get("settings", {})),
            **flatten(facts.get("estimator", {}), "estimator."),
            **flatten(facts.get("packages", {}), "package."),
            **flatten(facts.get("hardware", {}), "hardware."),
            **flatten(facts.get("rows", {}), "rows."),
            **{k: v for k, v in facts.items() if k not in NO_PARAMETERS and not isinstance(v, (dict, list))},
        }
        items = [Param(name, str(value)[:500]) for name, value in values.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[start : start + 100])

    def _metrics(self, directory: Path, entry: dict, facts: dict) -> int:
        from mlflow.entities import Metric

        path = directory / "metrics.jsonl"
        if not path.is_file():
            return 0
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a line without its end is not fully written yet
        pending, start = [], entry["lines"]
        for number in range(start, len(lines)):
            row = json.loads(lines[number])
            for name, value in row.items():
                if name not in ("step", "time") and isinstance(value, (int, float)):
                    pending.append(Metric(metric_name(name), value, int(row["time"] * 1000), row["step"]))
            if len(pending) >= METRICS_PER_CALL - 100 or number == len(lines) - 1:
                for first in range(0, len(pending), METRICS_PER_CALL):
                    self.client.log_batch(entry["run_id"], metrics=pending[first : first + METRICS_PER_CALL])
                pending, entry["lines"] = [], number + 1
        return entry["lines"] - start

    def _log_metrics(self, run_id: str, values: dict, seconds: float, step: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(metric_name(name), value, int(seconds * 1000), step) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def _copy_scores_to_parent(self, directory: Path, key: str, facts: dict) -> None:
        """Put the test scores on the stage's MLflow run too, so that stages can be sorted by score."""
        parent = self.state.get(evaluated_by(key))
        if parent is None or not (directory / "scores.json").is_file():
            return
        overall = json.loads((directory / "scores.json").read_text(encoding="utf-8"))["overall"]
        self._log_metrics(
            parent["run_id"],
            {f"test/{name}": value for name, value in overall.items() if isinstance(value, (int, float))},
            facts["finished"],
            0,
        )


def mirror_once(results: Path, uri: str, experiment: str) -> dict:
    """Mirror every record, one program at a time. Tries again while the store is locked or away, and never raises."""
    results.mkdir(parents=True, exist_ok=True)
    summary = {"records": 0, "new_lines": 0, "errors": ["not tried"]}
    with (results / ".mlflow_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2.0**attempt)
            try:
                summary = Mirror(results, uri, experiment).mirror_all()
            except Exception as error:  # the store cannot even be opened
                summary = {"records": 0, "new_lines": 0, "errors": [f"{type(error).__name__}: {error}"]}
            if not summary["errors"]:
                break
    return summary


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", required=True, type=Path, help="the study's results folder")
    parser.add_argument("--uri", required=True, help="MLflow tracking URI")
    parser.add_argument("--experiment", required=True, help="MLflow experiment")
    parser.add_argument("--watch", type=int, metavar="PID", help="mirror again and again until this process ends")
    parser.add_argument("--summary", type=Path, help="write a summary of the call to this file, as JSON")
    args = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if args.watch is not None:
        os.nice(5)
        while alive(args.watch):
            mirror_once(args.results, args.uri, args.experiment)
            for _ in range(int(WATCH_SECONDS)):
                if not alive(args.watch):
                    break
                time.sleep(1.0)
        return
    summary = mirror_once(args.results, args.uri, args.experiment)
    for error in summary["errors"]:
        print(f"not mirrored into MLflow: {error}", file=sys.stderr)
    if summary["errors"]:
        print(
            f"MLflow at {args.uri} misses {len(summary['errors'])} record(s); nothing is lost: the files in "
            f"{args.results} are the record. Mirror them later with: python -m algos.training.stage.mirror "
            f"--results {args.results} --uri {args.uri} --experiment {args.experiment}",
            flush=True,
        )
    if args.summary:
        args.summary.write_text(
            json.dumps({"uri": args.uri, "experiment": args.experiment, **summary}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
