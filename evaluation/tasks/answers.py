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

from evaluation.tasks.numbers import CURRENCY, NUMERAL, NUMERALS, PARTS, clean, number_runs, parse

MARKER = "####"
MAX_MARKERS = 20  # a response with more claims is a list
MAX_LINE = 500  # characters of a line or a box that may hold an answer
LONG = 200_000  # characters at the end of a response in which "the answer is" is looked for
TAIL = 4000  # characters at the end of a response in which its last number is looked for
NEXT_QUESTION = re.compile(r"\n[ \t]*(?:Question|Q|Problem|Human|User) ?\d* ?[:.]|<\|\w{1,40}\|>")
THOUGHTS_END = re.compile(r"</think(?:ing)?>|<\|(?:end_of_thought|begin_of_solution)\|>")
BLANKS = re.compile(r"([ \t])[ \t]+|(\n\n)\n+")
NEXT_PARAGRAPH = re.compile(r"(?<=\S)[ \t\r]*+\n[ \t\r]*+\n\s*+(?=[^\s#])")
TAKEN_BACK = re.compile(r"\b(?:wait|actually|no|sorry|correction|mistake|rather|instead)\b", re.IGNORECASE)
LABEL = re.compile(r"(?:(?:the\s)?(?:final\s)?answer(?:\sis)?\s?[:=]?|[A-Za-z][A-Za-z ]{0,30}[:=])\s?", re.IGNORECASE)
CUE = re.compile(
    r"\banswers?\b[^.\n\d]{0,40}?\b(?:is|are)\b:?|\banswer(?:\*\*)?:(?=[^\n]{0,40}\d)|答案(?:是|为|為)?[:：]?",
    re.IGNORECASE,
)
DENIED = re.compile(r"\s*not\b", re.IGNORECASE)
WORD = re.compile(  # a number said in one word, right after "the answer is"
    rf"[\s:*\"']*+(?:the\s|just\s|only\s|exactly\s|about\s)?({'|'.join(NUMERALS)})\b(?!-)"
    r"(?!\s?[-+×*/÷=^])"
    r"(?!\s(?:and|or|to|point|out|plus|minus|times|less|more|of|in|per|divided|half|third|quarter|dozen)\b)"
    rf"(?!\s(?:{NUMERAL}|{PARTS})\b)",
    re.IGNORECASE,
)
DIGIT = r"[\d\u00bc-\u00be\u2150-\u215e]"  # or ½
ANY_NUMBER = re.compile(rf"{DIGIT}|\b{NUMERAL}\b", re.IGNORECASE)
BEGUN = re.compile(rf"{DIGIT}|answer", re.IGNORECASE)
SIDES = re.compile(r"\d\D{0,20}?\b(?:or|nor)\b|=[^=]*\band\b|\d\s?[,;](?!\d)|[!<>≠≤≥~]\s?$")  # x = 5 or x = 6; x >= 6
HEADING = re.compile(r"\s*\**(\d{1,2})[.)]\s+[^\W\d_]{2}")  # "#### 1. Compute the total"
ANSWER = re.compile(rf"(?:[-+]?\s?(?:{CURRENCY}|[^\w\s]{{0,2}})\s?[-+]?\d|negative|minus)")
FORMAT = re.compile(r"(?:\A|[\r\n])#### ([-+]?[0-9.,/]+)\s*\Z")
FLOAT_DIGITS = 15  # a decimal with so many digits was computed in floating point, whose last digits are noise
NOISE = Fraction(1, 10**12)


def normalize(answer: str) -> str | None:
    """The canonical text of an answer: "1,234" -> "1234", "$18.00." -> "18", "\\frac{1}{2}" -> "1/2".

    Returns None for a string that holds no single number. Idempotent: normalize(normalize(x)) == normalize(x).
    """
    if len(answer) > MAX_LINE:
        return None
    found = boxed(answer)
    return _right_side(clean(found[-1] if found else answer.lstrip("# ")))


def extract_strict(response: str) -> str | None:
    """The number after `####`, normalized; None if there is none, or several that differ."""
    return agreed(_claims(final_part(response)))


def agreed(answers: list[str | None]) -> str | None:
    """The last of some answers if all say the same number, as "1/2" and "0.5" do; None if one is none."""
    return answers[-1] if answers and len({answer and Fraction(answer) for answer in answers}) == 1 else None


def extract_flexible(response: str) -> str | None:
    """The final number of a response in any of the usual forms, normalized; None if it has none or leaves a doubt."""
    text = final_part(response)
    if claims := _claims(text):
        return agreed(claims)
    if found := boxed(text):
        return _right_side(clean(found[-1]))
    if tags := tagged(text):
        return agreed([normalize(tag) or _last_number(tag) for tag in tags])
    text = text[-LONG:]
    cues = [cue.end() for cue in CUE.finditer(text)]
    if not cues:
        return _last_number(text)
    cued = next((end for end in cues[:-MAX_MARKERS:-1] if ANY_NUMBER.search(text, end, end + MAX_LINE)), len(text))
    return None if DENIED.match(text, cued) else _first_number(text[cued:])


