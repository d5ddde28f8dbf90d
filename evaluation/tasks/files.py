"""Rows in JSONL files, and values in JSON files."""

import json
from pathlib import Path

from algos.pieces.settings import SettingsError


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects of a JSONL file; SettingsError names the file and the line that holds no object."""
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"{path}: no such file.")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SettingsError(f"{path}, line {number}: not JSON ({error.msg}).") from None
            if not isinstance(row, dict):
                raise SettingsError(f"{path}, line {number}: expected one JSON object, got {type(row).__name__}.")
            rows.append(row)
    return rows


def write_jsonl(path: str | Path, rows) -> None:
    with Path(path).open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: str | Path, value) -> None:
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
