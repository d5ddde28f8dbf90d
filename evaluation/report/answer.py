"""The page's answer in three sentences, computed from its tables: what is best, what is told apart, what it costs."""

import pandas as pd

from evaluation.findings import in_words, row_interval
from evaluation.statistics.verdicts import EQUAL, HIGHER, LOWER, NO_INTERVAL, ONE_SEED, UNKNOWN

COSTS = {"train_seconds": ("training takes", "s"), "peak_megabytes": ("the measured peak of memory is", "MB")}


def answer(table: pd.DataFrame, pairs: pd.DataFrame, pairwise: pd.DataFrame, k: int, margin: float) -> list[str]:
    """table: the comparison; pairs, pairwise: of all stages, and of RL stages with the same start; margin in points."""
    own = table[(table["kind"] == "rl") & (table["trainer"] != "trl")]
    compared, words = (table, "evaluated stages") if own.empty else (own, "RL stages of our own")
    return [
        best(compared, words, table, k),
        apart(pairs, "stages", margin) if pairwise.empty else apart(pairwise, "RL stages with the same start", margin),
        costs(compared, words),
    ]


def best(compared: pd.DataFrame, words: str, table: pd.DataFrame, k: int) -> str:
    row = compared.iloc[int(compared[f"mean@{k}"].argmax())]
    score = f"{in_words(row_interval(row, f'mean@{k}'))} % of the test problems when sampled (mean@{k})"
    gain = ""
    if row["from"] in set(table["stage"]):
        gain = f", {in_words(row_interval(row, 'minus_start'), sign=True)} points against its start, {row['from']}"
    if len(compared) == 1:
        return f"{row['stage']} solves {score}{gain}."
    return f"Of {len(compared)} {words}, {row['stage']} has the highest mean: {score}{gain}."


def apart(pairs: pd.DataFrame, words: str, margin: float) -> str:
    """How many pairs are told apart, with the largest difference, and how many are not."""
    if pairs.empty:
        return "No two stages are of one kind or have one start, so no pair is compared."
    told = pairs[pairs["verdict"].isin([HIGHER, LOWER])]
    parts = []
    if not told.empty:
        row = told.iloc[int(told["difference"].abs().argmax())]
        gap = in_words(row_interval(row, "difference"), sign=True)
        most = "this one" if len(told) == 1 else "most of all"
        parts.append(f"{len(told)} differ beyond chance ({most}: {row['stage']} minus {row['against']}, {gap} points)")
    meanings = {
        EQUAL: f"are equal within {margin:g} points",
        UNKNOWN: "cannot be told apart",
        ONE_SEED: "rest on one seed and have no verdict",
        NO_INTERVAL: "have no common seed and no verdict",
    }
    counts = pairs["verdict"].value_counts()
    parts += [f"{counts[verdict]} {meaning}" for verdict, meaning in meanings.items() if verdict in counts]
    return f"Of {len(pairs)} pairs of {words}, {', '.join(parts)}."


def costs(compared: pd.DataFrame, words: str) -> str:
    parts = []
    for column, (what, unit) in COSTS.items():
        rows = compared[compared[column] > 0]
        if rows.empty:
            continue
        low, high = (rows.iloc[int(place)] for place in (rows[column].argmin(), rows[column].argmax()))
        text = f"{what} {low[column]:,.0f} {unit} ({low['stage']})"
        if low["stage"] != high["stage"]:
            text = f"{what} from {low[column]:,.0f} ({low['stage']}) to {high[column]:,.0f} {unit} ({high['stage']})"
        parts.append(text)
    return f"Cost of the {words}: {', and '.join(parts)}." if parts else "No stage records what its training cost."
