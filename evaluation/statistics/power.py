"""Seeds and questions that a difference needs, from the variances that a study has measured.

python -m evaluation.statistics.power results/default/report     writes results/statistics/*.csv

The pairwise table of a report holds, for each pair of RL stages, the parts of the squared standard error of their
difference. Their means over the pairs give three variances: between seeds, between questions (one stage is better at
some of them than the other), and of single cells (sampling). A study of S seeds and Q questions then has the squared
standard error  seed / S + question / Q + cell / (S Q).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm

from algos.pieces.settings import SettingsError, refusals
from evaluation.statistics import Spread, student
from evaluation.statistics.simulate import OUT, provenance
from evaluation.statistics.verdicts import ONE_SEED, POWER

SEEDS, QUESTIONS = (2, 3, 5, 8, 10, 20, 40), (100, 400, 1319, 5000)  # 1,319 problems has GSM8K's test split
DIFFERENCES = (0.01, 0.02, 0.03, 0.05, 0.10)
MOST_SEEDS = 1000
MIDDLES = (np.arange(500) + 0.5) / 500  # quantiles over which the measured standard error is averaged
NEEDED = ["paired_seeds", "interval_for", "questions", "seed_part", "question_part", "cell_part"]


@dataclass(frozen=True)
class Variances:
    """Of the difference of two stages: of a seed's true difference, of a question's, and of one cell."""

    seed: float
    question: float
    cell: float

    def parts(self, seeds: int, questions: int) -> tuple[float, float]:
        """What the seeds' and the questions' part of the squared standard error are on average."""
        both = self.cell / (seeds * questions)
        return self.seed / seeds + both, self.question / questions + both

    def power(self, difference: float, seeds: int, questions: int) -> float:
        """The probability that the 95 % interval of a single pair excludes 0 on the right side."""
        by_seeds, by_questions = self.parts(seeds, questions)
        variance = by_seeds + self.question / questions
        freedom = variance**2 / (by_seeds**2 / (seeds - 1) + by_questions**2 / (questions - 1))
        freedom = min(max(freedom, seeds - 1), (seeds - 1) * questions) if seeds > 2 else 1
        measured = np.sqrt(variance * chi2.ppf(MIDDLES, freedom) / freedom)  # standard errors, each as likely
        half = np.maximum(student(freedom) * measured, Spread(0.0, 0.0, 0.0, 0.0, seeds, questions).floor())
        return float(norm.sf((half - difference) / np.sqrt(variance)).mean())

    def detectable(self, seeds: int, questions: int) -> float:
        """The smallest difference that is found in 80 % of studies."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if self.power(middle, seeds, questions) >= POWER else (middle, high)
        return high

    def seeds_for(self, difference: float, questions: int) -> int | None:
        """The fewest seeds that find the difference in 80 % of studies; None where more questions are needed."""
        for seeds in range(2, MOST_SEEDS + 1):
            if self.power(difference, seeds, questions) >= POWER:
                return seeds
        return None


def variances(table: pd.DataFrame) -> Variances:
    """Of the pairs with at least two seeds, means of the moments; a negative variance is 0."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise SettingsError(f"the pairwise table has no column {', '.join(missing)}: report the study again.")
    rows = table[(table["paired_seeds"] > 1) & (table["interval_for"] != ONE_SEED)].dropna(subset=NEEDED)
    if rows.empty:
        raise SettingsError("the pairwise table has no pair with two seeds: their variance is not known.")
    seeds, questions = rows["paired_seeds"], rows["questions"]
    cell = rows["cell_part"] * seeds * questions
    seed = rows["seed_part"] * seeds - cell / questions
    question = rows["question_part"] * questions - cell / seeds
    return Variances(*(max(float(values.mean()), 0.0) for values in (seed, question, cell)))


def power_table(found: Variances) -> pd.DataFrame:
    """One row a number of questions: the detectable difference for each number of seeds, in points."""
    return pd.DataFrame(
        {"questions": questions, **{f"{s}_seeds": 100 * found.detectable(s, questions) for s in SEEDS}}
        for questions in QUESTIONS
    )


def needed_table(found: Variances) -> pd.DataFrame:
    """One row a difference in points: the seeds that it needs for each number of questions."""
    return pd.DataFrame(
        {
            "true_gap": 100 * gap,
            **{f"with_{q}_questions": found.seeds_for(gap, q) or f"over {MOST_SEEDS}" for q in QUESTIONS},
        }
        for gap in DIFFERENCES
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("report", type=Path, help="folder of a report, or of a published study, with pairwise.csv")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the tables")
    args = parser.parse_args()
    path = args.report / "pairwise.csv"
    with refusals():
        if not path.is_file():
            raise SettingsError(f"{path} is missing: report the study again.")
        found = variances(pd.read_csv(path))
    args.out.mkdir(parents=True, exist_ok=True)
    sources = {"between seeds": found.seed, "between questions": found.question, "single cells": found.cell}
    measured = pd.DataFrame(
        {"source": name, "standard_deviation": 100 * np.sqrt(value)} for name, value in sources.items()
    )
    tables = {"variances": measured, "power": power_table(found), "seeds_needed": needed_table(found)}
    for name, table in tables.items():
        table.to_csv(args.out / f"{name}.csv", index=False, float_format="%.3g")
        print(table.to_string(index=False), end="\n\n")
    provenance(args.out / "power.json")


if __name__ == "__main__":
    main()
