"""Hold the scores and learning curves of a finished study against published ones: is every stage inside its band?

By hand: python -m evaluation.report compare-published results/default --published results/published/default

Status 0: all stages that both have are inside. Status 1: one is outside.

The published interval of a stage with n seeds is for the mean of all seeds. The mean of m other seeds has an error of
its own. Its variance is at most n/m times the published one: at most, because the same test problems add no error. So
the band of a score is the published interval, each half of it times sqrt(1 + n/m). The band of a curve goes from the
lowest to the highest published seed; a curve is inside if at least half of its steps are.

Another processor or another version of a library rounds sums differently. A stage that is made once, such as a cold
start, is then another one, and all stages that start from it move with it. No band holds that: where a stage is
outside, the command says what differs.
"""

import argparse
import re
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd

from algos.pieces.settings import SettingsError, refusals
from evaluation.report.updates import measured_on

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
MEAN = re.compile(r"mean@\d+")
ROUNDING = ("cpu", "gpu", "torch", "transformers", "trl")  # columns of provenance.csv that decide how sums are rounded


@dataclass(frozen=True)
class Held:
    """One stage's score and curve, and the band of each; shares of 1."""

    stage: str
    score: float
    low: float
    high: float
    steps: int  # of the curve, within the published range of the x axis; 0: there is none
    steps_inside: int
    other_settings: list[str]  # rows of the table of estimators in which the two differ

    @property
    def score_inside(self) -> bool:
        return self.low <= self.score <= self.high

    @property
    def curve_inside(self) -> bool:
        return 2 * self.steps_inside >= self.steps

    @property
    def inside(self) -> bool:
        return self.score_inside and self.curve_inside

    def __str__(self) -> str:
        score, low, high = (f"{100 * value:.1f}" for value in (self.score, self.low, self.high))
        text = f"{self.stage}: {'inside' if self.inside else 'OUTSIDE'}; score {score} %, band {low} to {high} %"
        if self.steps:
            text += f"; {self.steps_inside} of {self.steps} steps of the curve are in its band"
        if self.other_settings:
            text += f"; other settings: {', '.join(self.other_settings)}"
        return text


def compare(report: Path, published: Path) -> list[Held]:
    """Of every stage that both have. Raises SettingsError if there is none, or the scores are of another kind."""
    mine, theirs = (table(folder, "comparison") for folder in (report, published))
    metric = next(name for name in map(str, theirs) if MEAN.fullmatch(name))
    if metric not in mine:
        raise SettingsError(f"{published} has {metric}, which {report} has not; evaluation.samples must be the same.")
    rows = {row["stage"]: row for _, row in mine.iterrows()}
    common = [row for _, row in theirs.iterrows() if row["stage"] in rows]
    if not common:
        raise SettingsError(f"{report} and {published} have no stage in common.")
    curves = [table(folder, "curves", "stage") for folder in (report, published)]
    settings = [table(folder, "estimators", "algorithm") for folder in (report, published)]
    return [
        Held(
            row["stage"],
            rows[row["stage"]][metric],
            *band(row, metric, rows[row["stage"]]["seeds"]),
            *inside_curve(*(curve[curve["stage"] == row["stage"]] for curve in curves)),
            other_settings(row["stage"], *settings),
        )
        for row in common
    ]


def table(folder: Path, name: str, needed: str = "") -> pd.DataFrame:
    """A table of a report. One that only some studies have, of RL, may be missing or empty: then with no rows."""
    path = folder / f"{name}.csv"
    if not path.is_file() and not needed:
        raise SettingsError(f"{path} is missing: let the study finish first.")
    if needed and (not path.is_file() or not path.read_text(encoding="utf-8").strip().strip('"')):
        return pd.DataFrame(columns=[needed])
    return pd.read_csv(path)


def other_machine(report: Path, published: Path) -> list[str]:
    """What the two tables of provenance say differently of hardware and libraries: "cpu A, published on B"."""
    mine, theirs = (table(folder, "provenance", "stage") for folder in (report, published))
    said = []
    for name in [name for name in ROUNDING if name in mine and name in theirs]:
        ours, published_on = (", ".join(sorted({str(x) for x in frame[name].dropna()})) for frame in (mine, theirs))
        if ours != published_on:
            said.append(f"{name} {ours or 'none'}, published on {published_on or 'none'}")
    return said


def band(row: pd.Series, metric: str, seeds: int) -> tuple[float, float]:
    wider = sqrt(1 + row["seeds"] / seeds)
    mean, low, high = row[[metric, f"{metric}_low", f"{metric}_high"]]
    return max(0.0, mean - wider * (mean - low)), min(1.0, mean + wider * (high - mean))


def inside_curve(mine: pd.DataFrame, theirs: pd.DataFrame) -> tuple[int, int]:
    """Steps of my curve that the published one covers, and how many of them lie in its band, over generated tokens.

    None if one of the two is missing, or is of dev problems and the other one of training prompts.
    """
    if mine.empty or theirs.empty or measured_on(mine) != measured_on(theirs):
        return 0, 0
    x = theirs["generated_tokens"].to_numpy()
    covered = mine[mine["generated_tokens"].between(x.min(), x.max())]
    low, high = (np.interp(covered["generated_tokens"], x, theirs[name]) for name in ("lowest_seed", "highest_seed"))
    y = covered["accuracy"].to_numpy()
    return len(covered), int(((low <= y) & (y <= high)).sum())


def other_settings(stage: str, mine: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """The rows of the tables of estimators in which the stage's column differs."""
    if stage not in mine or stage not in theirs:
        return []
    columns = [frame.set_index(frame.columns[0])[stage].astype(str) for frame in (mine, theirs)]
    return [str(key) for key in columns[1].index if key in columns[0] and columns[0][key] != columns[1][key]]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report compare-published",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the study's results folder")
    parser.add_argument("--published", type=Path, help="folder of published tables (default: those of RESULTS's name)")
    args = parser.parse_args(words)
    with refusals():
        folders = args.results / "report", args.published or PUBLISHED / args.results.name
        found = compare(*folders)
    for held in found:
        print(held)
    outside = [held.stage for held in found if not held.inside]
    print(f"{len(found) - len(outside)} of {len(found)} stages are inside.")
    if outside and (others := other_machine(*folders)):
        print(f"Sums are rounded differently: {'; '.join(others)}. A stage made once, such as a cold start, is then")
        print("another one, and what starts from it moves with it: compare the differences between stages.")
    return 1 if outside else 0
