"""Mirrors the records of a study into MLflow. The files are the record, MLflow is a view of the files.

Training never talks to MLflow: this program alone writes to MLflow's store. So no stage waits for the store, fails with
it or loses a metric. The same command adds whatever the store does not have yet, at any time and as often as one likes:
    python -m algos.training.stage.mirror --results results --uri sqlite:///results/mlflow.db --experiment default
With --watch PID the program mirrors again and again until the process PID ends, and once more then.

Every stage is an MLflow run, and so is each of its seeds, below it: with metrics, parameters, artifacts, and the scores
of its evaluation. One run has the report as its artifacts; data and models are below it. A stage that was made again
takes the place of its earlier run; one that goes on from a saved state goes on in its run. A stage whose process ended
before the stage did is FAILED, or KILLED by a signal.
"""

import argparse
import fcntl
import json
import os
import re
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from algos.training.stage.masking import masked
from algos.training.stage.records import (
    Kept,
    data_sets,
    find_records,
    key_of,
    numbers,
    parameters,
    read_record,
    shared_parameters,
    tags,
    totals,
)
from algos.training.stage.store import open_store

IDENTITY = ".mlflow_id"  # in the results folder: tells its runs from those of other folders in the same experiment
WATCH_SECONDS = 20.0
WATCH_SHARE = 0.1  # of a core, at most
ARTIFACT_FOLDER = "mlflow_artifacts"  # in the results folder, unless a server keeps the artifacts
STORE_FAULTS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes for a store that is locked or away
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}  # the next pass tries again
REPORT = "report"
# Tags of its own, which MLflow's UI hides.
FOLDER = "mlflow.mirror.folder"  # the results folder of a run
DONE = "mlflow.mirror.done"  # how far it is mirrored: lines of metrics; last evaluation of a stage; time of the report
EVALUATED = "mlflow.mirror.evaluated"  # the evaluation whose scores it has
ABOVE = "mlflow.parentRunId"
NOTE = """**What to look at**
- Choose *Model training* at the top left.
- *Runs:* a row is a stage, with the means over its seeds; unfold it to see the seeds. Sort by `eval/mean_at_8`.
- *Group by* the tag `algorithm`, and filter with `tags.kind = "rl"` or `tags.seed = "0"`.
- *Charts:* `reward/accuracy` and `policy/entropy` say whether a run learns, `ratio/clip_fraction` how far it leaves the
  policy that sampled, `time/step_seconds` what it costs. A parallel-coordinates plot of `optimizer.learning_rate`,
  `settings.kl_coef` and `eval/mean_at_8` shows which settings matter.
- The run of kind `study` holds the report, its tables and its figures. docs/metrics.md says what each metric means.

This is a view of the study's files; delete it, and the same command makes it again.
"""


@dataclass
class View:
    """The MLflow run of a directory."""

    id: str
    started: str  # see Kept.started
    status: str
    ended: int  # in ms; 0 while it runs
    tags: dict[str, str]
    params: dict[str, str]


