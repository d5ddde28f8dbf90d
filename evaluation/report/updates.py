"""Updates of the policy as an axis of the learning curves."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage, rl_stages


def with_updates(curves: pd.DataFrame, stages: dict[str, Stage]) -> pd.DataFrame:
    """The table of learning curves with the policy's updates until each of its rows, as means over seeds."""
    if curves.empty:
        return curves
    made, counts = curves.copy(), []
    for stage in rl_stages(stages):
        rows, done = curves[curves["stage"] == stage.name], updates(stage)
        if measured_on(rows) == "dev problems":
            counts.append(np.interp(rows["step"], np.arange(len(done)), done))  # there a step counts those before it
        else:
            counts.append(done[1 : len(rows) + 1])
    made.insert(list(curves).index("step") + 1, "updates", np.concatenate(counts))
    return made


def measured_on(curves: pd.DataFrame) -> str:
    """The problems that a table of learning curves is of; earlier tables do not say it."""
    return "training prompts" if curves.empty or "measured_on" not in curves else curves["measured_on"].iloc[0]


def updates(stage: Stage) -> np.ndarray:
    """Updates after 0, 1, ... steps: as recorded, or as the settings ask for where a trainer records none."""
    planned = stage.settings["epochs"] * stage.settings["minibatches"]
    if not stage.whole:  # no run came to its end
        return np.zeros(1)
    steps = min(len(frame) for frame in stage.whole)
    counts = [
        (frame["updates"] if "updates" in frame else pd.Series(planned, frame.index)).to_numpy()[:steps].cumsum()
        for frame in stage.whole
    ]
    return np.concatenate([[0.0], np.mean(counts, axis=0)])
