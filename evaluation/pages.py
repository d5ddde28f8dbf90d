"""Published numbers -> the tables and sentences of README.md and docs/*.md, so that no result is typed by hand.

By hand: python -m evaluation.pages

A page holds blocks. The marker of a block names a CSV file and some of its columns, and may choose rows by values. The
text between the marker and the end is written by this command: a table, or within a sentence (not at the beginning of a
line, where Markdown reads the rest of the line as HTML) one value, or the number of the rows that are chosen. In a row
of a table the marker's | is written \\|, or Markdown would end the cell there.

    <!-- table: results/published/default/comparison.csv | stage, mean@8, minus_start | stage = grpo, gspo -->
    <!-- end -->
    GRPO reaches <!-- value: results/published/default/comparison.csv | mean@8 | stage = grpo --><!-- end --> %.
    <!-- count: results/published/claims/claims.csv | verdict = refuted --><!-- end --> claims are refuted.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.collect import COUNTS
from evaluation.findings import in_words, probability, row_interval
from evaluation.statistics.verdicts import ONE_SEED

PROJECT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- ((?:table|value|count): .*?) -->)(.*?)(<!-- end -->)", re.DOTALL)
DIFFERENCE = re.compile(r"((greedy|other_.*|pass@\d+)_)?minus_|difference$")  # columns in points with a sign
FOR_ONE_SEED = f"; {ONE_SEED}]"
PERCENT = re.compile(r"dev_|.*_(median|iqm)$")  # columns in percent without an interval
DETECTABLE = re.compile(r"\d+_seeds")  # points that so many seeds detect
HEADERS = {
    "true_gap": "true difference, points",
    "minus_start": "minus its start, points",
    "minus_own": "TRL minus own, points",
    "difference": "difference, points",
    "clip_fraction": "clipped, %",
    "format_rate": "format, %",
    "detectable": "detectable, points",
    "train_seconds": "training, s",
    "state_megabytes": "model states, MB",
    **{f"{part}_megabytes": f"{part}, MB" for part in ("weights", "gradients", "optimizer")},
    "peak_megabytes": "peak, MB",
    "text_loss": "loss on text, nats",
    **{f"dev_{which}": f"{which} trial on dev, %" for which in ("lowest", "median", "highest")},
    "text_loss_minus_start": "loss on text minus its start, nats",
}
TEXT_LOSSES = ("text_loss", "text_loss_minus_start")  # in nats a token
SIMULATED = (  # percent of simulated studies, and points
    *("covers", "covers_before", "covers_this_seed", "difference_covers", "difference_covers_before"),
    *("mean_covers", "without_failed_covers", "failed_share_covers", "median_within_5_points", "accuracy", "width"),
    *("named", "named_before", "equal_at_margin", "found", "detectable_points"),
)
NUMBERS: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(SIMULATED, lambda value: f"{value:.1f}"),
    "standard_deviation": lambda value: f"{value:.2f}",
    "detectable": lambda value: f"{100 * value:.1f}",
    "p_different": probability,
    "p_equal": probability,
    "probability_of_improvement": lambda value: f"{value:.2f}",
    "clip_fraction": lambda value: f"{100 * value:.2f}",
    "state_megabytes": lambda value: f"{value:.1f}",
    **dict.fromkeys(("weights_megabytes", "gradients_megabytes", "optimizer_megabytes"), lambda value: f"{value:.2f}"),
    "peak_gigabytes": lambda value: f"{value:.1f}",
    "response_tokens": lambda value: f"{value:.1f}",
    "distinct_answers": lambda value: f"{value:.1f}",
}


class Unfilled(Exception):
    """Why a block keeps the text that it has."""


@dataclass(frozen=True)
class Block:
    """One table or value of a page, as its marker asks for it."""

    form: str  # table, value or count
    file: str
    columns: list[str]
    chosen: list[tuple[str, str]]  # columns, and the values of the rows that are shown

    def text(self, project: Path) -> str:
        """What stands between marker and end. Raises Unfilled if the file, a column or a row is missing."""
        path = project / self.file
        if not path.is_file():
            raise Unfilled(f"{self.file} is missing")
        frame = pd.read_csv(path)
        missing = [column for column in (*self.columns, *(column for column, _ in self.chosen)) if column not in frame]
        if missing:
            raise Unfilled(f"{self.file} has no column {', '.join(missing)}")
        for column, values in self.chosen:
            frame = choose(frame, column, values)
        forms = {"table": table, "value": value, "count": lambda chosen, _: str(len(chosen))}
        return forms[self.form](frame, self.columns)


def parse(marker: str) -> Block:
    """The block of a marker: form: file | columns | column = values | column = values; a count has no columns."""
    form, _, asked = marker.partition(": ")
    file, *rest = [part.strip() for part in re.split(r" \\?\| ", asked)]
    columns = [] if form == "count" else names(rest.pop(0))
    pairs = [condition.partition(" = ") for condition in rest]
    return Block(form, file, columns, [(column, values) for column, _, values in pairs])


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def choose(frame: pd.DataFrame, column: str, values: str) -> pd.DataFrame:
    """The rows with this value, or one of these values, in the order of the file. Raises Unfilled for one of no row."""
    texts = frame[column].astype(str)
    wanted = [values] if values in set(texts) else names(values)
    missing = [name for name in wanted if name not in set(texts)]
    if missing:
        raise Unfilled(f"no row has the {column} {', '.join(missing)}")
    return frame[texts.isin(wanted)]


def table(frame: pd.DataFrame, columns: list[str]) -> str:
    """The rows as lines of Markdown, below the line of the marker."""
    cells = [[cell(row, column) for column in columns] for _, row in frame.iterrows()]
    heads = [header(column, frame) for column in columns]
    for at in range(len(columns)):  # said once where it holds for the whole column
        if all(FOR_ONE_SEED in line[at] or not line[at] for line in cells) and any(line[at] for line in cells):
            heads[at] += f" ({ONE_SEED})"
            for line in cells:
                line[at] = line[at].replace(FOR_ONE_SEED, "]")
    lines = [heads, ["---"] * len(columns), *cells]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def value(frame: pd.DataFrame, columns: list[str]) -> str:
    """One cell of one row."""
    if (len(frame), len(columns)) != (1, 1):
        raise Unfilled(f"a value is of 1 row and 1 column, got {len(frame)} and {len(columns)}")
    return cell(frame.iloc[0], columns[0])


def is_share(column: str, row: pd.Series | pd.DataFrame) -> bool:
    return f"{column}_low" in row and column not in (*COUNTS, *TEXT_LOSSES, "tokens_per_second")


def header(column: str, frame: pd.DataFrame) -> str:
    """The column's name in words, with its unit."""
    plain = column.replace("_", " ")
    if DIFFERENCE.match(column):
        return HEADERS.get(column, f"{plain}, points")
    return HEADERS.get(column, f"{plain}, %" if is_share(column, frame) else plain)


