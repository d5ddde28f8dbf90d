"""What every data row must have."""

from algos.pieces.settings import SettingsError
from evaluation.tasks.answers import extract_strict, gold_answer, is_correct


def check_rows(rows: list[dict], where: str, gold: bool = True) -> None:
    """Raise SettingsError for an empty list, or the first row without a question or an answer.

    gold: the answer must end in `#### <number>`, as a grader needs it; training texts may end as they like.
    """
    if not rows:
        raise SettingsError(f"{where} is empty; at least one problem is needed.")
    for number, row in enumerate(rows, 1):
        for key in ("question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise SettingsError(f"{where}, row {number}: {key!r} is missing or empty.")
        if gold and gold_answer(row["answer"]) is not None and not _accepted(row["answer"]):
            raise SettingsError(
                f"{where}, row {number}: the strict grader does not accept the worked solution's own answer: "
                f"{row['answer'][-60:]!r}."
            )
        if gold and gold_answer(row["answer"]) is None:
            raise SettingsError(
                f"{where}, row {number}: the answer has no final line `#### <number>`: {row['answer'][-60:]!r}."
            )


def _accepted(solution: str) -> bool:
    return is_correct(extract_strict(solution), gold_answer(solution))
