"""How a task's answers are found in responses, and when one is right: the same in training and in evaluation.

A row of data names both where they are not the default, so that a file of rows needs no study to be graded.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from algos.pieces.settings import SettingsError, from_dict, settings
from evaluation.tasks import answers
from evaluation.tasks.answers import boxed, boxes, tagged
from evaluation.tasks.choices import chosen, cued, letters
from evaluation.tasks.numbers import INVISIBLE

MAX_TEXT = 500  # characters of an answer that is compared as text or as a formula
PAIRS = ('""', "''", "``", "“”", "‘’", "**")  # around a text
MARKED = re.compile(r"#### ?(.+)")
PLACED = {"hash": "#### {}", "boxed": r"\boxed{{{}}}", "tags": "<answer>{}</answer>"}  # an answer in its place
MATH_SECONDS = 3  # for the comparison of two formulas

Extract = Literal["hash", "boxed", "tags", "last_number", "choice", "text"]
Compare = Literal["number", "math", "text"]


@settings
class Grader:
    """The answer's place in a response, and the comparison with the gold answer."""

    extract: Extract = "hash"  # where strict looks
    compare: Compare = "number"  # number: own code; math: Math-Verify; text: letter by letter

    def __post_init__(self):
        if self.compare == "number" and self.extract in ("choice", "text"):
            raise ValueError(f"extract {self.extract} finds text, so it needs compare: text")
        if self.compare != "number" and self.extract == "last_number":
            raise ValueError("extract last_number finds numbers, so it needs compare: number")
        if self.compare == "math":
            _math_verify()

    def strict(self, response: str) -> str | None:
        """The answer that stands where the task wants it, in canonical text; None if none does or several differ."""
        if self.extract == "hash" and self.compare == "number":
            return answers.extract_strict(response)
        if self.extract == "last_number":
            return answers.extract_flexible(response)
        return self._agreed(PLACES[self.extract](_final_part(response)))

    def flexible(self, response: str) -> str | None:
        """The answer of a response in any of the usual forms, in canonical text; None if it has none."""
        if (answer := self.strict(response)) is not None:
            return answer
        if self.compare == "number":
            return answers.extract_flexible(response)
        text = _final_part(response)
        for place in ("hash", "boxed", "tags", "choice") if self.extract == "choice" else ("hash", "boxed", "tags"):
            if found := PLACES[place](text):
                return self._agreed(found)
        if self.extract == "choice":
            return self._agreed([letter[0] for letter in letters(text)[-1:]])
        return self._agreed([text.strip().rpartition("\n")[2]])

    def _agreed(self, found: list[str]) -> str | None:
        """The one answer that all places say."""
        canonical = [self.canonical(text) for text in found]
        if self.compare == "number":
            return answers.agreed(canonical)
        return canonical[0] if len(set(canonical)) == 1 else None

    def canonical(self, text: str) -> str | None:
        """An answer's text as it is compared; None if it cannot be an answer of this kind."""
        if self.compare == "number":
            return answers.normalize(text)
        text = unicodedata.normalize("NFC", " ".join(text.translate(INVISIBLE).split()))
        if not text or len(text) > MAX_TEXT:
            return None
        if self.extract == "choice":
            return chosen(text)
        if self.compare == "math":
            return text.strip("*").strip("$ ") or None
        return _bare(text).casefold() or None

    def gold(self, row: dict) -> tuple[str, ...]:
        """The answers that a row accepts, canonical; empty if one of them is none.

        They are the row's `accepted`, else stand in its worked solution as in a response, or after `####`; where the
        solution has neither, it is the answer itself.
        """
        if "accepted" in row:
            texts = [str(text) for text in row["accepted"]]
        elif self.extract == "hash" and self.compare == "number":
            texts = [row["answer"].rpartition("#### ")[2]] if "#### " in row["answer"] else []
        else:
            texts = PLACES[self.extract](row["answer"])[-1:] or _hash(row["answer"])[-1:] or [row["answer"]]
        return _golds(self, tuple(texts))

    def placed(self, row: dict) -> dict:
        """The row with the grader's names, and with its answer where `extract` looks, as it should be taught."""
        named = {"extract": self.extract, "compare": self.compare} if self != Grader() else {}
        solution, place = row["answer"], PLACED.get(self.extract)
        if not isinstance(solution, str) or place is None or PLACES[self.extract](solution):
            return {**row, **named}
        working, marker, answer = solution.rpartition("#### ")
        if marker:
            return {**row, "answer": working + place.format(answer.strip()), **named}
        if "accepted" in row and solution not in row["accepted"]:
            return {**row, "answer": f"{solution}\n{place.format(row['accepted'][0])}", **named}
        return {"accepted": [solution], **row, "answer": place.format(solution), **named}

    def correct(self, answer: str | None, gold: tuple[str, ...]) -> bool:
        """True if an answer equals one of the gold ones, all canonical. None is a wrong answer."""
        if answer is None:
            return False
        return any(SAME[self.compare](answer, accepted) for accepted in gold)

    def has_format(self, response: str) -> bool:
        """True if the response has the task's place for the answer exactly once, at its end, and an answer in it."""
        if self.extract == "hash" and self.compare == "number":
            return answers.has_format(response)
        text = _final_part(response)
        if self.extract == "hash":
            place = [(line[1], line.end()) for line in re.finditer(r"(?:\A|\n)#### (.+)", text)]
            after = r"\s*"
        elif self.extract == "boxed":
            place, after = boxes(text), r"\W*"
        elif self.extract == "tags":
            place = [(content, text.rfind("</answer>") + len("</answer>")) for content in tagged(text)]
            after = r"\s*"
        else:
            return self.strict(response) is not None
        return (
            len(PLACES[self.extract](text)) == len(place) == 1
            and self.canonical(place[0][0]) is not None
            and re.compile(after).fullmatch(text, place[0][1]) is not None
        )


