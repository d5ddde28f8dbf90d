"""What a study spends on anything but its stages' work, and what starting a stage costs.

Work is the time of a stage's phases, or its whole recorded time if it has no phases. The rest of a job is overhead:
starting Python, imports, reading models, logging, saving, ending. So are the report, the MLflow mirror and the
scheduler, whose jobs have no record. The seconds of a job are multiplied by the threads that it holds.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from algos.pieces.settings import SettingsError
from algos.training.stage.records import find_records
from evaluation.bench.output import row

STAMP = re.compile(r"^\[(\w{3} \w{3} +\d+ \d\d:\d\d:\d\d \d{4})\]$")  # Snakemake's, to the second
START, FINISH = re.compile(r"^Job (\d+): "), re.compile(r"^Finished jobid: (\d+) ")
LIGHT = ("algos.pieces.settings", "algos", "algos.training.train", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True)
class Stage:
    """One run.json."""

    name: str
    threads: int
    started: float  # Unix seconds
    seconds: float
    work: float
    start_up: float | None  # seconds of the process before `started`; None in records of earlier commits


@dataclass(frozen=True)
class Job:
    """One job of Snakemake's log."""

    started: float  # Unix seconds
    finished: float


def stages(results: Path) -> list[Stage]:
    """The finished stages of a results folder. Raises SettingsError if there is none."""
    found = []
    for folder in find_records(results):
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if facts.get("status") == "finished":
            phases = facts.get("phase_seconds")
            work = sum(phases.values()) if phases else facts["seconds"]
            name = folder.relative_to(results).as_posix()
            start_up = facts.get("start_up_seconds")
            found.append(Stage(name, facts["threads"], facts["started"], facts["seconds"], work, start_up))
    if not found:
        raise SettingsError(f"--results {results} holds no finished stage; run a study, or name its results folder.")
    return _by_process(found)


def _by_process(found: list[Stage]) -> list[Stage]:
    """The evaluations of all seeds of a stage as one: they are one process, which starts once."""
    processes: dict[str, Stage] = {}
    for stage in sorted(found, key=lambda stage: stage.started):
        folder, _, _ = stage.name.rpartition("/")
        name = folder if folder.endswith("/evaluation") else stage.name
        first = processes.get(name, stage)
        seconds = stage.started + stage.seconds - first.started
        work = stage.work + (first.work if name in processes else 0.0)
        processes[name] = replace(first, name=name, seconds=seconds, work=work)
    return list(processes.values())


def jobs(log: Path) -> list[Job]:
    """The finished jobs of one run of Snakemake, from its log; local time, as Snakemake writes it."""
    running: dict[str, float] = {}
    found, now = [], 0.0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if stamp := STAMP.match(line):
            now = datetime.strptime(stamp[1], "%a %b %d %H:%M:%S %Y").timestamp()
        elif start := START.match(line):
            running[start[1]] = now
        elif (finish := FINISH.match(line)) and finish[1] in running:
            found.append(Job(running.pop(finish[1]), now))
    return found


def newest_log(results: Path, found: list[Stage]) -> Path | None:
    """The Snakemake log, beside the results or above them, that saw most of these stages."""
    logs = [log for folder in results.resolve().parents for log in (folder / ".snakemake" / "log").glob("*.log")]
    seen = {log: sum(any(_holds(job, stage) for job in jobs(log)) for stage in found) for log in logs}
    best = max(seen, key=lambda log: seen[log], default=None)
    return best if best is not None and seen[best] else None


def _holds(job: Job, stage: Stage) -> bool:
    """Whether the stage may have run in the job; Snakemake's stamps are whole seconds."""
    return job.started <= stage.started + 1 and stage.started + stage.seconds <= job.finished + 1


def matched(found: list[Stage], done: list[Job]) -> tuple[list[tuple[Stage, Job]], list[Job]]:
    """Each stage with the shortest job that may have held it, one stage a job; and the jobs that are left."""
    pairs, left = [], sorted(done, key=lambda job: job.finished - job.started)
    for stage in sorted(found, key=lambda stage: stage.seconds):
        job = next((job for job in left if _holds(job, stage)), None)
        if job is not None:
            left.remove(job)
            pairs.append((stage, job))
    return pairs, left