class Mirror:
    """One results folder and its MLflow experiment."""

    def __init__(self, results: Path, uri: str, experiment: str, register_models: bool = False):
        self.results, self.name, self.register_models = results, experiment, register_models
        self.client = open_store(uri)
        self.experiment = self._experiment(uri)
        identity = results / IDENTITY
        if not identity.is_file():
            identity.write_text(uuid.uuid4().hex, encoding="utf-8")
        self.shared = {"study": experiment, FOLDER: identity.read_text(encoding="utf-8")}
        self.views = self._views()

    def _experiment(self, uri: str) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            local = re.match("sqlite|postgresql|mysql|mssql", uri)  # no server, which keeps artifacts itself
            place = (self.results / ARTIFACT_FOLDER).resolve().as_uri() if local else None
            return str(self.client.create_experiment(self.name, place, {"mlflow.note.content": NOTE}))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _views(self) -> dict[str, View]:
        """The MLflow run of each directory. Of several the last one counts: a restored experiment has them all."""
        views: dict[str, View] = {}
        token, of_these = None, f"tags.`{FOLDER}` = '{self.shared[FOLDER]}'"
        while True:
            page = self.client.search_runs(
                [self.experiment], of_these, order_by=["attributes.start_time"], page_token=token
            )
            for run in page:
                info, key = run.info, run.data.tags["directory"]
                if key in views:
                    self.client.delete_run(views[key].id)
                started, ended = str(info.start_time), info.end_time or 0
                views[key] = View(info.run_id, started, info.status, ended, run.data.tags, run.data.params)
            token = page.token
            if not token:
                return views

    def mirror_all(self, going: bool = False) -> dict:
        """Mirror every record; an error of one is noted, and the others go on. Returns a summary.

        going: whether the study still runs, as far as the caller knows.
        """
        from mlflow.exceptions import MlflowException

        found = {key_of(self.results, directory): directory for directory in find_records(self.results, "*run.json")}
        records = {key: directory for key, directory in found.items() if key.count("/") < 3}  # evaluations have 3
        new, errors = 0, []
        for key in (*records, REPORT):
            try:
                if key == REPORT:
                    self._end(records, going)
                else:
                    new += self._record(key, records[key])
            except Exception as error:  # of MLflow or its store: the files still hold everything
                errors.append(masked(f"{key}: {type(error).__name__}: {error}"))
                if isinstance(error, MlflowException) and error.error_code in STORE_FAULTS:
                    break
        return {"records": len(records), "new_lines": new, "errors": errors}

    def _record(self, key: str, directory: Path) -> int:
        """Bring the run of one record up to date; returns the number of new lines of metrics."""
        record, evaluation, new = read_record(directory), self._evaluation(key), 0
        view, status = self._view(key, record, evaluation), record.status
        if status != view.status or status == "RUNNING":
            new = self._lines(view, record)
        if status != view.status:
            self._log(view, totals(record.facts), record.ended)
            self._artifacts(view, record)
            self._set(view, status, int(record.ended * 1000))
        if evaluation and EVALUATED not in view.tags:
            self._log(view, numbers(evaluation.lines[-1], "eval"), evaluation.ended)
            self._inputs(view, evaluation)
            self._artifacts(view, evaluation, "evaluation")
            self._tag(view, EVALUATED, evaluation.started)
        checkpoint = directory / "checkpoint"
        if self.register_models and status == "FINISHED" and checkpoint.is_dir() and key.startswith("stages/"):
            self._register(view, checkpoint)
        return new

    def _evaluation(self, key: str) -> Kept | None:
        """The finished evaluation of a stage and seed, or of a model."""
        folder, _, name = key.rpartition("/")
        directory = self.results / (key if folder == "models" else folder) / "evaluation" / name
        evaluation = read_record(directory) if (directory / "run.json").is_file() else None
        return evaluation if evaluation and evaluation.status == "FINISHED" else None

    def _view(self, key: str, record: Kept, evaluation: Kept | None) -> View:
        """The run of a record. It is made anew if the stage, or its evaluation, was made again."""
        view, evaluated = self.views.get(key), evaluation.started if evaluation else None
        if view and (view.started != record.started or view.tags.get(EVALUATED, evaluated) != evaluated):
            self.client.delete_run(view.id)
            view = None
        above = {ABOVE: self._above(key, record, view is None).id}
        if view is None:
            view = self._create(key, record.started, {**tags(record.facts), **above})
        if not view.tags.items() >= above.items():  # the run above was made anew
            self._tag(view, *above.popitem())
        if DONE not in view.tags:
            self._inputs(view, record)
        self._begin(view, parameters(record.facts), "0")
        return view

    def _above(self, key: str, record: Kept, new: bool) -> View:
        """The run of a stage, which is above its seeds, or of the study, which is above data and models.

        new: whether the record is. A stage that has changed since then gets a new run.
        """
        if not key.startswith("stages/"):
            study = {"kind": "study", DONE: ""}
            return self.views.get(REPORT) or self._create(REPORT, record.started, study, self.name)
        stage, facts = key.rpartition("/")[0], record.facts
        shared = {k: v for k, v in tags(facts).items() if k in ("kind", "algorithm", "trainer", "from")}
        values = shared_parameters(facts)
        view = self.views.get(stage)
        if new and view and (view.params != values or not shared.items() <= view.tags.items()):
            self.client.delete_run(view.id)
            view = None
        view = view or self._create(stage, record.started, shared)
        self._begin(view, values, "")
        return view

    def _begin(self, view: View, values: dict[str, str], done: str) -> None:
        """The parameters of a new run."""
        from mlflow.entities import Param

        if DONE not in view.tags:
            self.client.log_batch(view.id, params=[Param(*pair) for pair in values.items()])
            self._tag(view, DONE, done)
            view.params = values

    def _create(self, key: str, started: str, own: dict[str, str], name: str | None = None) -> View:
        given = {**self.shared, **own, "directory": key}
        name = name or key.partition("/")[2] or key
        run = self.client.create_run(self.experiment, start_time=int(started), run_name=name, tags=given)
        self.views[key] = View(run.info.run_id, started, "RUNNING", 0, given, {})
        return self.views[key]

    def _lines(self, view: View, record: Kept) -> int:
        """Add the lines that the run does not have yet. Those that a resumed stage writes again count once."""
        lines = record.lines[int(view.tags[DONE]) :]
        if lines:
            made = [metric for line in lines for metric in _metrics(numbers(line), line["time"], line["step"])]
            self.client.log_batch(view.id, metrics=made)
            self._tag(view, DONE, str(int(view.tags[DONE]) + len(lines)))
        return len(lines)

    def _log(self, view: View, values: dict[str, float], seconds: float) -> None:
        self.client.log_batch(view.id, metrics=_metrics(values, seconds, 0))

    def _inputs(self, view: View, record: Kept) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = data_sets(record.facts["command"])
        inputs = [
            DatasetInput(Dataset(name, digest, "local", source), [InputTag("mlflow.data.context", context)])
            for name, digest, source, context in found
        ]
        self.client.log_inputs(view.id, datasets=inputs)

    def _artifacts(self, view: View, record: Kept, folder: str | None = None) -> None:
        for path in record.files:
            self.client.log_artifact(view.id, str(path), folder)

    def _tag(self, view: View, name: str, value: str) -> None:
        self.client.set_tag(view.id, name, value)
        view.tags[name] = value

    def _set(self, view: View, status: str, ended: int) -> None:
        if status == "RUNNING":
            self.client.update_run(view.id, status)
        else:
            self.client.set_terminated(view.id, status, ended)
        view.status, view.ended = status, ended

    def _register(self, view: View, checkpoint: Path) -> None:
        """Make the checkpoint the newest version of the stage's registered model."""
        from mlflow.exceptions import MlflowException

        if self.client.search_model_versions(f"run_id = '{view.id}'"):
            return
        name = re.sub("[/:]", "_", f"{self.name}.{checkpoint.parents[1].name}")
        self.client.log_artifacts(view.id, str(checkpoint), checkpoint.name)
        with suppress(MlflowException):  # it exists
            self.client.create_registered_model(name)
        source = f"{self.client.get_run(view.id).info.artifact_uri}/{checkpoint.name}"
        self.client.create_model_version(name, source, view.id, tags={"seed": view.tags["seed"]})

    def _end(self, records: dict[str, Path], going: bool) -> None:
        """Runs whose record is gone; and stages and the study, whose statuses follow from those of the runs below."""
        for key in sorted(set(self.views) - {REPORT, *records}, reverse=True):  # seeds before their stage
            view, seeds = self.views[key], [k for k in self.views if k.startswith(f"{key}/")]
            if seeds:
                self._means(view, [e for e in map(self._evaluation, seeds) if e])
                self._follow(view, seeds, "FINISHED")
            elif view.status == "RUNNING":
                self._set(view, "FAILED", int(time.time() * 1000))  # killed, and Snakemake has removed the record
        study, page = self.views.get(REPORT), self.results / REPORT / "report.html"
        if study is None:
            return
        if page.is_file() and study.tags[DONE] != (made := str(page.stat().st_mtime_ns)):
            self.client.log_artifacts(study.id, str(page.parent))
            self._tag(study, DONE, made)
        stopped = "RUNNING" if going else "KILLED"
        self._follow(study, [k for k in self.views if k != REPORT], "FINISHED" if page.is_file() else stopped)

    def _follow(self, view: View, below: list[str], otherwise: str) -> None:
        runs = [self.views[key] for key in below]
        status = next((s for s in ("RUNNING", "FAILED", "KILLED") if s in {run.status for run in runs}), otherwise)
        ended = max(run.ended for run in runs)
        if (status, ended) != (view.status, view.ended) and (status, view.status) != ("RUNNING", "RUNNING"):
            self._set(view, status, ended)

    def _means(self, view: View, evaluations: list[Kept]) -> None:
        """The means of the scores over the seeds that are evaluated."""
        newest = max((e.started for e in evaluations), default="")
        if newest and newest != view.tags[DONE]:
            scores = [numbers(e.lines[-1], "eval") for e in evaluations]
            means = {name: sum(s[name] for s in scores) / len(scores) for name in scores[0] if "error" not in name}
            self._log(view, means, max(e.ended for e in evaluations))
            self._tag(view, DONE, newest)


