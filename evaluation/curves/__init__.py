"""Learning curves of the RL stages, and the sigmoid that is fitted to each.

A curve is the accuracy on dev problems where every RL stage has measured it, so that one figure compares like with
like; else that on the prompts of each step, whose course is partly the order of the prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from evaluation.collect import Stage, columns, rl_stages
from evaluation.curves.sigmoid import NotFitted, fit_seeds

SCALING = ("stage", "seeds", "measurements", "dev_problems", "start", "fitted")


def measured_on(stages: dict[str, Stage]) -> str:
    """What the curves of a study are measured on, in words: "dev problems" or "training prompts"."""
    runs = rl_stages(stages)
    dev = bool(runs) and all(len(frame) for stage in runs for frame in stage.whole_dev)
    return "dev problems" if dev else "training prompts"


def curve(stage: Stage, x: str, y: str) -> pd.DataFrame:
    """Mean over seeds of metric y of the steps against metric x, step by step, with the lowest and highest seed.

    Each seed's y is averaged over 3 neighboring steps: one rollout batch of a few hundred responses is noisy.
    """
    xs = [frame["step_seconds"].cumsum() if x == "seconds" else frame[x] for frame in stage.whole]
    return _over_seeds(xs, [frame[y].rolling(3, min_periods=1, center=True).mean() for frame in stage.whole])


def accuracy_curve(stage: Stage, x: str, on: str) -> pd.DataFrame:
    """Accuracy against x = step, generated_tokens or seconds: mean over seeds, lowest and highest seed.

    on: as measured_on says. Seconds are of training alone, without start-up and dev, for our loop and TRL's alike.
    """
    if on == "training prompts":
        return curve(stage, x, "accuracy")
    seeds = zip(stage.whole_dev, stage.whole, strict=True)
    xs = [dev[x] if x != "seconds" else _seconds(dev, steps) for dev, steps in seeds]
    return _over_seeds(xs, [frame["dev_accuracy"] for frame in stage.whole_dev])


def _seconds(dev: pd.DataFrame, steps: pd.DataFrame) -> pd.Series:
    """Seconds of training until each measurement; dev's `step` counts the steps that are done."""
    until = np.concatenate([[0.0], steps["step_seconds"].cumsum()])
    return pd.Series(until[dev["step"]])


def _over_seeds(xs: Sequence[pd.Series], ys: Sequence[pd.Series]) -> pd.DataFrame:
    if not ys:  # no run came to its end
        return pd.DataFrame(columns=["x", "mean", "low", "high"], dtype=float)
    rows = min(len(values) for values in ys)  # a budget of tokens may end one seed's run earlier
    places, values = (np.array([s.to_numpy()[:rows] for s in columns], dtype=float) for columns in (xs, ys))
    return pd.DataFrame(
        {"x": places.mean(axis=0), "mean": values.mean(axis=0), "low": values.min(axis=0), "high": values.max(axis=0)}
    )


def curves(stages: dict[str, Stage]) -> pd.DataFrame:
    """The learning curves of the RL stages as numbers, against steps, generated tokens and seconds."""
    tables, on = [], measured_on(stages)
    for stage in rl_stages(stages):
        steps, tokens, seconds = (accuracy_curve(stage, x, on) for x in ("step", "generated_tokens", "seconds"))
        table = tokens.rename(
            columns={"x": "generated_tokens", "mean": "accuracy", "low": "lowest_seed", "high": "highest_seed"}
        )
        table.insert(1, "seconds", seconds["x"])
        table.insert(0, "step", steps["x"])
        table.insert(0, "stage", stage.name)
        tables.append(table.assign(measured_on=on))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def scaling(stages: dict[str, Stage]) -> pd.DataFrame:
    """One row for each RL stage with dev accuracy: its sigmoid over generated tokens, or why there is none."""
    rows = [_scaling_row(stage) for stage in rl_stages(stages) if stage.whole_dev and all(map(len, stage.whole_dev))]
    return pd.DataFrame(rows, columns=None if rows else SCALING)


def _scaling_row(stage: Stage) -> dict[str, Any]:
    tokens = [frame["generated_tokens"].to_numpy(dtype=float) for frame in stage.whole_dev]
    shares = [frame["dev_accuracy"].to_numpy(dtype=float) for frame in stage.whole_dev]
    row: dict[str, Any] = {
        "stage": stage.name,
        "seeds": len(tokens),
        "measurements": sum(map(len, shares)),
        "dev_problems": stage.settings["dev_problems"],
        "start": float(np.mean([values[0] for values in shares])),
    }
    try:
        found = fit_seeds(tokens, shares)
    except NotFitted as reason:
        return row | {"fitted": f"no: {reason}"}
    fitted = {**columns("asymptote", found.asymptote), **columns("half_tokens", found.half)}
    return row | {"fitted": "yes", **fitted, "exponent": found.exponent, "interval_for": found.interval_for}
