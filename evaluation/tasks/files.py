"""Rows in JSONL files, and values in JSON files."""

import codecs
import json
import re
from pathlib import Path

from algos.pieces.settings import SettingsError


def read_jsonl(path: str | Path, encoding: str = "utf-8") -> list[dict]:
    """The objects of a JSONL file; SettingsError names the file and the line that holds no object."""
    rows = []
    for number, line in enumerate(re.split("\r\n|\n|\r", decoded(path, encoding)), 1):  # not at U+2028, as splitlines
        if not line.strip():
            continue
        row = parsed(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise SettingsError(f"{path}, line {number}: expected one JSON object, got {type(row).__name__}.")
        rows.append(row)
    return rows


class TwiceError(Exception):
    """A key that stands twice in a JSON object."""


def _once(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(next(name for name in names if names.count(name) > 1))
    return made


def parsed(text: str, where: str):
    """The value of a JSON text; SettingsError says what is wrong, and in which line of several."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
        text.encode() if "\\u" not in text else json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise SettingsError(f"{where}: {error.object[error.start]!r} is half of a character; take it out.") from None
    except TwiceError as error:
        raise SettingsError(f"{where}: the key {str(error)!r} stands twice in an object; take one out.") from None
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise SettingsError(f"{where}{line}: not JSON ({error.msg}).") from None
    except RecursionError:
        raise SettingsError(f"{where}: nested too deeply.") from None
    except ValueError:  # Python reads no more digits than this
        raise SettingsError(f"{where}: a number of more than 4,300 digits; write it as text.") from None


def decoded(path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a file without a byte-order mark; SettingsError names the line that is in another encoding."""
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"{path}: no such file.")
    data = path.read_bytes()
    for mark, marked in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, encoding)):
        if data.startswith(mark):
            encoding = marked
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not {encoding}; save the file as UTF-8."
        ) from None
    except LookupError:
        raise SettingsError(f"{path}: no encoding is called {encoding!r}.") from None


def write_jsonl(path: str | Path, rows) -> None:
    with Path(path).open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: str | Path, value) -> None:
    Path(path).write_text(as_json(value), encoding="utf-8")


def as_json(value) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
