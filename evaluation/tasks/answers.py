"""Response text -> final answer -> correct or not. Training and evaluation share this grader.

Conventions (GSM8K, Cobbe et al. 2021, arXiv:2110.14168, and lm-evaluation-harness):
strict    the first `#### <number>`, with which the worked solutions end
flexible  the last number of the response, whatever stands around the number
The gap between the two shows format, not reasoning, so both are reported. The training reward uses the strict grader,
because a response that lists many numbers would satisfy the flexible one.
Responses are data: a malformed response scores 0 and never raises, and no part of it is evaluated as code.
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
NUMBER = re.compile(r"-?\d+(\.\d+)?|-?\.\d+")
FRACTION = re.compile(r"(-?\d+)/(\d+)")
MINUS = "\u2212"  # the typographer's minus sign
MAX_DIGITS = 64  # a longer "number" is not an answer, and arithmetic on it only costs time


def normalize(answer: str) -> str | None:
    """The canonical text of an answer: "1,234" -> "1234", "$18.00." -> "18", "\\frac{1}{2}" -> "1/2".

    Returns None for a string that holds no single number. Idempotent: normalize(normalize(x)) == normalize(x).
    """
    text = answer.strip().replace(MINUS, "-")
    boxed = re.fullmatch(r"\\boxed\{(.*)\}\.?", text)
    if boxed:
        text = boxed.group(1)
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\text\{[^{}]*\}", "", text)
    text = re.sub(r"\\?[$%]|,", "", text).strip()
    text = re.sub(r"\s*[A-Za-z][A-Za-z ]*\.?$", "", text)  # units: "12 apples"
    text = text.rstrip(".").removeprefix("+").replace(" ", "")
    if len(text) > MAX_DIGITS:
        return None
    if fraction := FRACTION.fullmatch(text):
        if int(fraction[2]) == 0:
            return None
        return str(Fraction(int(fraction[1]), int(fraction[2])))  # lowest terms; a whole number has no denominator
    if not NUMBER.fullmatch(text):
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    plain = format(value, "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in ("-0", "") else plain


def extract_strict(response: str) -> str | None:
    """The first `#### <number>`, normalized; None if the response has none."""
    found = STRICT.search(response.replace(MINUS, "-"))
    return normalize(found[1]) if found else None


def extract_flexible(response: str) -> str | None:
    """The last number of the response, normalized; None if the response has none."""
    for found in reversed(list(FLEXIBLE.finditer(response.replace(MINUS, "-")))):
        answer = normalize(found[0])
        if answer is not None:
            return answer
    return None


def gold_answer(solution: str) -> str | None:
    """The answer of a worked solution: the text after its last `#### `, normalized; None if it has none."""
    _, marker, tail = solution.rpartition("#### ")
    return normalize(tail) if marker else None


def is_correct(answer: str | None, gold: str | None) -> bool:
    """True if an extracted answer equals the gold answer; both normalized. None is a wrong answer."""
    if answer is None:
        return False
    assert gold is not None  # check_rows refuses a problem without a gold answer
    if answer == gold:
        return True
    return _as_fraction(answer) == _as_fraction(gold)  # 0.5 and 1/2


def _as_fraction(answer: str) -> Fraction | str:
    try:
        return Fraction(answer)
    except (ValueError, ZeroDivisionError):
        return answer


def has_format(response: str) -> bool:
    """True if the response ends with its only `#### <number>` line, as the worked solutions do."""
    return response.count("####") == 1 and re.search(r"(\A|\n)#### -?[0-9.,]+\s*\Z", response) is not None
