"""Checks of data rows and of the sizes of splits."""

from algos.pieces.settings import SettingsError
from evaluation.tasks.answers import extract_strict, gold_answer, is_correct


def check_rows(rows: list[dict], where: str, gold: bool = True) -> None:
    """Raise SettingsError for an empty list, or the first row without a question or an answer.

    gold: the answer must end in `#### <number>`, which graders need. Other training texts may end in any way.
    """
    if not rows:
        raise SettingsError(f"{where} is empty; at least one problem is needed.")
    for number, row in enumerate(rows, 1):
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise SettingsError(f"{where}, row {number}: {key!r} is missing or empty.")
        if gold:
            _check_gold(row["answer"], f"{where}, row {number}")


def _check_gold(solution: str, where: str) -> None:
    answer = gold_answer(solution)
    if answer is None:
        raise SettingsError(f"{where}: the answer has no final line `#### <number>`: {solution[-60:]!r}.")
    if not is_correct(extract_strict(solution), answer):
        raise SettingsError(
            f"{where}: the strict grader does not accept the worked solution's own answer: {solution[-60:]!r}."
        )


def all_given(sizes: dict[str, int | None], task: str) -> dict[str, int]:
    """The sizes of a task that generates its problems: each split needs a size."""
    given = {split: size for split, size in sizes.items() if size is not None}
    for split in sizes:
        if split not in given:
            raise ValueError(f"{task} generates its problems: give {split} a size")
    return given