@lru_cache(64)  # the responses to a problem come one after the other
def _golds(grader: Grader, texts: tuple[str, ...]) -> tuple[str, ...]:
    golds = [answers.gold_number(text) if grader.compare == "number" else grader.canonical(text) for text in texts]
    return tuple(gold for gold in golds if gold is not None) if None not in golds else ()


def grader_of(row: dict) -> Grader:
    """The grader that a row of data names."""
    return _grader(row.get("extract", "hash"), row.get("compare", "number"))


@lru_cache
def _grader(extract: str, compare: str) -> Grader:
    return from_dict(Grader, {"extract": extract, "compare": compare}, "row")


def _final_part(response: str) -> str:
    """What stands after the thoughts, before a question that the model asks itself after any text."""
    return answers.final_part(response, begun=re.compile(r"\S"))


def _bare(text: str) -> str:
    """A text without quotes and mark-up around it, and without the mark that ends its sentence."""
    while True:
        shorter = re.sub(r"(?:\.+|(?<=[^\W\d_]{2})!+)$", "", text).strip()
        while len(shorter) > 1 and shorter[0] + shorter[-1] in PAIRS:
            shorter = shorter[1:-1].strip()
        if shorter == text:
            return text
        text = shorter


def _hash(text: str) -> list[str]:
    return MARKED.findall(text)


def _choice(text: str) -> list[str]:
    """The letters that a text says to be its answer."""
    for found in (_hash(text), boxed(text), tagged(text)):
        if found:
            return found
    return cued(text) or ([text] if chosen(text) else [])


def _text(text: str) -> list[str]:
    return next((found for found in (_hash(text), boxed(text), tagged(text)) if found), [])


PLACES: dict[str, Callable[[str], list[str]]] = {
    "hash": _hash,
    "boxed": boxed,
    "tags": tagged,
    "choice": _choice,
    "text": _text,
    "last_number": lambda text: [],
}


def _math_verify():
    try:
        import math_verify
    except ImportError:
        raise SettingsError("compare math needs the package math-verify: pip install -e '.[math]'.") from None
    return math_verify


@lru_cache(maxsize=1 << 14)
def _same_formula(answer: str, gold: str) -> bool:
    """True if two LaTeX formulas are equal in the judgement of Math-Verify, which reads them and evaluates no code."""
    math = _math_verify()
    latex = [math.LatexExtractionConfig()]
    read = [math.parse(rf"\boxed{{{text}}}", latex, parsing_timeout=MATH_SECONDS) for text in (gold, answer)]
    return all(read) and math.verify(*read, timeout_seconds=MATH_SECONDS)


SAME: dict[str, Callable[[str, str], bool]] = {
    "number": answers.is_correct,
    "math": _same_formula,
    "text": lambda answer, accepted: answer == accepted,
}
