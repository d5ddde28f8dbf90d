"""The responses of a study's evaluations, as data of the page. They are untrusted: the page shows them as text."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from algos.pieces.settings import SettingsError
from evaluation.collect import Stage, record_folders
from evaluation.tasks.files import read_jsonl

MOST_BYTES = 8_000_000  # of responses and prompts in the page; the files have all
MOST_CHARACTERS = 4_000  # of one response or prompt in the page
SHORT = 200  # characters of an answer
FILE = "responses.jsonl"
Row = list[Any]  # of FIELDS
FIELDS = ("stage", "seed", "prompt", "sample", "right", "read", "tokens", "truncated", "text", "characters")


def embedded(value: object) -> Markup:
    """JSON for the inside of a script element: pure ASCII without <, > and &, so that no text ends the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def browser(
    results: Path, stages: dict[str, Stage], most_bytes: int = MOST_BYTES, most_characters: int = MOST_CHARACTERS
) -> dict:
    """What the page's browser of responses needs: prompts, rows of FIELDS, and how many rows there are in all.

    Of the same problems for all stages and seeds, problem by problem, until the page has enough.
    """
    prompts = Prompts(results / "data" / "test.jsonl", most_characters)
    rows: list[Row] = []
    used = 0
    paths = {
        (name, seed): folder / FILE
        for name, stage in stages.items()
        for seed, (_, folder) in zip(stage.seeds, record_folders(results, name, vars(stage)), strict=True)
    }
    for found in problem_by_problem(paths):
        fresh = prompts.new(found)
        made = [fields(stage, seed, prompts.place(row), row, most_characters) for stage, seed, row in found]
        size = len(embedded([fresh, made]))
        if used + size > most_bytes:
            made = [] if rows else fitting(made, most_bytes)
            rows += made
            break
        rows += made
        used += size
    total = sum(lines(path) for path in paths.values())
    return {
        "fields": FIELDS,
        "rows": rows,
        "prompts": prompts.kept(rows),
        "total": total,
        "most_characters": most_characters,
    }


class Prompts:
    """The prompts of the problems that the page shows, each once."""

    def __init__(self, path: Path, most_characters: int):
        self.texts = {problem["id"]: as_text(problem["prompt"]) for problem in read_jsonl(path)}
        self.places: dict[str, int] = {}
        self.list: list[dict] = []
        self.most_characters = most_characters

    def new(self, found: list[tuple[str, int, dict]]) -> list[dict]:
        """Take up the prompts of these rows; returns those that were not there yet."""
        before = len(self.list)
        for _, _, row in found:
            name = row["problem"]
            if name not in self.places:
                self.places[name] = len(self.list)
                text = self.texts.get(name, "")
                self.list.append(
                    {
                        "id": name,
                        "text": text[: self.most_characters],
                        "characters": len(text),
                        "gold": str(row.get("gold", ""))[:SHORT],
                    }
                )
        return self.list[before:]

    def place(self, row: dict) -> int:
        return self.places[row["problem"]]

    def kept(self, rows: list[Row]) -> list[dict]:
        """The prompts up to the last one that a row names."""
        return self.list[: max((row[FIELDS.index("prompt")] for row in rows), default=-1) + 1]


def as_text(prompt: str | list[dict]) -> str:
    """A prompt, or the messages of a chat as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, indent=1)


def fields(stage: str, seed: int, prompt: int, row: dict, most_characters: int) -> Row:
    """One row of FIELDS. Records of other versions may lack some of what is shown."""
    text, answer = row["response"], row.get("strict")
    graded = [int(row["correct"]), None if answer is None else str(answer)[:SHORT]]
    length = [row.get("tokens"), int(row.get("truncated", False))]
    return [stage, seed, prompt, row["sample"], *graded, *length, text[:most_characters], len(text)]


def problem_by_problem(paths: dict[tuple[str, int], Path]) -> Iterator[list[tuple[str, int, dict]]]:
    """The rows of all files, one problem after the other: the first problem of each file, then the second ones."""
    files = {key: groupby(stream(path), key=lambda row: row["problem"]) for key, path in paths.items()}
    while files:
        found = []
        for key in list(files):
            group = next(files[key], None)
            if group is None:
                del files[key]
            else:
                found += [(*key, row) for row in group[1]]
        if found:
            yield found


def stream(path: Path) -> Iterator[dict]:
    """The rows of a file, read as they are asked for. Raises SettingsError if there is none."""
    if not path.is_file():
        raise SettingsError(f"{path} is missing: the evaluation that writes it has not finished.")
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def fitting(rows: list[Row], most_bytes: int) -> list[Row]:
    """The first rows that fit."""
    kept, used = [], 0
    for row in rows:
        used += len(embedded(row))
        if used > most_bytes:
            break
        kept.append(row)
    return kept


def lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
