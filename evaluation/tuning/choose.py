"""The scores on dev of all trials of a stage -> the configuration that the stage runs with.

Reads the scores and records of the trials; writes one JSON file: every trial with its score and its cost, the number of
the chosen one, and the settings in which it differs from those that the stage is planned with. The highest score is
chosen, and of equal ones the first; a trial in which a run has failed is not, though its last good checkpoint has a
score. The score of the chosen trial is the highest of several, so it is too high by
chance; the stage's own score, with other seeds and on the test split, is not.
By hand, the JSON is that of `STUDY.tuning` in pipelines/plan.py:
    python -m evaluation.tuning.choose --tuning JSON --results results/STUDY --out tuning.json
"""

import argparse
from pathlib import Path

import numpy as np

from algos.pieces.settings import SettingsError, refusals
from evaluation.collect import finished_record, read_json, training_seconds
from evaluation.options import read_json as read_option
from evaluation.statistics import share_interval
from evaluation.tasks.files import write_json
from evaluation.tuning.space import FEWEST_DEV


def choose(results: Path, tuning: dict) -> dict:
    """The trials with their scores and costs, and the choice. SettingsError if one still runs, or all have failed."""
    trials = [_judged(results, trial, tuning["metric"], tuning["seeds"]) for trial in tuning["trials"]]
    whole = [number for number, trial in enumerate(trials) if trial["failed"] is None]
    if not whole:
        raise SettingsError(f"{tuning['stage']}: all trials have failed: {trials[0]['failed']}. Change the space.")
    chosen = max(whole, key=lambda number: (trials[number]["score"], -number))
    settings = tuning["trials"][chosen]["settings"]
    return {**tuning, "trials": trials, "chosen": chosen, "settings": settings}


def _judged(results: Path, trial: dict, metric: str, seeds: list[int]) -> dict:
    """A trial with its score on dev, the 95 % interval of it, and what the trial cost, summed over its seeds."""
    folder = results / "stages" / trial["stage"]
    runs = [finished_record(folder / f"seed{seed}") for seed in seeds]
    found = [read_json(folder / "dev" / f"seed{seed}" / "scores.json") for seed in seeds]
    if found[0]["problems"] < FEWEST_DEV:
        raise SettingsError(
            f"{trial['stage']}: the dev split has {found[0]['problems']} problems; tuning needs at least {FEWEST_DEV}."
        )
    interval = share_interval(np.array([scores["per_problem"][metric] for scores in found]))
    evaluations = [finished_record(folder / "dev" / f"seed{seed}") for seed in seeds]
    return {
        "stage": trial["stage"],
        "values": trial["values"],
        "score": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "generated_tokens": sum(run.get("generated_tokens", 0) for run in runs),
        "train_seconds": sum(sum(training_seconds(run).values()) for run in runs),
        "failed": next((run["failure"]["reason"] for run in runs if "failure" in run), None),
        "evaluate_seconds": sum(evaluation["seconds"] for evaluation in evaluations),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tuning", required=True, help="the trials and what they are judged by: JSON or a file of it")
    parser.add_argument("--results", required=True, type=Path, help="the study's results folder")
    parser.add_argument("--out", required=True, type=Path, help="file for the choice")
    args = parser.parse_args()
    with refusals():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, choose(args.results, read_option(args.tuning, "--tuning")))


if __name__ == "__main__":
    main()
