"""Tables -> the rows of the page and of its Markdown twins: text, and for a difference with a verdict its class."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import collect
from evaluation.findings import VERDICTS, in_words, percent, probability, row_interval

OTHER_PAIRS = 40  # pairs on the page that differ in more or less than one thing; pairs.csv has all
EXTRA = {  # tables that may be in the report's folder: the file's name, and title and caption on the page
    "claims": ("Claims", "What is claimed of the methods, and what this study says about it."),
}


def cell(row: pd.Series, name: str) -> dict:
    """A table cell: the mean, its interval below, and for a difference with a verdict the verdict's color."""
    interval, judged = row_interval(row, name), VERDICTS.get(name)
    if interval is None:
        return plain("")
    text, small = percent(interval, sign=judged is not None or name.endswith("minus_start"))
    return {"text": text, "small": small, "verdict": css(row[judged]) if judged else ""}


def css(verdict: str) -> str:
    return verdict.replace(" ", "-")


def shown(value: Any) -> Any:
    """A value of a table as it is; empty where the table has none."""
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else value


def plain(value: object) -> dict:
    """A table cell without an interval."""
    return {"text": str(shown(value)), "small": "", "verdict": ""}


def digits(value: float, form: str) -> str:
    """A number as text; empty where there is no measurement."""
    return "" if pd.isna(value) else format(value, form)


def number(value: float, form: str) -> dict:
    """A table cell with a number, empty where a stage of its kind has none."""
    return plain(digits(value, form))


def cost(row: pd.Series, name: str) -> dict:
    """A table cell with what a run cost, below it with the tuning before it where there was one."""
    made, whole = number(row[name], ",.0f"), digits(row.get(f"{name}_with_tuning", np.nan), ",.0f")
    return made | {"small": f"{whole} with tuning" if whole else ""}


def score_rows(table: pd.DataFrame, k: int) -> tuple[list[str], list[list[dict]]]:
    """Columns and cells of the page's main table."""
    scores = ("greedy", f"pass@{k}", f"maj@{k}")
    columns = ["stage", "kind", "from", "seeds", f"mean@{k}", "median seed", *scores, "failed seeds"]
    columns += ["minus its start", "TRL minus own"]
    columns += ["format", "truncated", "clipped", "tokens", "generated tokens", "training, s"]
    losses = [column for column in ("text_loss", "text_loss_minus_start") if column in table]
    columns += ["loss on text, nats", "its change"][: len(losses)]
    others = [column for column in (f"other_mean@{k}", f"other_mean@{k}_minus_start") if column in table]
    columns += [f"mean@{k} on the other task", "minus its start there"][: len(others)]
    rows = [
        [
            *(plain(row[name]) for name in ("stage", "kind", "from", "seeds")),
            cell(row, f"mean@{k}"),
            number(100 * row[f"mean@{k}_median"], ".1f"),
            *(cell(row, name) for name in (*scores, "failed_seeds", "minus_start", "minus_own")),
            number(100 * row["format_rate"], ".1f"),
            number(100 * row["truncation_rate"], ".1f"),
            number(100 * row["clip_fraction"], ".2f"),
            number(row["response_tokens"], ".1f"),
            cost(row, "generated_tokens"),
            cost(row, "train_seconds"),
            *(number(row[name], ".3f" if name == "text_loss" else "+.3f") for name in losses),
            *(cell(row, name) for name in others),
        ]
        for _, row in table.iterrows()
    ]
    return columns, rows


def markdown(table: pd.DataFrame, k: int, origin: str) -> str:
    """The main table as Markdown, with one line on where its numbers come from."""
    columns, rows = score_rows(table, k)
    cells = [[f"{c['text']} {c['small']}".strip() for c in row] for row in rows]
    return markdown_table(columns, cells, texts=3) + f"\n{origin}\n"


