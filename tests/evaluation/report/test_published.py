"""A user's study beside published tables: bands by hand, and the status of the command."""

import shutil
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pandas as pd
import pytest
from synthetic import rl, stage, study, write_results

from algos.pieces.settings import SettingsError
from evaluation.report import write
from evaluation.report.published import band, compare, inside_curve, main

PROJECT = Path(__file__).parents[3]
MADE = study(sft=stage("sft", "base", seeds=[0], score=0.3, steps=10, trainer="own"), a=rl("sft"), b=rl("sft"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write(folder, write_results(folder, MADE), folder / "report")
    return folder


@pytest.fixture
def published(results, tmp_path):
    return shutil.copytree(results / "report", tmp_path / "published")


def edit(path: Path, name: str, **values) -> None:
    table = pd.read_csv(path)
    for column, value in values.items():
        table.loc[table["stage"] == name, column] = value
    table.to_csv(path, index=False)


def test_a_study_is_inside_its_own_bands(results, published, capsys):
    assert main([str(results), "--published", str(published)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 of 3 stages are inside." and lines[0].startswith("sft: inside; score ")
    assert "4 of 4 steps of the curve are in its band" in lines[1] and "curve" not in lines[0]


def test_a_score_outside_of_the_band_is_named(results, published, capsys):
    edit(published / "comparison.csv", "b", **{"mean@2": 0.1, "mean@2_low": 0.08, "mean@2_high": 0.12})
    assert main([str(results), "--published", str(published)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("a: inside") and lines[2].startswith("b: OUTSIDE; score ")
    assert "band 7.2 to 12.8 %" in lines[2]  # 10 -+ 2 x sqrt(1 + 3/3)
    assert lines[-1] == "2 of 3 stages are inside."


def test_another_machine_is_said_where_a_stage_is_outside(results, published, capsys):
    table = pd.read_csv(published / "provenance.csv").assign(cpu="AMD EPYC", trl="1.12.0")
    table.to_csv(published / "provenance.csv", index=False)
    assert main([str(results), "--published", str(published)]) == 0
    assert "rounded" not in capsys.readouterr().out
    edit(published / "comparison.csv", "b", **{"mean@2": 0.1, "mean@2_low": 0.08, "mean@2_high": 0.12})
    assert main([str(results), "--published", str(published)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("Sums are rounded differently: cpu ") and ", published on AMD EPYC" in said[-2]
    (published / "provenance.csv").unlink()  # of an older report
    assert main([str(results), "--published", str(published)]) == 1
    assert "rounded" not in capsys.readouterr().out


def test_a_curve_outside_of_the_band_is_named(results, published):
    edit(published / "curves.csv", "a", lowest_seed=0.9, highest_seed=1.0)
    found = {held.stage: held for held in compare(results / "report", published)}
    assert found["a"].score_inside and not found["a"].curve_inside and not found["a"].inside and found["b"].inside


def test_the_band_by_hand():
    row = pd.Series({"mean@8": 0.5, "mean@8_low": 0.46, "mean@8_high": 0.55, "seeds": 3})
    assert band(row, "mean@8", 3) == pytest.approx((0.5 - 0.04 * sqrt(2), 0.5 + 0.05 * sqrt(2)))
    assert band(row, "mean@8", 1) == pytest.approx((0.42, 0.6))  # one seed of mine: twice as wide
    row[["mean@8", "mean@8_high"]] = 0.99, 1.0
    assert band(row, "mean@8", 1)[1] == 1.0  # a share is never more


def test_steps_of_a_curve_by_hand():
    theirs = pd.DataFrame({"generated_tokens": [100, 300], "lowest_seed": [0.0, 0.2], "highest_seed": [0.2, 0.4]})
    mine = pd.DataFrame({"generated_tokens": [50, 100, 200, 300, 400], "accuracy": [0.9, 0.1, 0.31, 0.2, 0.9]})
    assert inside_curve(mine, theirs) == (3, 2)  # at 200 the band is 0.1 to 0.3; 50 and 400 are not covered
    assert inside_curve(mine.head(0), theirs) == (0, 0)
    assert inside_curve(mine.assign(measured_on="dev problems"), theirs) == (0, 0)  # the published one is of others


def test_other_settings_are_said(results, published):
    path = published / "estimators.csv"
    table = pd.read_csv(path, index_col=0)
    table.loc["clip_high", "a"] = "0.28"
    table.to_csv(path)
    found = {held.stage: held.other_settings for held in compare(results / "report", published)}
    assert found == {"sft": [], "a": ["clip_high"], "b": []}


def test_what_cannot_be_compared_is_refused(results, published, tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere/comparison.csv is missing: let the study finish first"):
        compare(tmp_path / "nowhere", published)
    for name in ("sft", "a", "b"):
        edit(published / "comparison.csv", name, stage=f"other_{name}")
    with pytest.raises(SettingsError, match="have no stage in common"):
        compare(results / "report", published)
    table = pd.read_csv(published / "comparison.csv")
    table.rename(columns={"mean@2": "mean@8"}).to_csv(published / "comparison.csv", index=False)
    with pytest.raises(SettingsError, match=r"has mean@8, which .* has not; evaluation.samples must be the same"):
        compare(results / "report", published)


def test_a_study_without_rl_has_no_curves(tmp_path):
    made = write_results(tmp_path, study(sft=stage("sft", "base", score=0.3, steps=10, trainer="own")))
    write(tmp_path, made, tmp_path / "report")
    (held,) = compare(tmp_path / "report", tmp_path / "report")
    assert held.inside and held.steps == 0


@pytest.mark.parametrize("name", ["default", "ladder", "r1"])
def test_published_tables_are_inside_their_own_bands(name):
    folder = PROJECT / "results" / "published" / name
    assert all(held.inside for held in compare(folder, folder))


@pytest.mark.parametrize("name", ["ladder", "r1"])
def test_a_study_is_held_against_the_tables_of_its_name(name, tmp_path, capsys):
    shutil.copytree(PROJECT / "results" / "published" / name, tmp_path / name / "report")
    assert main([str(tmp_path / name)]) == 0
    assert "0 of 0" not in capsys.readouterr().out
    (tmp_path / name).rename(tmp_path / "mine")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "mine")])
    assert "published/mine" in capsys.readouterr().err


def test_the_command_runs_and_refuses_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "evaluation.report", "compare-published", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 2 and "comparison.csv is missing" in done.stderr and "Traceback" not in done.stderr
