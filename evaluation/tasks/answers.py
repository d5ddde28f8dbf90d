"""Response text -> final answer -> correct or not. Training and evaluation share this grader.

Conventions (GSM8K, Cobbe et al. 2021, arXiv:2110.14168, and lm-evaluation-harness):
strict    the number after `#### `, with which the worked solutions end
flexible  that number; else the last `\\boxed{}`, the `<answer>` tags, the number after the last "the answer is", or the
          last number
The gap between the two shows format, not reasoning, so both are reported. The training reward uses the strict grader,
because a response that lists many numbers would satisfy the flexible one.
Several different answers are no answer, unless the response takes the earlier ones back. What a model writes after its
answer, such as a question of its own, does not count. Responses are data: a malformed response scores 0 and never
raises, and no part of it is evaluated as code.
"""

import re
from fractions import Fraction

from evaluation.tasks.numbers import clean, number_runs, parse

MARKER = "####"
MAX_MARKERS = 20  # a response with more claims is a list
MAX_LINE = 500  # characters of a line or a box that may hold an answer
LONG = 200_000  # characters at the end of a response in which "the answer is" is looked for
TAIL = 4000  # characters at the end of a response in which its last number is looked for
NEXT_QUESTION = re.compile(r"\n[ \t]*(?:Question|Q|Problem|Human|User) ?\d* ?[:.]|<\|\w{1,40}\|>")
NEXT_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*(?=[^\s#])")
TAKEN_BACK = re.compile(r"\b(?:wait|actually|no|sorry|correction|mistake|rather|instead)\b", re.IGNORECASE)
LABEL = re.compile(r"(?:(?:the\s)?(?:final\s)?answer(?:\sis)?\s?[:=]?|[A-Za-z][A-Za-z ]{0,30}[:=])\s?", re.IGNORECASE)
CUE = re.compile(
    r"\banswers?\b[^.\n\d]{0,40}?\b(?:is|are)\b:?|\banswer(?:\*\*)?:(?=[^\n]{0,40}\d)|答案(?:是|为|為)?[:：]?",
    re.IGNORECASE,
)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
FORMAT = re.compile(r"(?:\A|[\r\n])#### ([-+]?[0-9.,/]+)\s*\Z")
FLOAT_DIGITS = 15  # a decimal with so many digits was computed in floating point, whose last digits are noise
NOISE = Fraction(1, 10**12)


def normalize(answer: str) -> str | None:
    """The canonical text of an answer: "1,234" -> "1234", "$18.00." -> "18", "\\frac{1}{2}" -> "1/2".

    Returns None for a string that holds no single number. Idempotent: normalize(normalize(x)) == normalize(x).
    """
    if len(answer) > MAX_LINE:
        return None
    boxes = boxed(answer)
    return parse(clean(boxes[-1] if boxes else answer))


def extract_strict(response: str) -> str | None:
    """The number after `####`, normalized; None if there is none, or several that differ."""
    claims = _claims(before_next_question(response))
    return claims[-1] if claims and len(set(claims)) == 1 else None


def extract_flexible(response: str) -> str | None:
    """The final number of a response in any of the usual forms, normalized; None if it has none or leaves a doubt."""
    text = before_next_question(response)
    if claims := _claims(text):
        return claims[-1] if len(set(claims)) == 1 else None
    if boxes := boxed(text):
        return _right_side(clean(boxes[-1]))
    if tags := tagged(text):
        answers = {_right_side(clean(tag)) or _last_number(tag) for tag in tags}
        return answers.pop() if len(answers) == 1 else None
    cue = None
    text = text[-LONG:]
    for cue in CUE.finditer(text):  # noqa: B007  the last one
        pass
    return _first_number(text[cue.end() :]) if cue else _last_number(text)


def boxed(text: str) -> list[str]:
    """The contents of the last `\\boxed{...}` of a text that are closed, in order; of MAX_MARKERS at most."""
    contents = []
    for opening in list(re.finditer(r"\\f?boxed ?\{", text))[-MAX_MARKERS:]:
        depth, start = 1, opening.end()
        for brace in re.finditer("[{}]", text[start : start + MAX_LINE]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                contents.append(text[start : start + brace.start()])
                break
    return contents


def tagged(text: str) -> list[str]:
    """The contents of the `<answer>...</answer>` of a text, in order."""
    pieces = (piece.partition("</answer>") for piece in text.split("<answer>")[1:])
    return [content[:MAX_LINE].strip() for content, closed, _ in pieces if closed]


def gold_answer(solution: str) -> str | None:
    """The answer of a worked solution: the text after its last `#### `, normalized; None if it has none.

    A decimal comma is refused in a gold answer, since "10,6" may be a list.
    """
    _, marker, tail = solution.rpartition("#### ")
    return gold_number(tail) if marker else None


def gold_number(text: str) -> str | None:
    """A gold answer's text, normalized; None if it holds no single number, or a decimal comma."""
    if len(text) > MAX_LINE:
        return None
    boxes = boxed(text)
    return parse(clean(boxes[-1] if boxes else text), decimal_comma=False)


def is_correct(answer: str | None, gold: str | None) -> bool:
    """True if an extracted answer equals the gold answer; both normalized. None is a wrong answer.

    Decimals that were computed in floating point are compared without their last digits.
    """
    if answer is None:
        return False
    assert gold is not None  # check_rows refuses a problem without a gold answer
    if answer == gold:
        return True
    try:
        difference, value = Fraction(answer) - Fraction(gold), Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return False
    noisy = any("." in text and sum(map(str.isdigit, text)) >= FLOAT_DIGITS for text in (answer, gold))
    return difference == 0 or (noisy and abs(difference) <= NOISE * abs(value))


def has_format(response: str) -> bool:
    """True if the response ends with its only `#### <number>` line, as the worked solutions do."""
    if response.count(MARKER) != 1:
        return False
    line = FORMAT.search(response[-MAX_LINE:].replace("\u2212", "-"))
    return line is not None and parse(line[1]) is not None


def before_next_question(response: str) -> str:
    """The response without a question that the model asks itself after its answer."""
    for found in NEXT_QUESTION.finditer(response):
        if response[: found.start()].strip():
            return response[: found.start()]
    return response


def _claims(text: str) -> list[str | None]:
    """The answers that a text gives after `####` and does not take back, normalized; None for one that is no number."""
    if MARKER not in text:
        return []
    pieces = text.split(MARKER)[1:]
    if len(pieces) > MAX_MARKERS:
        return [None]
    claims: list[str | None] = []
    for piece in pieces:
        line = _answer_line(piece)
        if line is None:
            continue
        claims.append(_right_side(line))
        if NEXT_PARAGRAPH.search(piece):
            break
        if TAKEN_BACK.search(piece) and piece is not pieces[-1]:
            claims.pop()
    return claims


def _answer_line(piece: str) -> str | None:
    """The cleaned line after a marker without its label, "Answer: 18" -> "18"; None if it is a heading."""
    lines = piece.lstrip("#").strip().split("\n", 2)
    for line in lines[:2]:
        line = clean(line[:MAX_LINE]).strip(" *_\t\r")
        line = line[label.end() :] if (label := LABEL.match(line)) else line
        if line.strip(" *_:,.") == "":
            continue  # "#### Answer", and the number below it
        boxes = boxed(line)
        line = boxes[-1] if boxes else line
        return line if re.match(r"[-+]?\s?[^\w\s]{0,2}\s?[-+]?\d|negative|minus", line) or "=" in line else None
    return None


def _right_side(line: str) -> str | None:
    """The number that a line says, or that stands after its last equals sign."""
    left, equals, right = line.rpartition("=")
    if equals and parse(left) is not None and parse(left) != parse(right):
        return None
    return parse(right)


def _first_number(text: str) -> str | None:
    """The first number of a text; of a calculation, its result."""
    text = clean(text[:MAX_LINE])
    for run in number_runs(text):
        if not run.operand:
            return run.value
        line = text[run.start :].partition("\n")[0]
        return _right_side(line) if "=" in line else None
    return next((str(WORDS.index(word)) for word in re.findall("[a-z]+", text.lower()) if word in WORDS), None)


def _last_number(text: str) -> str | None:
    runs = list(number_runs(clean(text[-TAIL:])))
    return runs[-1].value if runs and not runs[-1].operand else None
