"""pass@k over k: how much more of the problems many responses solve than one."""

import numpy as np
import pandas as pd

from evaluation.collect import Stage, columns
from evaluation.statistics import pass_at_k, share_interval


def passes(stages: dict[str, Stage], samples: int) -> pd.DataFrame:
    """pass@k of each stage for k = 1, 2, 4 and so on up to `samples`, unbiased, with 95 % intervals."""
    ks = [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]
    rows = []
    for stage in stages.values():
        right = np.rint(samples * stage.grid(f"mean@{samples}")).astype(int)  # (seeds, questions), 0..samples
        for k in ks:
            by_count = np.array([pass_at_k(samples, correct, k) for correct in range(samples + 1)])
            rows.append({"stage": stage.name, "k": k, **columns("pass", share_interval(by_count[right]))})
    return pd.DataFrame(rows)
