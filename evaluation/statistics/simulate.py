"""Studies that never ran, with known accuracies: how often the intervals hold them, and how often equal stages differ.

python -m evaluation.statistics.simulate [--studies 2000]      writes results/statistics/*.csv

Every simulated checkpoint answers a question right with a probability that has a part for the stage, the seed, the
question, and both together, on the logit scale. Intervals and verdicts come from the functions that the report uses.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from algos.training.stage.environment import environment
from evaluation.statistics import Interval, Spread, mean_interval, share_interval, spread, student
from evaluation.statistics.robust import exact_share, failed
from evaluation.statistics.verdicts import EQUAL, HIGHER, LOWER, Comparison, Judgement, judge
from evaluation.tasks.files import write_json

OUT = Path("results/statistics")
MARGIN = 0.02
GAP = 0.05  # a true difference, of which is counted how often it is named
COLLAPSED = -4.0  # logit of a collapsed seed's accuracy, 2 %
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)  # the mean over a standard normal, as a sum


@dataclass(frozen=True)
class World:
    """Where checkpoints come from. Standard deviations are on the logit scale."""

    seeds: int
    questions: int = 400
    level: float = 1.6  # of the accuracy
    question_sd: float = 1.3
    seed_sd: float = 0.06  # about one point, as between the seeds of the default study
    cell_sd: float = 0.5
    samples: int = 8
    collapse: float = 0.0  # probability that a seed's checkpoint answers nearly nothing

    def mean(self, shift: float = 0.0) -> float:
        """The accuracy over all seeds and questions, of seeds that do not collapse."""
        sd = np.sqrt(self.question_sd**2 + self.seed_sd**2 + self.cell_sd**2)
        return float((expit(self.level + shift + sd * POINTS) * WEIGHTS).sum() / WEIGHTS.sum())

    def shift(self, gap: float) -> float:
        """How much higher the level of a stage is that is better by this gap."""
        return float(brentq(lambda shift: self.mean(shift) - self.mean() - gap, -9, 9))

    def draw(self, rng: np.random.Generator, shifts: tuple[float, ...] = (0.0,), noise: tuple[float, ...] = ()):
        """Scores (stages, seeds, questions), and each seed's level (stages, seeds).

        shifts: what each stage's level has more; noise: by how much each stage's seeds vary more than the others'.
        """
        stages, questions = len(shifts), rng.normal(0, self.question_sd, self.questions)
        factors = np.array(noise or [1.0] * stages)[:, None]
        levels = self.level + np.array(shifts)[:, None] + factors * rng.normal(0, self.seed_sd, (stages, self.seeds))
        levels = np.where(rng.random(levels.shape) < self.collapse, COLLAPSED, levels)
        cells = rng.normal(0, self.cell_sd, (stages, self.seeds, self.questions))
        right = rng.binomial(self.samples, expit(levels[..., None] + questions + cells))
        return right / self.samples, levels


def before(found: Spread) -> Interval:
    """The earlier interval: Satterthwaite's with two seeds, too, symmetric, and of no width where all is equal."""
    half = student(found.freedom) * np.sqrt(found.variance)
    return Interval(found.mean, found.mean - half, found.mean + half)


def holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def coverage(world: World, studies: int, rng: np.random.Generator) -> dict[str, float]:
    """Percent of studies whose interval of one stage's accuracy, and of a difference of two, holds the true one."""
    truth, rows = world.mean(), []
    for _ in range(studies):
        (scores, other), levels = world.draw(rng, shifts=(0.0, 0.0))
        interval = share_interval(scores)
        rows.append(
            {
                "covers": holds(interval, truth),
                "covers_before": holds(before(spread(scores)), truth),
                "covers_this_seed": holds(interval, replace(world, seed_sd=0.0, level=levels[0, 0]).mean()),
                "difference_covers": holds(mean_interval(scores - other), 0.0),
                "difference_covers_before": holds(before(spread(scores - other)), 0.0),
                "width": interval.high - interval.low,
            }
        )
    return dict(100 * pd.DataFrame(rows, dtype=float).mean())


def collapse(world: World, studies: int, rng: np.random.Generator) -> dict[str, float]:
    """Percent of studies in which each number that is reported of a stage with collapsing seeds is right."""
    typical = world.mean()
    truth = (1 - world.collapse) * typical + world.collapse * replace(world, level=COLLAPSED, seed_sd=0.0).mean()
    rows = []
    for _ in range(studies):
        (scores,), _ = world.draw(rng)
        seeds = scores.mean(axis=1)
        bad = failed(seeds)
        rows.append(
            {
                "mean_covers": holds(share_interval(scores), truth),
                "without_failed_covers": holds(share_interval(scores[~bad]), typical),
                "failed_share_covers": holds(exact_share(int(bad.sum()), len(bad)), world.collapse),
                "median_within_5_points": abs(np.median(seeds) - typical) < 0.05,
            }
        )
    return dict(100 * pd.DataFrame(rows, dtype=float).mean())


