"""How the metrics of RL stages move along training: at the start, at the end, and at their highest."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage, columns, rl_stages
from evaluation.statistics import seed_interval

METRICS = (
    *("accuracy", "reward", "reward_reward_model", "entropy", "kl_to_ref_sequence", "approx_kl_k3", "ratio_max"),
    *("clip_fraction", "grad_norm", "explained_variance", "degenerate_groups", "response_tokens"),
)
POINTS = ("start", "end", "change", "highest")
PART = 5  # the start is the first fifth of the steps, the end the last


def dynamics(stages: dict[str, Stage]) -> pd.DataFrame:
    """One row a stage and metric: means over the first and the last fifth of the steps, the difference of the two, and
    the highest value of a step; each a mean over seeds with Student's interval. Metrics that a run lacks are left out.
    """
    rows = []
    for stage in rl_stages(stages):
        for metric in METRICS:
            if not stage.whole or not all(metric in frame and frame[metric].notna().any() for frame in stage.whole):
                continue
            by_seed = np.array([_points(frame[metric].dropna().to_numpy(dtype=float)) for frame in stage.whole])
            row = {"stage": stage.name, "metric": metric, "seeds": len(stage.whole)}
            for name, values in zip(POINTS, by_seed.T, strict=True):
                row |= columns(name, seed_interval(values))
            rows.append(row)
    return pd.DataFrame(rows)


def _points(values: np.ndarray) -> tuple[float, float, float, float]:
    """The POINTS of one seed's values (steps,)."""
    part = max(len(values) // PART, 1)
    start, end = values[:part].mean(), values[-part:].mean()
    return start, end, end - start, values.max()