def most_at_once(found: list[Stage]) -> int:
    """The largest number of threads that stages held at one time."""
    return max(
        sum(other.threads for other in found if other.started <= stage.started < other.started + other.seconds)
        for stage in found
    )


def study_rows(results: Path) -> Iterator[dict]:
    """Where a study's time went; from Snakemake's log if there is one, else from the stages' own start_up_seconds."""
    found, case = stages(results), str(results)
    log = newest_log(results, found)
    if log is not None:
        pairs, others = matched(found, jobs(log))
        source, found = f"{log.name}, {len(pairs)} stages and {len(others)} other jobs", [stage for stage, _ in pairs]
        spent = [(stage, job.finished - job.started) for stage, job in pairs]
        begun = min(job.started for job in jobs(log))
        ended = max(job.finished for job in jobs(log))
    else:
        known = [(stage, stage.start_up) for stage in found if stage.start_up is not None]
        if not known:
            raise SettingsError(
                f"--results {results}: its run.json have no start_up_seconds, and no Snakemake log fits."
            )
        source, others = f"start_up_seconds of {len(known)} stages; report and mirror not seen", []
        found = [stage for stage, _ in known]
        spent = [(stage, start_up + stage.seconds) for stage, start_up in known]
        begun = min(stage.started - start_up for stage, start_up in known)
        ended = max(stage.started + stage.seconds for stage in found)
    cores = most_at_once(found)
    busy = sum(seconds * stage.threads for stage, seconds in spent) + sum(job.finished - job.started for job in others)
    start = sum(max(seconds - stage.seconds, 0) * stage.threads for stage, seconds in spent)
    record = sum((stage.seconds - stage.work) * stage.threads for stage in found)
    rest = sum(job.finished - job.started for job in others)
    wall = ended - begun
    yield row(case, "wall_minutes", wall / 60, "min", source, target="study_minutes" if others else "")
    yield row(case, "stages", len(found))
    yield row(case, "start_and_end_seconds", start / len(found), "s", "of a stage's process, mean by threads")
    yield row(case, "start_share", start / busy, "", "of the core-seconds that jobs held")
    yield row(case, "logging_and_saving_share", record / busy, "", "within stages, outside of their phases")
    yield row(case, "other_jobs_share", rest / busy, "", "report, mirror and stages that left no record")
    yield row(
        case, "idle_share", max(1 - busy / (wall * cores), 0), "", f"of {cores} cores: scheduler, waiting for inputs"
    )
    yield row(case, "overhead_share", (start + record + rest) / busy, "", "the first three", target="overhead")


def import_rows() -> Iterator[dict]:
    """CPU seconds to import what a stage imports, cumulative, and the packages that take longest."""
    for module in LIGHT:
        code = f"from algos import packages; packages.start_quickly(); import {module}"
        if module in ("algos.pieces.settings", "algos"):
            code = f"import {module}"
        timed = f"import time; {code}; print(time.process_time())"
        seconds = min(float(_python("-c", timed).stdout.split()[-1]) for _ in range(2))
        yield row(f"import {module}", "cpu_seconds", seconds, "s", "Python's own start included")
    taken: Counter = Counter()
    for line in _python("-X", "importtime", "-c", code).stderr.splitlines():
        if line.startswith("import time:") and "self" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            parts = name.strip().split(".")
            taken[".".join(parts[: 2 if parts[0] in ("torch", "transformers") else 1])] += int(own)
    for name, microseconds in taken.most_common(8):
        yield row(
            f"import {name}", "own_seconds", microseconds / 1e6, "s", "its modules without the modules that they import"
        )


def _python(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)


def rows(bench, results: Path, whole: bool = False) -> Iterator[dict]:
    """A study's overhead, then the imports; at toy size no imports. Only a whole study decides targets."""
    for figure in study_rows(results):
        yield figure if whole and not bench.toy else {**figure, "target": ""}
    if not bench.toy:
        yield from import_rows()
