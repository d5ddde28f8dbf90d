"""The rows of a file, whatever its format: JSONL, JSON, CSV, TSV or Parquet; every value as JSON has it."""

import csv
import io
from collections.abc import Callable
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from algos.pieces.settings import SettingsError
from evaluation.tasks.files import decoded, parsed, read_jsonl

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_table(path: Path, encoding: str) -> list[dict]:
    """The rows of a file, by its ending. Raises SettingsError that names the file and the row."""
    if path.suffix == ".jsonl":
        return read_jsonl(path, encoding)
    if path.suffix == ".parquet":
        return _of_parquet(path)
    text = decoded(path, encoding)
    if path.suffix == ".json":
        return _objects(text, path)
    return _of_table(text, path, "\t" if path.suffix == ".tsv" else ",")


def as_json_has_it(row: dict) -> dict:
    """Times and decimals as text; what JSON has no form for, such as an image, is left out."""
    return {name: plain for name, value in row.items() if (plain := _plain(value)) is not None or value is None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return as_json_has_it(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):  # as some writers store text
        with suppress(UnicodeDecodeError):
            return value.decode()
    return value if isinstance(value, str | int | float | bool) else None


def _of_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        columns = [[_shortest(table.schema.field(i).type)(v) for v in table.column(i).to_pylist()]
                   for i in range(table.num_columns)]  # fmt: skip
    except (OSError, ValueError, NotImplementedError, pyarrow.ArrowException) as error:
        raise SettingsError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]}).") from None
    check_names(table.column_names, str(path))
    rows = zip(*columns, strict=True)
    return [as_json_has_it(dict(zip(table.column_names, row, strict=True))) for row in rows]


def _shortest(kind) -> Callable[[Any], Any]:
    """How to read a value of a pyarrow type: of 0.1 in 32 bits 0.1 is meant, and not the 0.10000000149 that it is."""
    import numpy
    import pyarrow.types as types

    if types.is_float32(kind) or types.is_float16(kind):
        number = numpy.float32 if types.is_float32(kind) else numpy.float16
        return lambda value: None if value is None else float(str(number(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _shortest(kind.value_type)
        return lambda values: None if values is None else [inner(value) for value in values]
    return lambda value: value


def _of_table(text: str, path: Path, delimiter: str) -> list[dict]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = list(reader)
    except csv.Error as error:
        raise SettingsError(f"{path}: {error}; write longer texts as JSONL.") from None
    check_names(reader.fieldnames or [], str(path))
    for number, row in enumerate(rows, 1):
        if None in row:
            raise SettingsError(
                f"{path}, row {number}: more cells than columns; quote a cell that holds a {delimiter!r}."
            )
    return rows


def _objects(text: str, path: Path) -> list[dict]:
    rows = parsed(text, str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{path}: expected a list of JSON objects; one object a line needs the ending .jsonl.")
    return rows


def check_names(names, where: str) -> None:
    """Raise SettingsError if two columns have one name."""
    for name in filter(None, names):  # columns without a name hold nothing
        if list(names).count(name) > 1:
            raise SettingsError(f"{where}: two columns are called {name!r}; rename one.")
