"""The user's own rows: JSONL, JSON, CSV, TSV or Parquet files, or a dataset on the hub.

A field holds the question, or a conversation (a list of {role, content}), which is then the prompt as it is. Another
holds the answer: a worked solution, the answer alone (text or a number), or a list of accepted answers.
"""

import csv
import io
import random
import re
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from algos.pieces.settings import SettingsError, settings
from evaluation.tasks.files import decoded, parsed, read_jsonl
from evaluation.tasks.rows import distinct

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
OURS = ("id", "prompt", "messages", "extract", "compare", "accepted")  # what a row says to the stages; no file sets it
ROLES = ("system", "user", "assistant")


@settings
class OwnRowsConfig:
    """Where the rows are and what their fields are called."""

    train: str  # a file, or a split of the hub's dataset
    test: str  # the same; only the evaluation reads it
    dev: str | None = None  # the same; null: a tenth of train
    demonstrations: str | None = None  # the same; null: train
    hub_id: str | None = None  # a dataset on the hub; train and test are then its splits
    hub_config: str | None = None
    hub_revision: str | None = None  # a commit of the dataset, so that the same rows are loaded next year
    question: str = "question"  # field with the question's text, or with a conversation
    answer: str = "answer"  # field with the worked solution, or with the answer or answers alone
    accepted: str | None = None  # field with the answer or answers, beside a worked solution
    encoding: str = "utf-8"
    sizes: dict[str, PositiveInt] = field(default_factory=dict)  # at most so many rows of a split, by its name
    # train questions that are in test but for case, spaces and punctuation
    near_duplicates: Literal["refuse", "drop", "keep"] = "refuse"

    def __post_init__(self):
        for key, path in self._given.items():
            if Path(path).suffix not in FORMATS:
                raise ValueError(f"{key}: {path!r} must end in {', '.join(FORMATS)}, or hub_id must name its dataset")
            if not Path(path).is_file():
                raise ValueError(f"{key}: {path} does not exist")

    @property
    def _given(self) -> dict[str, str]:
        """The files by split; none where the rows come from the hub."""
        splits = {} if self.hub_id else {key: getattr(self, key) for key in ("train", "test", "dev", "demonstrations")}
        return {key: path for key, path in splits.items() if path is not None}

    @property
    def files(self) -> list[Path]:
        """The user's own files."""
        return [Path(path) for path in self._given.values()]


def load(config: OwnRowsConfig, sizes: dict[str, int | None], seed: int) -> dict[str, list[dict]]:
    """Splits train, dev, test and demonstrations. Without a dev file, dev is a tenth of the train rows, drawn by seed.

    The sizes are config.sizes.
    """
    test = _rows(config, config.test)
    train = _without(_rows(config, config.train), test, config, "train")
    if config.dev is not None:
        dev = _rows(config, config.dev)
    else:
        random.Random(seed).shuffle(train)
        held_out = max(len(train) // 10, 1)
        dev, train = train[:held_out], train[held_out:]
    shown = train if config.demonstrations is None else _rows(config, config.demonstrations)
    shown = shown if shown is train else _without(shown, test, config, "demonstrations")
    splits = {"train": train, "dev": dev, "test": test, "demonstrations": shown}
    return {name: rows[: config.sizes.get(name)] for name, rows in splits.items()}


def _rows(config: OwnRowsConfig, source: str) -> list[dict]:
    where = source if config.hub_id is None else f"{config.hub_id}, split {source}"
    return distinct(
        [_row(raw, config, f"{where}, row {number}") for number, raw in enumerate(_raw(config, source), 1)],
        where,
    )


def _raw(config: OwnRowsConfig, source: str) -> list[dict]:
    if config.hub_id is not None:
        from datasets import load_dataset  # a slow import, which only downloads need

        dataset = load_dataset(config.hub_id, config.hub_config, split=source, revision=config.hub_revision)
        return [dict(row) for row in dataset]
    path = Path(source)
    if path.suffix == ".jsonl":
        return read_jsonl(path, config.encoding)
    if path.suffix == ".parquet":
        return _of_parquet(path)
    text = decoded(path, config.encoding)
    if path.suffix == ".json":
        return _objects(text, path)
    return _of_table(text, path, "\t" if path.suffix == ".tsv" else ",")


def _of_parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, NotImplementedError, pyarrow.ArrowException) as error:
        raise SettingsError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]}).") from None


def _of_table(text: str, path: Path, delimiter: str) -> list[dict]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise SettingsError(f"{path}: {error}.") from None
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


def _row(raw: dict, config: OwnRowsConfig, where: str) -> dict:
    for name in filter(None, (config.question, config.answer, config.accepted)):
        if raw.get(name) is None:
            raise SettingsError(f"{where}: no field {name!r}; its fields are {', '.join(map(repr, raw))}.")
    rest = {k: v for k, v in raw.items() if k not in (config.question, config.answer, *OURS)}
    return {**rest, **_asked(raw[config.question], where), **_answered(raw, config, where)}


def _asked(question, where: str) -> dict:
    if isinstance(question, str):
        return {"question": question}
    wanted = "text, or a list of {role, content} that ends with the user's turn"
    if not isinstance(question, list) or not question:
        raise SettingsError(f"{where}: the question must be {wanted}, got {str(question)[:80]!r}.")
    for turn in question:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise SettingsError(f"{where}: the question must be {wanted}, got the turn {str(turn)[:80]!r}.")
    if question[-1]["role"] != "user":
        raise SettingsError(f"{where}: the question must be {wanted}; it ends with {question[-1]['role']}'s.")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in question]
    return {"question": "\n".join(turn["content"] for turn in turns), "messages": turns}


def _answered(raw: dict, config: OwnRowsConfig, where: str) -> dict:
    answers = _list(raw[config.answer], where)
    if config.accepted is not None:
        return {"answer": "\n".join(answers), "accepted": _list(raw[config.accepted], where)}
    return {"answer": answers[0]} if len(answers) == 1 else {"answer": answers[0], "accepted": answers}


def _list(value, where: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, str | int | float) for v in values):
        raise SettingsError(f"{where}: an answer must be text, a number or a list of them, got {str(value)[:80]!r}.")
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]


def _without(rows: list[dict], test: list[dict], config: OwnRowsConfig, split: str) -> list[dict]:
    """The rows whose questions are not test questions, but for case, spaces and punctuation."""
    if config.near_duplicates == "keep":
        return rows
    tested = {_bare(row["question"]): row["question"] for row in test}
    near = [row["question"] for row in rows if _bare(row["question"]) in tested]
    if near and config.near_duplicates == "refuse":
        raise SettingsError(
            f"{len(near)} questions of {split} are in test too, but for case, spaces and punctuation; the first is "
            f"{near[0][:80]!r}. Take them out, or set near_duplicates: drop."
        )
    return [row for row in rows if _bare(row["question"]) not in tested]


def _bare(question: str) -> str:
    return re.sub(r"[\W_]+", "", question.casefold())
