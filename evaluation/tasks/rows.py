"""Checks of data rows and of the sizes of splits."""

import json
import sys

from algos.pieces.settings import SettingsError
from evaluation.tasks.grader import Grader, grader_of

SPLITS = ("train", "dev", "test", "demonstrations")
WHERE = "_where"  # in a row while it is loaded: its file and its number there, for messages
SHOWN = 80  # characters of a value in a message


def check_rows(rows: list[dict], where: str, gold: bool = True) -> None:
    """Raise SettingsError for an empty list, or the first row without a question or an answer.

    gold: the row must have an answer that its grader can read. Other training texts may end in any way.
    """
    if not rows:
        raise SettingsError(f"{where} is empty; at least one problem is needed.")
    for number, row in enumerate(rows, 1):
        place = row.get(WHERE) or f"{where}, row {number}"
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise SettingsError(f"{place}: {key!r} is missing or empty.")
        if gold:
            _check_gold(row, place)


def check_prompts(rows: list[dict], where: str, ids: bool = True) -> None:
    """Raise SettingsError for the first row without a prompt, or, with ids, without an id of its own."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        prompt = row.get("prompt")
        if not is_prompt(prompt):
            raise SettingsError(
                f"{where}, row {number}: 'prompt' must be a text or a list of chat messages, got {str(prompt)[:80]!r}."
            )
        if not ids:
            continue
        if not isinstance(row.get("id"), str):
            raise SettingsError(f"{where}, row {number}: 'id' must be a text, got {row.get('id')!r}.")
        if seen.setdefault(row["id"], number) != number:
            raise SettingsError(f"{where}, row {number}: the id {row['id'][:80]!r} is that of row {seen[row['id']]}.")


def is_prompt(prompt: object) -> bool:
    """Whether it is a text that is not empty, or a list of chat messages."""
    if isinstance(prompt, str):
        return bool(prompt.strip())
    turns = prompt if isinstance(prompt, list) else []
    return bool(turns) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )


def _check_gold(row: dict, where: str) -> None:
    grader, solution = grader_of(row), row["answer"]
    if not (golds := grader.gold(row)):
        wanted = "no final line `#### <number>`" if grader == Grader() else f"no answer for extract: {grader.extract}"
        raise SettingsError(f"{where}: the answer has {wanted}: {str(row.get('accepted', solution[-60:]))[:SHOWN]!r}.")
    if grader == Grader() and "accepted" not in row and not grader.correct(grader.strict(solution), golds):
        raise SettingsError(
            f"{where}: the strict grader does not accept the worked solution's own answer: {solution[-60:]!r}."
        )


def distinct(rows: list[dict], where: str) -> list[dict]:
    """The rows without repeated questions: the first of each is kept, and the number of the others is said."""
    keys = [json.dumps(row.get("question"), default=str) for row in rows]
    first = dict(zip(reversed(keys), reversed(rows), strict=True))
    kept = list(reversed(first.values()))
    if len(kept) < len(rows):
        print(f"{where}: {len(rows) - len(kept)} questions occur again; the first of each is kept.", file=sys.stderr)
        other = [row for key, row in zip(keys, rows, strict=True) if _answer(row) != _answer(first[key])]
        if other:
            said = f"{len(other)} of them have another answer than the first one"
            print(f"{where}: {said}, as {other[0].get('question', '')[:SHOWN]!r} does.", file=sys.stderr)
    return kept


def _answer(row: dict):
    return row.get("accepted", row.get("answer"))


def all_given(sizes: dict[str, int | None], task: str) -> dict[str, int]:
    """The sizes of a task that generates its problems: each split needs a size."""
    given = {split: size for split, size in sizes.items() if size is not None}
    for split in sizes:
        if split not in given:
            raise ValueError(f"{task} generates its problems: give {split} a size")
    return given
