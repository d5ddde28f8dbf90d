"""The rows of the ledger as settings: each claim with the rules by which its verdict is computed.

A claim has rules, each one question to a published table, to a closed form or to unit tests; or it says what would be
needed to ask. No verdict is written in a row.
"""

from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, PositiveFloat

from algos.pieces.settings import SettingsError, from_dict, one_of, settings
from evaluation.claims.exact import NUMBERS

ROWS = Path(__file__).parent / "rows"
IDS = [f"C{number:02}" for number in range(1, 91)]
Want = Literal["higher", "lower", "not worse", "equal"]
MARGINS = {"higher": 0.01, "lower": 0.01, "not worse": 0.02, "equal": 0.02}  # of shares


@settings
class Difference:
    """Two arms of a study: stage - against."""

    study: str
    stage: str
    against: str
    want: Want
    metric: str = "mean@k"  # of comparison.csv; mean@k is paired, all others are differences of two intervals
    margin: PositiveFloat | None = None  # in the metric's unit; null: 0.01 for higher and lower, else 0.02

    @property
    def least(self) -> float:
        return MARGINS[self.want] if self.margin is None else self.margin

    @property
    def says(self) -> str:
        what = f"{self.study}: {self.metric} of {self.stage} - {self.against}"
        return (
            what
            + {
                "higher": f" above 0, and at least {self.least:g}",
                "lower": f" below 0, and at most {-self.least:g}",
                "not worse": f" above {-self.least:g}",
                "equal": f" within {self.least:g} of 0",
            }[self.want]
        )


@settings
class Cell:
    """A number of a published table, or the sum of several."""

    table: str  # STUDY/TABLE below results/published
    column: str
    where: dict[str, str | tuple[str, ...]] = field(default_factory=dict)  # column -> its value, or values

    @property
    def chosen(self) -> str:
        return ", ".join(value if isinstance(value, str) else " + ".join(value) for value in self.where.values())

    @property
    def says(self) -> str:
        return f"{self.table}, {self.column} of {self.chosen}"


@settings
class Value:
    """A number of a table, or a ratio of two, against a range."""

    of: Cell
    over: Cell | None = None  # divides
    saving: bool = False  # 1 - the ratio
    low: float | None = None  # supported at and above
    high: float | None = None  # supported at and below
    refuted_below: float | None = None  # null: low
    refuted_above: float | None = None  # null: high

    def __post_init__(self):
        if self.low is None and self.high is None:
            raise SettingsError("value: write low, high or both: without a bound nothing is asked.")
        if self.saving and self.over is None:
            raise SettingsError("value: saving is 1 - of / over; write over.")

    @property
    def asked(self) -> str:
        """The number in words."""
        words = ("1 - " if self.saving else "") + self.of.says
        if self.over is None:
            return words
        same = (self.of.table, self.of.column) == (self.over.table, self.over.column)
        return f"{words} over {f'that of {self.over.chosen}' if same else self.over.says}"

    @property
    def says(self) -> str:
        return f"{self.asked} {bounds(self.low, self.high)}"


@settings
class Exact:
    """A number that no run can change, against a range."""

    number: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        one_of(self.number, NUMBERS, "exact: number")
        if self.low is None and self.high is None:
            raise SettingsError(f"exact: {self.number} needs low, high or both.")

    @property
    def says(self) -> str:
        return f"{NUMBERS[self.number][0]} {bounds(self.low, self.high)}"


@settings
class UnitTests:
    """Unit tests; what it means for the claim that they pass."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]  # FILE::FUNCTION
    passing: Literal["supported", "refuted"] = "supported"

    @property
    def says(self) -> str:
        return f"{', '.join(self.names)} {'pass' if self.passing == 'supported' else 'fail'}"


@settings
class Rule:
    """One question, of one form."""

    difference: Difference | None = None
    value: Value | None = None
    exact: Exact | None = None
    tests: UnitTests | None = None

    def __post_init__(self):
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            raise SettingsError(f"a rule is one of difference, value, exact, tests, got {', '.join(given) or 'none'}.")

    @property
    def form(self) -> Difference | Value | Exact | UnitTests:
        return next(form for f in fields(self) if (form := getattr(self, f.name)) is not None)


@settings
class Claim:
    """One row of the ledger."""

    id: str
    claim: str
    source: (
        str  # S0 the literature; introductions: S1 to GRPO and R1, S2 to PPO, S3 to its code, S4 to pipelines of RLHF
    )
    kind: str  # E: experiment, M: measurement or model, U: unit test
    rules: tuple[Rule, ...] = ()
    combine: Literal["all", "any"] = "all"  # of several rules: what supports the claim
    limits: str = ""  # what the rules do not cover
    needs: str = ""  # a claim without rules: what would decide it

    def __post_init__(self):
        one_of(self.id, IDS, "id")
        if bool(self.rules) == bool(self.needs):
            raise SettingsError("write rules, or needs where nothing here decides the claim; not both.")

    @property
    def supported_if(self) -> str:
        return f"; {'and' if self.combine == 'all' else 'or'} ".join(rule.form.says for rule in self.rules)


def bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"in {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def read(folder: Path = ROWS) -> list[Claim]:
    """All claims, by their id. Raises SettingsError that names the file, the row and the key of a mistake."""
    claims = [claim for path in sorted(folder.glob("*.yaml")) for claim in _read_file(path)]
    ids = [claim.id for claim in claims]
    for name in IDS:
        if ids.count(name) != 1:
            raise SettingsError(f"{folder}: {name} must stand once, got {ids.count(name)} rows.")
    return sorted(claims, key=lambda claim: claim.id)


def _read_file(path: Path) -> list[Claim]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(rows, list):
        raise SettingsError(f"{path.name}: expected a list of claims.")
    return [from_dict(Claim, row, f"{path.name}, {_name(row, number)}") for number, row in enumerate(rows, 1)]


def _name(row: object, number: int) -> str:
    return str(row["id"]) if isinstance(row, dict) and "id" in row else f"row {number}"
