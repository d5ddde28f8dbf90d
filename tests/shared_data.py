"""Rows of data that is not part of the project."""

import json
from pathlib import Path

import pytest


def rows_of(path: Path) -> list[dict]:
    """The rows of a file of `data_folder` (tests/conftest.py); where it is absent, the test is skipped by its name."""
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
