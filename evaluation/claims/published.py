"""Numbers of the published tables, with their intervals."""

import re
from dataclasses import dataclass
from functools import cache
from math import hypot, inf
from pathlib import Path

import pandas as pd

from evaluation.claims.ledger import Cell, Difference, Value
from evaluation.statistics import Interval
from evaluation.statistics.verdicts import ONE_SEED

K = re.compile(r"(\w+)@k")  # mean@k, pass@k: the table has its own k


class NotRun(Exception):
    """A table, a row or a column that a rule asks for is not published."""


@dataclass(frozen=True)
class Published:
    """The folder of published tables."""

    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise NotRun(f"{name}.csv is not published")
        return _read(path)

    def difference(self, asked: Difference) -> Interval:
        """stage - against: the paired interval, or that of two intervals taken as independent, which is wider."""
        if asked.metric == "mean@k":
            try:
                return self._paired(asked)
            except NotRun:
                pass  # tables of before pairs.csv had all pairs
        table = f"{asked.study}/comparison"
        mine, theirs = (self.cell(Cell(table, asked.metric, {"stage": s})) for s in (asked.stage, asked.against))
        below = hypot(mine.mean - mine.low, theirs.high - theirs.mean)
        above = hypot(mine.high - mine.mean, theirs.mean - theirs.low)
        mean = mine.mean - theirs.mean
        one_seed = any(
            found.one_seed and not self._starts(asked.study, arm, other)
            for found, arm, other in ((mine, asked.stage, asked.against), (theirs, asked.against, asked.stage))
        )
        return Interval(mean, mean - below, mean + above, one_seed)

    def _starts(self, study: str, arm: str, other: str) -> bool:
        """Whether all seeds of the other arm start from this one: its only seed is then all there is of it."""
        frame = self.table(f"{study}/comparison")
        return "from" in frame and bool((frame.loc[frame["stage"] == other, "from"] == arm).any())

    def _paired(self, asked: Difference) -> Interval:
        frame = self.table(f"{asked.study}/pairs")
        for one, other, sign in ((asked.stage, asked.against, 1), (asked.against, asked.stage, -1)):
            rows = frame[(frame["stage"] == one) & (frame["against"] == other)]
            if len(rows):
                row = rows.iloc[0]
                low, high = sorted((sign * row["difference_low"], sign * row["difference_high"]))
                return Interval(sign * row["difference"], low, high, row["verdict"] == ONE_SEED)
        raise NotRun(f"{asked.study}/pairs.csv has no row of {asked.stage} and {asked.against}")

    def value(self, asked: Value) -> Interval:
        """The number, the ratio, or 1 - the ratio; its relative error is that of both, taken as independent."""
        found = self.cell(asked.of)
        if asked.over is not None:
            found = ratio(found, self.cell(asked.over))
        return Interval(1 - found.mean, 1 - found.high, 1 - found.low, found.one_seed) if asked.saving else found

    def cell(self, asked: Cell) -> Interval:
        """A number, or the sum of several, without an interval where the table has none."""
        frame = self.table(asked.table)
        for column, wanted in asked.where.items():
            if column not in frame:
                raise NotRun(f"{asked.table}.csv has no column {column}")
            values = (wanted,) if isinstance(wanted, str) else wanted
            frame = frame[frame[column].astype(str).isin(values)]
        column = _own_k(asked.column, frame)
        if column not in frame or frame.empty or frame[column].isna().any():
            raise NotRun(f"{asked.table}.csv has no {asked.column} of {asked.chosen}")
        bounds = [f"{column}_low", f"{column}_high"]
        if len(frame) > 1 or not set(bounds) <= set(frame) or frame[bounds].isna().any(axis=None):
            total = float(frame[column].sum())
            return Interval(total, total, total)
        row = frame.iloc[0]
        one_seed = row.get("interval_for") == ONE_SEED or (row.get("kind") == "rl" and row.get("seeds") == 1)
        mean, low, high = (float(row[name]) for name in (column, *bounds))
        return Interval(mean, low, high, bool(one_seed))


def ratio(top: Interval, bottom: Interval) -> Interval:
    """top / bottom; that of numbers of one sign. A ratio to 0 is without bound."""
    one_seed = top.one_seed or bottom.one_seed
    if bottom.mean == 0:
        return Interval(inf, inf, inf, one_seed)
    mean = top.mean / bottom.mean
    if top.mean == 0:
        return Interval(0.0, top.low / bottom.mean, top.high / bottom.mean, one_seed)
    below = hypot((top.mean - top.low) / top.mean, (bottom.high - bottom.mean) / bottom.mean)
    above = hypot((top.high - top.mean) / top.mean, (bottom.mean - bottom.low) / bottom.mean)
    return Interval(mean, mean * (1 - below), mean * (1 + above), one_seed)


def _own_k(column: str, frame: pd.DataFrame) -> str:
    found = K.fullmatch(column)
    return next((c for c in frame.columns.astype(str) if found and re.fullmatch(rf"{found[1]}@\d+", c)), column)


@cache
def _read(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path)
    return frame.rename(columns={"run": "stage"}) if "stage" not in frame else frame  # tables of before stages
