"""The section of the report about tuning: rows of text, and sentences that are computed from the tables."""

from itertools import combinations
from typing import Any

import pandas as pd

from evaluation.findings import in_words, row_interval
from evaluation.tuning.space import shown


def tuning_content(tables: dict[str, pd.DataFrame], k: int) -> dict[str, Any]:
    """The template's variable `tuning`; None where nothing is tuned."""
    if "tuned" not in tables:
        return {"tuning": None}
    tuned, best = tables["tuned"], tables["expected_best"]
    return {
        "tuning": {
            "metric": f"mean@{k}",
            "dev_metric": ", ".join(tables["tuning"]["metric"].unique()),
            "sentences": sentences(tuned),
            "rows": [_row(row) for _, row in tuned.iterrows()],
            "most": int(best["n"].max()),
            "best": [_best(str(name), group) for name, group in best.groupby("stage", sort=False)],
            "trials": [_trial(row) for _, row in tables["tuning"].iterrows()],
        }
    }


def _row(row: pd.Series) -> dict[str, str]:
    text = {name: _percent(row[f"dev_{name}"]) for name in ("lowest", "median", "highest", "interquartile_range")}
    text |= {name: row[name] for name in ("stage", "default", "trials", "chosen")}
    text |= {name: _interval(row, name) for name in ("default_score", "tuned_score", "difference")}
    text["verdict"] = row["verdict"] if isinstance(row.get("verdict"), str) else ""
    for name in ("generated_tokens", "train_seconds"):
        text[name], text[f"{name}_with_tuning"] = _count(row[name]), _count(row[f"{name}_with_tuning"])
    return text


def _trial(row: pd.Series) -> dict[str, Any]:
    score = row_interval(row, "score")
    names = [*map(str, row.index)]
    settings = row.loc[names[2 : names.index("metric")]].dropna()  # empty: a setting that another stage tunes
    return {
        "stage": row["stage"],
        "trial": row["trial"],
        "settings": shown(settings.to_dict()),
        "score": in_words(score),
        "chosen": row["chosen"],
    }


def _best(name: str, group: pd.DataFrame) -> dict[str, Any]:
    return {"stage": name, "values": [_percent(value) for value in group["expected_best"]]}


def _interval(row: pd.Series, name: str) -> str:
    interval = row_interval(row, name)
    return "" if interval is None else in_words(interval, sign=name == "difference")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}"


def sentences(tuned: pd.DataFrame) -> list[str]:
    """What tuning changed, and whether the order of the stages is another one after it."""
    pairs = tuned[tuned["default"].notna()]
    if pairs.empty:
        return []
    parts = [
        f"{word}: {', '.join(_gain(row) for _, row in group.iterrows())}"
        for word, group in pairs.groupby("verdict", sort=False)
    ]
    found = [f"Tuned minus default, in points: {'; '.join(parts)}."]
    if len(pairs) < 2:
        return found
    both = list(combinations([row for _, row in pairs.iterrows()], 2))
    moved = sum(_sign(a, b, "default_score") != _sign(a, b, "tuned_score") for a, b in both)
    untuned, tuned = (pairs.sort_values(f"{w}_score", ascending=False, kind="stable") for w in ("default", "tuned"))
    return [
        *found,
        f"Order of the means untuned: {', '.join(untuned['default'])}. Tuned: {', '.join(tuned['stage'])}. {moved} of "
        f"{len(both)} pairs are ordered otherwise; the verdicts of the pairs say which orders are more than chance.",
    ]


def _gain(row: pd.Series) -> str:
    return f"{row['stage']} {_interval(row, 'difference')}"


def _sign(a: pd.Series, b: pd.Series, name: str) -> int:
    return int(a[name] > b[name]) - int(a[name] < b[name])
