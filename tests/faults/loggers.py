"""Many stages log at once while several programs mirror them into one MLflow store: no point is lost, none comes twice.

    python -m tests.faults.loggers --loggers 32 --studies 8 --lines 300

Every logger is a process with a record of its own. Every study has a program that mirrors it again and again. After the
last logger each study is mirrored once more, and MLflow's points are compared with the files.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from pathlib import Path

from algos.training.stage.mirror import mirror_once
from algos.training.stage.record import Record
from algos.training.stage.records import find_records, key_of, numbers, read_record

METRICS = [f"reward_{i}" for i in range(20)]


def log(directory: Path, lines: int, pause: float = 0.0) -> None:
    """A stage that only logs; its record says how long its slowest line took."""
    record, slowest = Record(directory, "rl", {}, threads=1, algorithm="grpo", seed=0), 0.0
    for step in range(lines):
        start = time.perf_counter()
        record.log(step, {name: step + i / 100 for i, name in enumerate(METRICS)})
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(pause)
    record.finish(slowest_line_seconds=slowest)


def mirror(results: Path, uri: str, done) -> None:
    while not done.wait(0.2):  # seconds between two passes
        mirror_once(results, uri, results.name)


def points(results: Path, uri: str) -> tuple[Counter, Counter]:
    """(lost, doubled): points of the files that MLflow does not have, and points that it has too often."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(results.name).experiment_id])
    runs = {run.data.tags["directory"]: run for run in found}
    wanted: Counter = Counter()
    stored: Counter = Counter(f"run of {run.data.tags['directory']}" for run in found)
    for directory in find_records(results):
        record, key = read_record(directory), key_of(results, directory)
        wanted |= {f"run of {key}": 1, f"run of {key.rpartition('/')[0]}": 1}
        for line in record.lines:
            wanted.update((key, name, line["step"], value) for name, value in numbers(line).items())
        for name in numbers(record.lines[0]):
            history = client.get_metric_history(runs[key].info.run_id, name)
            stored.update((key, name, point.step, point.value) for point in history)
    return wanted - stored, stored - wanted


def trial(folder: Path, uri: str, loggers: int, studies: int, lines: int, pause: float, start) -> list[Path]:
    """All loggers and mirrors at once, each a start.Process; returns the results folders when all are mirrored."""
    folders = [folder / f"study{i}" for i in range(studies)]
    stages = [folders[i % studies] / "stages" / f"stage{i}" / "seed0" for i in range(loggers)]
    done = start.Event()
    mirrors = [start.Process(target=mirror, args=(results, uri, done)) for results in folders]
    workers = [start.Process(target=log, args=(stage, lines, pause)) for stage in stages]
    for process in (*mirrors, *workers):
        process.start()
    for process in workers:
        process.join()
    done.set()
    for process in mirrors:
        process.join()
    for results in folders:
        summary = mirror_once(results, uri, results.name)
        assert summary["errors"] == [], summary
    return folders


def report(folders: list[Path], uri: str) -> None:
    """Print the figures. Exit status 1 if a point was lost or doubled."""
    found = [points(results, uri) for results in folders]
    lost, doubled = (sum(counter.total() for counter in kind) for kind in zip(*found, strict=True))
    records = [read_record(directory) for results in folders for directory in find_records(results)]
    slowest = max(record.facts["slowest_line_seconds"] for record in records)
    print(f"{len(records)} loggers, {sum(len(r.lines) for r in records)} lines: {lost} points lost, {doubled} doubled;")
    print(f"the slowest line of a logger took {1000 * slowest:.1f} ms")
    raise SystemExit(bool(lost or doubled))


def parser(description: str) -> argparse.ArgumentParser:
    """The options of a trial, of this script and of those that take another store."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("--loggers", type=int, default=32)
    made.add_argument("--studies", type=int, default=8, help="each with a program that mirrors it")
    made.add_argument("--lines", type=int, default=300, help="of each logger")
    made.add_argument("--pause", type=float, default=0.05, help="seconds between two lines of a logger")
    return made


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--uri", help="MLflow tracking URI (default: a new SQLite file)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        uri = args.uri or f"sqlite:///{scratch}/mlflow.db"
        start = multiprocessing.get_context("fork")
        report(trial(Path(scratch), uri, args.loggers, args.studies, args.lines, args.pause, start), uri)


if __name__ == "__main__":
    main()
