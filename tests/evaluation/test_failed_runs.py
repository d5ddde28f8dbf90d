"""A seed whose run failed is in the report: counted, named, and not dropped."""

import json

import pandas as pd
import pytest
from synthetic import rl, stage, study, write_results

from evaluation.collect import collect
from evaluation.curves import curve
from evaluation.report import write
from evaluation.tasks.files import write_json
from pipelines.tree import _status

MADE = study(
    start=stage("sft", "base", score=0.4, steps=10, trainer="own"),
    broken=rl("start", score=0.6),
    whole=rl("start", score=0.6, like="broken"),
)


def fail(results, name: str, seed: int, step: int) -> None:
    """Make a finished record one of a run that failed in a step."""
    folder = results / "stages" / name / f"seed{seed}"
    facts = json.loads((folder / "run.json").read_text())
    failure = {"step": step, "reason": f"step {step}: the policy_loss is nan", "checkpoint": "its last policy"}
    write_json(folder / "run.json", {**facts, "status": "failed", "failure": failure})
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:step]))


@pytest.fixture
def results(tmp_path):
    return tmp_path, write_results(tmp_path, MADE)


@pytest.mark.parametrize("step", [0, 2])
def test_a_failed_seed_is_counted_and_named(results, step):
    folder, made = results
    fail(folder, "broken", 1, step)
    write(folder, made, folder / "report")
    rows = pd.read_csv(folder / "report" / "comparison.csv").set_index("stage")
    assert rows["failed_seeds"].to_dict() == pytest.approx({"start": 0, "broken": 1 / 3, "whole": 0})
    assert rows.loc["broken", "seeds"] == 3  # its last good checkpoint is among the scores
    page = (folder / "report" / "report.html").read_text()
    said = (
        f"broken, seed 1: the run failed (step {step}: the policy_loss is nan). It counts as a failed seed; scored, and"
    )
    assert said in page and "whole, seed" not in page
    curves = pd.read_csv(folder / "report" / "curves.csv")
    assert (curves["stage"] == "broken").sum() == 4  # of the seeds that came to their end, to the last step


def test_a_stage_all_of_whose_seeds_failed_has_a_report_without_its_curve(results):
    folder, made = results
    for seed in range(3):
        fail(folder, "broken", seed, 0)
    write(folder, made, folder / "report")
    rows = pd.read_csv(folder / "report" / "comparison.csv").set_index("stage")
    assert rows.loc["broken", "failed_seeds"] == 1 and pd.isna(rows.loc["broken", "mean@2_without_failed"])
    assert set(pd.read_csv(folder / "report" / "curves.csv")["stage"]) == {"whole"}
    assert curve(collect(folder, made)["broken"], "seconds", "accuracy").empty


def test_a_collapse_is_named_and_is_no_failure(results):
    folder, made = results
    record = folder / "stages" / "broken" / "seed2" / "run.json"
    write_json(record, {**json.loads(record.read_text()), "entropy_collapse_step": 7})
    write(folder, made, folder / "report")
    assert "broken: the entropy collapsed (seed 2 in step 7)." in (folder / "report" / "report.html").read_text()
    assert (pd.read_csv(folder / "report" / "comparison.csv")["failed_seeds"] == 0).all()


def test_a_failed_record_is_told_apart_in_the_tree(results):
    fail(results[0], "broken", 1, 2)
    assert _status(results[0] / "stages" / "broken" / "seed1" / "run.json") == "failed"
    assert _status(results[0] / "gone") is None