def markdown_table(columns: list[str], rows: list[list[str]], texts: int) -> str:
    """Lines of Markdown; the first columns are texts, the others numbers."""
    lines = [columns, ["---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pairwise_markdown(table: pd.DataFrame, margin: float, origin: str) -> str:
    """The pairs of RL stages with the same start, and how they are judged."""
    columns = ["stage", "against", "verdict", "difference, points", "p, adjusted", "p of equality, adjusted"]
    columns += ["detectable, points", "one setting", "what differs, against -> stage"]
    rows = [
        [
            row["stage"],
            row["against"],
            row["verdict"],
            in_words(row_interval(row, "difference"), sign=True),
            probability(row["p_different"]),
            probability(row["p_equal"]),
            digits(100 * row["detectable"], ".1f"),
            "yes" if row["one_setting"] else "",
            row["differs"].replace("|", "\\|"),
        ]
        for _, row in table.iterrows()
    ]
    rule = (
        f"Difference of the scores, stage - against, with its 95 % interval for new seeds and new questions. Verdicts "
        f"are adjusted for the number of pairs (Holm); equal means within {100 * margin:g} points (TOST, Holm)."
    )
    return markdown_table(columns, rows, texts=3) + f"\n{rule}\n{origin}\n"


def pair_rows(table: pd.DataFrame) -> list[dict]:
    """The pairs that the page shows: all that differ in one thing, and a limited number of others."""
    one = table["differences"] == 1
    shown = pd.concat([table[one], table[~one].head(OTHER_PAIRS)])
    return [
        {
            **row[["stage", "against", "like", "differences", "differs", "consequences"]],
            "difference": cell(row, "difference"),
            "p": probability(row["p_different"]),
            "detectable": digits(100 * row["detectable"], ".1f"),
            "verdict": row["verdict"],
            "seeds": row["paired_seeds"],
        }
        for _, row in shown.iterrows()
    ]


def cost_table(speed: pd.DataFrame, table: pd.DataFrame) -> dict:
    """Throughput by phase, and memory."""
    peaks = table.set_index("stage")
    rows = []
    for _, row in speed.iterrows():
        rate = digits(row["tokens_per_second"], ",.0f")
        if not np.isnan(row["tokens_per_second_low"]):
            rate += f" [{max(row['tokens_per_second_low'], 0):,.0f}, {row['tokens_per_second_high']:,.0f}]"
        rows.append(
            {
                "stage": row["stage"],
                "tokens/s": rate,
                **{f"{phase}, s": digits(row[f"{phase}_seconds"], ".1f") for phase in collect.phases_of(speed)},
                **{f"{p}, tokens/s": digits(row[f"{p}_tokens_per_second"], ",.0f") for p in ("generate", "update")},
                "model states, MB": digits(peaks.loc[row["stage"], "state_megabytes"], ".1f"),
                "peak, MB": digits(peaks.loc[row["stage"], "peak_megabytes"], ",.0f"),
            }
        )
    return as_table(pd.DataFrame(rows))


def as_table(table: pd.DataFrame) -> dict:
    """Columns and cells of a table without intervals."""
    rows = [[plain(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": [str(name) for name in table], "rows": rows}


def extra_tables(folder: Path) -> list[dict]:
    """The tables of EXTRA that are in the report's folder, as they are written there."""
    found = []
    for name, (title, caption) in EXTRA.items():
        path = folder / f"{name}.csv"
        if path.is_file():
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            found.append({"name": name, "title": title, "caption": caption, **as_table(table)})
    return found


def scaling_table(table: pd.DataFrame) -> dict:
    """The sigmoid of each learning curve, or why there is none."""
    rows = []
    for _, row in table.iterrows():
        cells = [row["stage"], digits(100 * row["start"], ".1f"), "", "", "", row["fitted"]]
        if row["fitted"] == "yes":
            low, high = (digits(row[f"half_tokens_{end}"], ",.0f") for end in ("low", "high"))
            cells[2:] = [
                in_words(row_interval(row, "asymptote")),
                digits(row["half_tokens"], ",.0f") + (f" [{low}, {high}]" if low else ""),
                digits(row["exponent"], ".1f"),
                row["interval_for"],
            ]
        rows.append([plain(value) for value in cells])
    columns = ["stage", "start, %", "asymptote, %", "half-way point, tokens", "exponent", "interval for"]
    return {"columns": columns, "rows": rows}


def baseline_rows(table: pd.DataFrame, baselines: dict[str, str], metric: str) -> list[dict]:
    rows = {row["stage"]: row for _, row in table.iterrows()}
    return [
        {
            "stage": trl,
            "own": own,
            "score": in_words(row_interval(rows[trl], metric)),
            "own_score": in_words(row_interval(rows[own], metric)),
            "difference": in_words(row_interval(rows[trl], "minus_own"), sign=True),
            "verdict": rows[trl]["against_own"],
            "css": css(rows[trl]["against_own"]),
            "seconds": " : ".join(digits(rows[name]["train_seconds"], ".0f") for name in (trl, own)),
        }
        for trl, own in baselines.items()
    ]
