"""python -m evaluation.bench overhead: where the time of a study went, by hand."""

import json
import time
from pathlib import Path

import pytest

from algos.pieces.settings import SettingsError
from evaluation.bench import overhead, parts


@pytest.fixture
def bench(tmp_path):
    return parts.Bench(tmp_path, steps=1, device_name="cpu", toy=True)


def study(folder: Path, *stages: tuple) -> Path:
    """A results folder with run.json of (name, threads, started, seconds, work or None, start_up or None)."""
    for name, threads, started, seconds, work, start_up in stages:
        facts = {"kind": "rl", "status": "finished", "threads": threads, "started": started, "seconds": seconds}
        facts |= {} if work is None else {"phase_seconds": {"generate": work / 2, "update": work / 2}}
        facts |= {} if start_up is None else {"start_up_seconds": start_up}
        (folder / "stages" / name).mkdir(parents=True)
        (folder / "stages" / name / "run.json").write_text(json.dumps(facts))
    return folder


def figures(rows) -> dict:
    return {row["quantity"]: row["value"] for row in rows}


def test_overhead_without_a_log_by_hand(tmp_path):
    # a: 2 + 10 s on 2 threads, 8 of work; b: 3 + 6 s on 1 thread, all work. Busy 2 x 12 + 9 = 33 core-seconds,
    # starting 2 x 2 + 3 = 7, outside of phases 2 x 2 = 4. Wall 1002 .. 1024 less a's start-up: 24 s
    results = study(tmp_path, ("a", 2, 1002.0, 10.0, 8.0, 2.0), ("b", 1, 1018.0, 6.0, None, 3.0))
    found = figures(overhead.study_rows(results))
    assert found["overhead_share"] == pytest.approx(11 / 33)
    assert found["start_share"] == pytest.approx(7 / 33) and found["logging_and_saving_share"] == pytest.approx(4 / 33)
    assert found["wall_minutes"] == pytest.approx(24 / 60) and found["idle_share"] == pytest.approx(1 - 33 / 48)


def test_overhead_with_snakemakes_log_by_hand(tmp_path):
    # one stage of 6 s in a job of 10 s, and a job of 5 s that left no record: (4 + 5) / 15
    start = time.mktime((2026, 11, 20, 23, 58, 40, 0, 0, -1))
    results = study(tmp_path / "results", ("a", 1, start + 3, 6.0, None, None))
    log = tmp_path / ".snakemake" / "log" / "one.snakemake.log"
    log.parent.mkdir(parents=True)
    stamp = "[Fri Nov 20 23:58:{}2026]".format
    lines = [
        stamp("40 "),
        "Job 3: Train a, seed 0",
        stamp("50 "),
        "Finished jobid: 3 (Rule: train)",
        "Execute 1 jobs...",
    ]
    lines += [stamp("50 "), "Job 1: Write the report", stamp("55 "), "Finished jobid: 1 (Rule: report)"]
    log.write_text("\n".join(lines))
    found = figures(overhead.study_rows(results))
    assert found["overhead_share"] == pytest.approx(9 / 15) and found["other_jobs_share"] == pytest.approx(5 / 15)
    assert found["wall_minutes"] == pytest.approx(0.25) and found["idle_share"] == pytest.approx(0.0)


def test_the_evaluations_of_all_seeds_are_one_process(tmp_path):
    names = ("a/seed0", "a/evaluation/seed0", "a/evaluation/seed1")
    results = study(tmp_path, *((name, 1, 1000.0 + 10 * i, 9.0, 8.0, 1.0) for i, name in enumerate(names)))
    found = {stage.name: stage for stage in overhead.stages(results)}
    evaluation = found["stages/a/evaluation"]
    assert set(found) == {"stages/a/seed0", "stages/a/evaluation"}
    assert (evaluation.started, evaluation.seconds, evaluation.work, evaluation.start_up) == (1010.0, 19.0, 16.0, 1.0)


def test_only_a_whole_study_decides_targets(bench, tmp_path, monkeypatch):
    bench.toy = False
    monkeypatch.setattr(overhead, "import_rows", lambda: [])
    results = study(tmp_path / "r", *((f"{run}/seed0", 1, 1000.0, 10.0, None, 3.0) for run in ("a", "b")))
    for whole, decided in ((True, {"overhead"}), (False, set())):
        assert {row["target"] for row in overhead.rows(bench, results, whole)} - {""} == decided


def test_a_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="holds no finished stage"):
        list(overhead.study_rows(tmp_path))