def cell(row: pd.Series, column: str) -> str:
    """One value: percentages and points with their intervals, other numbers by NUMBERS, text as it is."""
    value = row[column]
    if pd.isna(value):
        return ""
    if column == "value":
        return measured(row)
    if column in TEXT_LOSSES:
        return nats(row, column)
    if is_share(column, row):
        return in_words(row_interval(row, column), sign=bool(DIFFERENCE.match(column)))
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if PERCENT.match(column):
        return f"{100 * value:.1f}"
    if DETECTABLE.fullmatch(column):
        return f"{value:.1f}"
    return NUMBERS.get(column, lambda number: f"{number:,.0f}")(value)


def nats(row: pd.Series, column: str) -> str:
    """A loss on text, or its change, which has a sign."""
    form = "+.3f" if column == "text_loss_minus_start" else ".3f"
    value, low, high = (format(row[name], form) for name in (column, f"{column}_low", f"{column}_high"))
    return f"{value} [{low}, {high}]"


def measured(row: pd.Series) -> str:
    """A figure of evaluation.bench with its interval, to three digits; its unit is a column of its own."""
    value, low, high = (f"{x:#.3g}" if abs(x) < 100 else f"{x:,.0f}" for x in row[["value", "low", "high"]])
    return value if pd.isna(row["low"]) else f"{value} [{low}, {high}]"


def pages(project: Path = PROJECT) -> list[Path]:
    return [project / "README.md", *sorted((project / "docs").glob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """The marker and the present text of each block of a page."""
    return [(found[2], found[3]) for found in BLOCK.finditer(text)]


def check_place(before: str, marker: str) -> None:
    """Raises Unfilled where Markdown would not show what stands after a marker; before: its line up to it."""
    if marker.startswith("table: "):
        return
    if not before.strip():
        raise Unfilled("a value or count may not begin a line")
    if before.startswith("|") and re.search(r"(?<!\\)\|", marker):
        raise Unfilled("in the row of a table write \\| for |")


def filled(text: str, project: Path, left: Callable[[str], None]) -> str:
    """A page's text with every block filled; `left` is told of each block that keeps its text, and why."""

    def replace(found: re.Match) -> str:
        try:
            check_place(text[: found.start()].rpartition("\n")[2], found[2])
            return found[1] + parse(found[2]).text(project) + found[4]
        except Unfilled as reason:
            left(f"{reason}: {found[2]}")
            return found[0]

    return BLOCK.sub(replace, text)


def fill(project: Path = PROJECT) -> tuple[list[str], list[str]]:
    """Write all blocks into all pages; the pages that changed, and a sentence for each block that is left as it is."""
    changed: list[str] = []
    left: list[str] = []
    for page in pages(project):
        name, old = page.relative_to(project).as_posix(), page.read_text(encoding="utf-8")
        reasons: list[str] = []
        new = filled(old, project, reasons.append)
        left += [f"{name}: {reason}" for reason in reasons]
        if new != old:
            page.write_text(new, encoding="utf-8")
            changed.append(name)
    return changed, left


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False).parse_args()
    changed, left = fill()
    print(f"Written: {', '.join(changed) or 'nothing'}.")
    for reason in left:
        print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(1 if left else 0)


if __name__ == "__main__":
    main()
