"""pass@k over k: how much more of the problems many responses solve than one."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage, columns
from evaluation.statistics import pass_at_k, share_interval


def passes(stages: dict[str, Stage], samples: int) -> pd.DataFrame:
    """pass@k of each stage for k = 1, 2, 4 and so on up to `samples`, unbiased, with 95 % intervals.

    Where the study asks for `evaluation.reach`, too, with its samples and on its problems: column `of` tells the two.
    """
    return pd.concat(
        [
            _rows(stage, most, "all problems" if most == samples else f"{_problems(stage, most)} problems")
            for most in sorted({most for stage in stages.values() for most in stage.reach})
            for stage in stages.values()
            if most in stage.reach
        ],
        ignore_index=True,
    )


def _problems(stage: Stage, most: int) -> int:
    return stage.grid(f"mean@{most}").shape[1]


def _rows(stage: Stage, most: int, of: str) -> pd.DataFrame:
    right = np.rint(most * stage.grid(f"mean@{most}")).astype(int)  # (seeds, questions), 0..most
    rows = []
    for k in [*(2**i for i in range(most.bit_length()) if 2**i < most), most]:
        by_count = np.array([pass_at_k(most, correct, k) for correct in range(most + 1)])
        rows.append({"stage": stage.name, "of": of, "k": k, **columns("pass", share_interval(by_count[right]))})
    return pd.DataFrame(rows)