def boxed(text: str) -> list[str]:
    """The contents of the last `\\boxed{...}` of a text that are closed, in order; of MAX_MARKERS at most."""
    return [content for content, _ in boxes(text)]


def boxes(text: str) -> list[tuple[str, int]]:
    """The same, each with the position after its closing brace."""
    found = []
    for opening in list(re.finditer(r"\\f?boxed ?\{", text))[-MAX_MARKERS:]:
        depth, start = 1, opening.end()
        for brace in re.finditer("[{}]", text[start : start + MAX_LINE]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                found.append((text[start : start + brace.start()], start + brace.end()))
                break
    return found


def tagged(text: str) -> list[str]:
    """The contents of the `<answer>...</answer>` of a text, in order."""
    pieces = (piece.partition("</answer>") for piece in text.split("<answer>")[1:])
    return [" ".join(content.split()) for content, closed, _ in pieces if closed]


def gold_answer(solution: str) -> str | None:
    """The answer of a worked solution: the text after its last `#### `, normalized; None if it has none.

    A decimal comma is refused in a gold answer, since "10,6" may be a list.
    """
    _, marker, tail = solution.rpartition("#### ")
    return gold_number(tail) if marker else None


def gold_number(text: str) -> str | None:
    """A gold answer's text, normalized; None if it holds no single number.

    Nor where two readings are likely: a decimal comma, a factorial, or parentheses, which may say that it is negative.
    """
    if len(text) > MAX_LINE or re.search(r"\d\s?!", text) or re.fullmatch(r"\s*\(.*\)\s*", text):
        return None
    found = boxed(text)
    return parse(clean(found[-1] if found else text), decimal_comma=False)


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
    response = after_thoughts(response)
    if response.count(MARKER) != 1:
        return False
    line = FORMAT.search(response[-MAX_LINE:].replace("\u2212", "-"))
    return line is not None and parse(line[1]) is not None


def after_thoughts(response: str) -> str:
    """What stands after the last end of thoughts, `</think>`; after the one before, where that is nothing."""
    return next((part for part in reversed(THOUGHTS_END.split(response)) if part.strip()), "")


def final_part(response: str, begun: re.Pattern = BEGUN) -> str:
    """The response after its thoughts, without a question that the model asks itself after its answer.

    begun: what an answer before that question has.
    """
    response = BLANKS.sub(r"\1\2", after_thoughts(response))  # so that no padding pushes a second answer out of sight
    start = begun.search(response)
    question = NEXT_QUESTION.search(response, start.end()) if start else None
    return response[: question.start()] if question else response


def _claims(text: str) -> list[str | None]:
    """The answers that a text gives after `####` and does not take back, normalized; None for one that is no number."""
    if MARKER not in text:
        return []
    pieces = text.split(MARKER)[1:]
    if len(pieces) > MAX_MARKERS:
        return [None]
    claims: list[str | None] = []
    for number, piece in enumerate(pieces, 1):
        heading = HEADING.match(piece) if len(pieces) > 1 else None
        line = None if heading and int(heading[1]) == number else _answer_line(piece)
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
    for line in piece.lstrip("#").strip().split("\n", 2)[:2]:
        line = clean(line).strip(" *_\t\r")
        if len(line) > MAX_LINE:
            return ""  # no number
        line = line[label.end() :] if (label := LABEL.match(line)) else line
        if line.strip(" *_:,.") == "":
            continue  # "#### Answer", and the number below it
        found = boxed(line)
        line = found[-1] if found else line
        return line if ANSWER.match(line) or "=" in line else None
    return None


def _right_side(line: str) -> str | None:
    """The number that a line says, or that stands after its last equals sign."""
    *sides, right = line.split("=")
    value = parse(right)
    if value is None or not sides:
        return value
    others = [said for side in sides[-MAX_MARKERS:] if (said := parse(side)) is not None]
    doubt = SIDES.search("=".join(sides)) or any(Fraction(said) != Fraction(value) for said in others)
    return None if doubt else value


def _first_number(text: str) -> str | None:
    """The first number of a text; of a calculation, its result."""
    text = clean(text[:MAX_LINE])
    if word := WORD.match(text):
        return str(NUMERALS.index(word[1].lower()))
    for run in number_runs(text):
        if not run.operand:
            return run.value
        line = text[run.start :].partition("\n")[0]
        return _right_side(line) if "=" in line else None
    return None


def _last_number(text: str) -> str | None:
    runs = list(number_runs(clean(text[-TAIL:])))
    return runs[-1].value if runs and not runs[-1].operand else None