def _metrics(values: dict[str, float], seconds: float, step: int) -> list:
    from mlflow.entities import Metric

    return [Metric(name, value, int(seconds * 1000), step) for name, value in values.items()]


def mirror_once(results: Path, uri: str, experiment: str, register_models: bool = False, going: bool = False) -> dict:
    """Mirror every record, one program at a time; never raises."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".mlflow_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return Mirror(results, uri, experiment, register_models).mirror_all(going)
        except Exception as error:  # the store cannot even be opened
            return {"records": 0, "new_lines": 0, "errors": [masked(f"{type(error).__name__}: {error}")]}


def watch(pid: int, results: Path, uri: str, experiment: str, register_models: bool = False) -> None:
    """Mirror while the process lives, and once more when it has ended."""
    os.nice(5)
    while alive(pid):
        start = time.monotonic()
        mirror_once(results, uri, experiment, register_models, going=True)
        end = time.monotonic() + max(WATCH_SECONDS, (time.monotonic() - start) / WATCH_SHARE)
        while alive(pid) and time.monotonic() < end:
            time.sleep(1.0)
    if results.is_dir():
        mirror_once(results, uri, experiment, register_models)


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
    parser.add_argument("--register-models", action="store_true", help="register the checkpoints in the model registry")
    parser.add_argument("--watch", type=int, metavar="PID", help="mirror again and again until this process ends")
    parser.add_argument("--summary", type=Path, help="write a summary of the call to this file, as JSON")
    args = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    store = args.uri, args.experiment, args.register_models
    if args.watch is not None:
        watch(args.watch, args.results, *store)
        return
    summary, uri = mirror_once(args.results, *store), masked(args.uri)
    for error in summary["errors"]:
        print(f"not mirrored into MLflow: {error}", file=sys.stderr)
    if summary["errors"]:
        print(
            f"MLflow at {uri} misses {len(summary['errors'])} record(s); nothing is lost: the files in "
            f"{args.results} are the record. Mirror them later with: python -m algos.training.stage.mirror "
            f"--results {args.results} --uri {uri} --experiment {args.experiment}",
            flush=True,
        )
    if args.summary:
        args.summary.write_text(
            json.dumps({"uri": uri, "experiment": args.experiment, **summary}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
