"""Published tables -> the tables in README.md and docs/*.md, so that no number in a page is typed by hand.

By hand: python -m evaluation.pages

A page holds a block for each table. The first line of a block names a CSV file and some of its columns, and may choose
rows by the values of one column. Everything between that line and the end is written by this command:

    <!-- table: results/published/default/comparison.csv | stage, mean@8, minus_start | stage = grpo, gspo -->
    <!-- end -->
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.collect import COUNTS
from evaluation.findings import in_words, row_interval

PROJECT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DIFFERENCE = re.compile(r"(greedy_)?minus_|difference$")  # columns in points with a sign
HEADERS = {
    "minus_start": "minus its start, points",
    "minus_own": "TRL minus own, points",
    "difference": "difference, points",
    "clip_fraction": "clipped, %",
    "format_rate": "format, %",
    "train_seconds": "training, s",
    "state_megabytes": "model states, MB",
    "peak_megabytes": "peak, MB",
}
NUMBERS = {
    "clip_fraction": lambda value: f"{100 * value:.2f}",
    "state_megabytes": lambda value: f"{value:.1f}",
    "response_tokens": lambda value: f"{value:.1f}",
    "distinct_answers": lambda value: f"{value:.1f}",
}


class Unfilled(Exception):
    """Why a block keeps the table that it has."""


class UnknownRow(Unfilled):
    """The file is there, with all columns, and without a row that the block asks for."""


@dataclass(frozen=True)
class Block:
    """One table of a page, as its first line asks for it."""

    file: str
    columns: list[str]
    chosen: tuple[str, list[str]] | None  # a column, and the values of the rows that are shown

    def table(self, project: Path) -> str:
        """The table as Markdown. Raises Unfilled if the file, a column or a row is missing."""
        path = project / self.file
        if not path.is_file():
            raise Unfilled(f"{self.file} is missing")
        frame = pd.read_csv(path)
        named = [*self.columns, *([self.chosen[0]] if self.chosen else [])]
        missing = [column for column in named if column not in frame]
        if missing:
            raise Unfilled(f"{self.file} has no column {', '.join(missing)}")
        rows = frame if self.chosen is None else choose(frame, *self.chosen)
        lines = [[header(column, frame) for column in self.columns], ["---"] * len(self.columns)]
        lines += [[cell(row, column) for column in self.columns] for _, row in rows.iterrows()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def parse(marker: str) -> Block:
    """The block of a marker's text: file | columns | column = values."""
    file, columns, *rest = [part.strip() for part in marker.split("|")]
    chosen = None
    if rest:
        column, _, values = rest[0].partition(" = ")
        chosen = (column.strip(), names(values))
    return Block(file, names(columns), chosen)


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def choose(frame: pd.DataFrame, column: str, values: list[str]) -> pd.DataFrame:
    """The rows with these values, in the order of the file. Raises UnknownRow for a value that no row has."""
    texts = frame[column].astype(str)
    missing = [value for value in values if value not in set(texts)]
    if missing:
        raise UnknownRow(f"no row has the {column} {', '.join(missing)}")
    return frame[texts.isin(values)]


def is_share(column: str, row: pd.Series | pd.DataFrame) -> bool:
    return f"{column}_low" in row and column not in (*COUNTS, "tokens_per_second")


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
    if is_share(column, row):
        return in_words(row_interval(row, column), sign=bool(DIFFERENCE.match(column)))
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return NUMBERS.get(column, lambda number: f"{number:,.0f}")(value)


def pages(project: Path = PROJECT) -> list[Path]:
    return [project / "README.md", *sorted((project / "docs").glob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """The marker and the present table of each block of a page."""
    return [(found[2], found[3]) for found in BLOCK.finditer(text)]


def filled(text: str, project: Path, left: Callable[[str], None]) -> str:
    """A page's text with every block filled; `left` is told of each block that keeps its table, and why."""

    def replace(found: re.Match) -> str:
        try:
            return found[1] + parse(found[2]).table(project) + found[4]
        except Unfilled as reason:
            left(str(reason))
            return found[0]

    return BLOCK.sub(replace, text)


def fill(project: Path = PROJECT) -> list[str]:
    """Write all tables into all pages; returns a sentence for each page that changed and each block left as it is."""
    said: list[str] = []
    for page in pages(project):
        name, old = page.relative_to(project).as_posix(), page.read_text(encoding="utf-8")
        reasons: list[str] = []
        new = filled(old, project, reasons.append)
        said += [f"{name}: a table is left as it is: {reason}." for reason in reasons]
        if new != old:
            page.write_text(new, encoding="utf-8")
            said.append(f"{name}: written.")
    return said


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False).parse_args()
    print("\n".join(fill()) or "Every table is up to date.")


if __name__ == "__main__":
    main()
