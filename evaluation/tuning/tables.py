"""Tables about tuning: every trial, each tuned stage beside its default, the expected best of n configurations.

Scores of trials are of the dev split and of the tuning's seeds. Scores of stages are of the test split and of the
stages' own seeds.
"""

from typing import Any

import numpy as np
import pandas as pd

from evaluation.collect import Judge, Stage, columns
from evaluation.pairs import TUNING, differences
from evaluation.statistics.robust import expected_best
from evaluation.tuning.space import shown

COSTS = ("generated_tokens", "train_seconds")


def tuning_tables(stages: dict[str, Stage], table: pd.DataFrame, metric: str, judge: Judge) -> dict[str, pd.DataFrame]:
    """The tables by name, none for a study that tunes nothing; table: the comparison, for scores and costs."""
    tuned = [stage for stage in stages.values() if stage.tuning is not None]
    if not tuned:
        return {}
    rows = {row["stage"]: row for _, row in table.iterrows()}
    return {
        "tuning": pd.concat([trials(stage) for stage in tuned], ignore_index=True),
        "tuned": pd.DataFrame([_tuned_row(stage, stages, rows, metric, judge) for stage in tuned]),
        "expected_best": pd.concat([_expected(stage) for stage in tuned], ignore_index=True),
    }


def trials(stage: Stage) -> pd.DataFrame:
    """One row a trial: its settings, its score on dev with the 95 % interval, whether it was chosen, what it cost."""
    assert stage.tuning is not None
    rows = [
        {
            "stage": stage.name,
            "trial": number,
            **trial["values"],
            "metric": stage.tuning["metric"],
            "score": trial["score"],
            "score_low": trial["low"],
            "score_high": trial["high"],
            "chosen": number == stage.tuning["chosen"],
            **{name: trial[name] for name in (*COSTS, "evaluate_seconds")},
        }
        for number, trial in enumerate(stage.tuning["trials"])
    ]
    return pd.DataFrame(rows)


def default_of(stage: Stage, stages: dict[str, Stage]) -> Stage | None:
    """The stage that differs from this one in not being tuned, and in nothing else; first the one that it is like."""
    found = [
        other
        for other in stages.values()
        if other.tuning is None and other.kind == stage.kind and _is_tuning(differences(other, stage)[0])
    ]
    return min(found, key=lambda other: other.name != stage.like, default=None)


def _is_tuning(counted: list) -> bool:
    return [key for key, _, _ in counted] == [TUNING]


def _tuned_row(stage: Stage, stages: dict[str, Stage], rows: dict, metric: str, judge: Judge) -> dict[str, Any]:
    """Default and tuned side by side on test, the spread over configurations on dev, and the cost of both."""
    assert stage.tuning is not None
    default, found, row = default_of(stage, stages), trials(stage), rows[stage.name]
    chosen = stage.tuning["trials"][stage.tuning["chosen"]]
    made = {
        "stage": stage.name,
        "default": default.name if default else None,
        "trials": len(found),
        "chosen": shown(chosen["values"]),
        **columns("tuned_score", stage.interval(metric)),
    }
    if default is not None:
        judged = judge(stage, default)
        made |= columns("default_score", default.interval(metric)) | columns("difference", judged.interval)
        made["verdict"] = judged.verdict
    low, first, middle, third, high = np.quantile(found["score"], [0, 0.25, 0.5, 0.75, 1])
    spread = {"lowest": low, "median": middle, "highest": high, "interquartile_range": third - first}
    made |= {f"dev_{name}": value for name, value in spread.items()}
    for name in COSTS:
        made |= {name: row[name], f"{name}_with_tuning": row[f"{name}_with_tuning"]}
    return made


def _expected(stage: Stage) -> pd.DataFrame:
    best = expected_best(trials(stage)["score"].to_numpy())
    return pd.DataFrame({"stage": stage.name, "n": range(1, len(best) + 1), "expected_best": best})


def with_tuning_costs(table: pd.DataFrame, stages: dict[str, Stage]) -> pd.DataFrame:
    """The comparison, with the cost of one run and of the tuning before it; as it is where nothing is tuned.

    The tuning's seconds are those of the trials' training and of their evaluation on dev.
    """
    spent = {name: trials(stage) for name, stage in stages.items() if stage.tuning is not None}
    if not spent:
        return table
    extra = {
        "generated_tokens": {name: found["generated_tokens"].sum() for name, found in spent.items()},
        "train_seconds": {
            name: (found["train_seconds"] + found["evaluate_seconds"]).sum() for name, found in spent.items()
        },
    }
    costs = {f"{name}_with_tuning": table[name] + table["stage"].map(extra[name]) for name in COSTS}
    return table.assign(**costs)
