"""The user's own rows: JSONL, JSON, CSV, TSV or Parquet files, or a dataset on the hub.

A field holds the question, or a conversation (a list of {role, content}), which is then the prompt as it is. Another
holds the answer: a worked solution, the answer alone (text or a number), or a list of accepted answers.
"""

import random
import re
import unicodedata
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from algos.pieces.settings import SettingsError, one_of, settings
from evaluation.tasks.formats import FORMATS, as_json_has_it, read_table
from evaluation.tasks.rows import SPLITS, WHERE, distinct

# what a row says to the stages; a file's own fields of these names stand in the row's `own`
OURS = ("question", "answer", "id", "prompt", "messages", "extract", "compare", "accepted", "own", WHERE)
TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\s\w]")
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
        for split in self.sizes:
            one_of(split, SPLITS, "sizes")
        for key, path in self._given.items():
            if Path(path).suffix not in FORMATS:
                raise ValueError(f"{key}: {path!r} must end in {', '.join(FORMATS)}, or hub_id must name its dataset")
            if not Path(path).is_file():
                raise ValueError(f"{key}: {path} does not exist")

    @property
    def _given(self) -> dict[str, str]:
        """The files by split; none where the rows come from the hub."""
        splits = {} if self.hub_id else {key: getattr(self, key) for key in SPLITS}
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
        dev = _without(_rows(config, config.dev), test, config, "dev")
    elif len(train) < 2:
        raise SettingsError(
            f"{config.train} has {len(train)} rows to train on, and dev is taken from them; give `dev:` or more rows."
        )
    else:
        random.Random(seed).shuffle(train)
        held_out = max(len(train) // 10, 1)
        dev, train = train[:held_out], train[held_out:]
    if config.demonstrations is None:
        shown = train
    else:
        taken = {row["question"] for row in dev} if config.dev is None else set()  # out of train, which it may repeat
        shown = _without(_rows(config, config.demonstrations), test, config, "demonstrations")
        shown = [row for row in shown if row["question"] not in taken]
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
        return [as_json_has_it(dict(row)) for row in dataset]
    return read_table(Path(source), config.encoding)


def _row(raw: dict, config: OwnRowsConfig, where: str) -> dict:
    for name in filter(None, (config.question, config.answer, config.accepted)):
        if name not in raw:
            raise SettingsError(f"{where}: no field {name!r}; its fields are {', '.join(map(repr, raw))}.")
        if raw[name] is None or (isinstance(raw[name], str) and not raw[name].strip()):
            raise SettingsError(f"{where}: the field {name!r} is empty.")
    used = (config.question, config.answer, config.accepted)
    rest = {k: v for k, v in raw.items() if k not in (*used[:2], *OURS)}
    own = {k: v for k, v in raw.items() if k in OURS and k not in used}
    asked = {**_asked(raw[config.question], where), **_answered(raw, config, where), WHERE: where}
    return {**rest, **({"own": own} if own else {}), **asked}


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
    """The question without case, spaces and punctuation; numbers and signs of arithmetic stay."""
    tokens = TOKEN.findall(question.casefold())
    bare = ""
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if token[0].isdigit():
            bare += f" {token.replace(',', '')} "
        else:
            arithmetic = token in "-*/^" and before[-1:].isdigit() and after[:1].isdigit()
            if token[0].isalnum() or unicodedata.category(token) == "Sm" or token == "%" or arithmetic:
                bare += token
    return bare.strip() or question.strip()