def verdicts(scores: np.ndarray) -> dict[tuple[int, int], Judgement]:
    """The verdict of each pair (first, second) of stages with the same start, first minus second."""
    stages, seeds, _ = scores.shape
    pairs = list(combinations(range(stages), 2))
    spreads = [spread(scores[a] - scores[b]) for a, b in pairs]
    compared = [Comparison(found, found.mean, pool="all") for found in spreads]
    return dict(zip(pairs, judge(compared, {"all": (stages - 1) * (seeds - 1)}, MARGIN), strict=True))


def null(world: World, stages: int, studies: int, rng: np.random.Generator, noise=()) -> dict[str, float]:
    """Percent of studies of equal stages that name any difference."""
    named, earlier = 0, 0
    for _ in range(studies):
        scores, _ = world.draw(rng, (0.0,) * stages, noise)
        found = verdicts(scores)
        named += any(f.verdict in (HIGHER, LOWER) for f in found.values())
        earlier += any(before(f.spread).excludes_zero for f in found.values() if f.spread is not None)
    return {"named": 100 * named / studies, "named_before": 100 * earlier / studies}


def unequal(world: World, stages: int, studies: int, rng: np.random.Generator) -> dict[str, float]:
    """The first stage is better than the others: by the margin, how many studies call it equal to one of them; and by
    a larger gap, how many of the differences are named, and what the report says it could have named."""
    wrong, right, detectable = 0, [], []
    for _ in range(studies):
        scores, _ = world.draw(rng, (world.shift(MARGIN), *(0.0,) * (stages - 1)))
        found = verdicts(scores)
        wrong += any(found[0, other].verdict == EQUAL for other in range(1, stages))
        scores, _ = world.draw(rng, (world.shift(GAP), *(0.0,) * (stages - 1)))
        found = verdicts(scores)
        right += [found[0, other].verdict == HIGHER for other in range(1, stages)]
        detectable += [found[0, other].detectable for other in range(1, stages)]
    return {
        "equal_at_margin": 100 * wrong / studies,
        "found": 100 * float(np.mean(right)),
        "detectable_points": 100 * float(np.median(detectable)),
    }


def coverage_rows(studies: int) -> Iterator[dict]:
    worlds: dict[str, dict[str, Any]] = {
        "seeds as in the default study": {},
        "seeds five times as far apart": {"seed_sd": 0.3},
        "64 questions": {"questions": 64},
        "one answer a question": {"samples": 1, "seed_sd": 0.15},
        "nearly all right": {"level": 5.0},
        "nearly all wrong, 16 questions": {"level": -6.0, "questions": 16},
    }
    for name, settings in worlds.items():
        for seeds in (1, 2, 3, 5, 10):
            world = World(seeds, **settings)
            found = coverage(world, studies, np.random.default_rng(0))
            if seeds > 1:
                found["covers_this_seed"] = np.nan
            yield {"case": name, "seeds": seeds, "accuracy": 100 * world.mean(), **found}


def collapse_rows(studies: int) -> Iterator[dict]:
    for seeds in (2, 3, 5, 10):
        yield {"seeds": seeds, **collapse(World(seeds, collapse=0.1), studies, np.random.default_rng(0))}


def null_rows(studies: int) -> Iterator[dict]:
    noises = {"alike": 1.0, "one stage's vary five times as much": 5.0}
    for stages in (5, 10, 35):
        for seeds in (3, 5):
            for name, factor in noises.items():
                noise = (factor, *(1.0,) * (stages - 1))
                found = null(World(seeds), stages, studies, np.random.default_rng(0), noise)
                row = {"stages": stages, "seeds": seeds, "seeds_are": name, "studies": studies, **found}
                if factor == 1:
                    fewer = max(studies // 10, 1)
                    row["unequal_studies"] = fewer
                    row |= unequal(World(seeds), stages, fewer, np.random.default_rng(1))
                yield row


TABLES = {"coverage": coverage_rows, "collapse": collapse_rows, "null": null_rows}


def provenance(path: Path) -> None:
    """Writes the command, commit, packages and machine that made tables."""
    write_json(path, {"command": sys.orig_argv[1:], **environment()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies a row")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the tables")
    parser.add_argument("--table", choices=TABLES, action="append", help="only this table")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.table or TABLES:
        found = []
        for row in TABLES[name](args.studies):
            found.append(row)
            print(name, *(f"{k}={v:.4g}" if isinstance(v, float) else v for k, v in row.items()), flush=True)
        pd.DataFrame(found).to_csv(args.out / f"{name}.csv", index=False, float_format="%.4g")
    provenance(args.out / "simulate.json")


if __name__ == "__main__":
    main()
