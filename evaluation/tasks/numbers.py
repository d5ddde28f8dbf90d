"""The text of an answer -> the number that it says, or none.

The whole text has to be read. An answer of which only a beginning is a number ("5 or 6", "3:30") is no number, since a
policy would otherwise be paid for hedging. Read are
- digits of all scripts; thousands as 1,000, 1 000, 1'000 and 1,00,000; decimal points; a decimal comma where the comma
  cannot stand for thousands
- fractions, mixed numbers and their LaTeX; powers of ten; "2.5 million", "3 dozen", "18 dollars and 50 cents"
- a currency before, and a unit or words after the number
The time is linear in the length of a text, and a text of more than MAX_CHARACTERS is no number.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

MAX_CHARACTERS = 200
EXACT = Context(prec=256)  # digits of a quotient
MAX_DIGITS = 64  # a longer "number" is not an answer, and arithmetic on it only costs time

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"))
SIGNS = str.maketrans(
    {
        "\u2212": "-",  # minus
        "\u2013": "-",  # en dash
        "\u2010": "-",
        "\u2011": "-",
        "\ufe63": "-",
        "\uff0d": "-",
        "\u066b": ".",  # Arabic decimal separator
        "\u066c": ",",  # Arabic thousands separator
        "\u2019": "'",
        "\u2044": "/",
        "\u2215": "/",
        "\u3002": ".",
        "\u00d7": "×",
        "\u00b7": "×",
        "\u22c5": "×",
    }
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
SUPERSCRIPT = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
LATEX = [  # (pattern, replacement), in this order
    (re.compile(r"\{,\}|,\\!\s?"), ","),
    (re.compile(r"\\[dtc]?frac\s?(?:\{\s?(-?\d+)\s?\}|(\d))\s?(?:\{\s?(\d+)\s?\}|(\d))"), r" \1\2/\3\4 "),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|operatorname)\s?\{([^{}]{0,80})\}"), r" \1 "),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), " × "),
    (re.compile(r"\\approx(?![a-z])"), " ≈ "),
    (re.compile(r"\^\s?\{?\\circ\}?|\\degree(?![a-z])"), "°"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[()\[\]!]"), ""),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\^\{(-?\d+)\}"), r"^\1"),
]
MARKUP = [  # powers, signs of lists, bold and slanted text; a sign between two operands multiplies
    (re.compile(r"(?<=[\d)])(?: \*\* |\*\*)(?=[\d(])"), "^"),
    (re.compile(r"^[ \t]*[*•][ \t]+", re.MULTILINE), ""),
    (re.compile(r"(?<![\w)])(?:\*\*+|__+)(?=\S)|(?<=\S)(?:\*\*+|__+)(?![\w(])"), ""),
    (re.compile(r"(?<![\w)*])(?<!\d )\*(?=[^\s*])([^*\n]{1,80})\*(?![\w(*])"), r"\1"),
    (re.compile(r"(?<!\w)(?<!\d )_(?=[^\s_])([^_\n]{1,80})_(?!\w)"), r"\1"),
]
BREAKS = re.compile(r"</?(?:br|p|div)\s?/?>")
TAGS = re.compile(r"</?(?:answer|s|b|i|strong|em|span)>|<<[^<>\n]{0,80}>>")  # and GSM8K's calculator
SPACES = re.compile(" {2,}")

GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+"
EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}"
COMMA = r"\d+,\d{1,2}(?!\d)|0,\d+"
PLAIN = rf"(?:{EUROPEAN}|(?:{GROUPED})(?![,\d])(?:\.\d+)?|{COMMA}|\d+(?:\.\d*)?|\.\d+)(?![,.]*\d)"
POWER = r"(?:\s?[×x*]\s?10\s?\^\s?(?P<exponent>[-+]?\d{1,3})|[eE](?P<e>[-+]?\d{1,3}))"
CURRENCY = r"(?:[$€£¥₹₩₽₺₫]|US\$|Rs\.?|USD|EUR|GBP)"
NUMBER = re.compile(  # beginning at no digit behind MAX_DIGITS others: trying all of a long run takes its square
    rf"(?P<sign>[-+]?)\s?{CURRENCY}?\s?(?P<inner>[-+]?)\s?(?<!\d{{{MAX_DIGITS}}})"
    rf"(?:(?:(?P<whole>\d+)\s)?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)(?![,.]*\d)"
    rf"|10\s?\^\s?(?P<ten>[-+]?\d{{1,3}})(?!\d)"
    rf"|(?P<plain>{PLAIN}){POWER}?)"
)
MAGNITUDES = {
    "k": 3, "K": 3, "M": 6, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
    "lakh": 5, "crore": 7, "bn": 9, "万": 4, "萬": 4, "亿": 8, "億": 8,
}  # fmt: skip
MAGNITUDE = re.compile(
    r"(?:\s?(hundred|thousand|million|billion|trillion|dozen|lakh|crore|bn|万|萬|亿|億)s?|([kKM]))(?![A-Za-z])"
)
ATTACHED = re.compile(  # units that stand right after the number
    r"(?:km|cm|mm|m|kg|g|mg|lbs?|oz|ml|mL|l|L|h|hrs?|mins?|s|secs?|mph|ft|in|yd|%|°[CF]?|[$€£¥₹¢]|¢|am|pm)(?![A-Za-z])"
)
CENTS = re.compile(r"\s?(?:dollars?|euros?|pounds?)? and (\d{1,2}) (?:cents?|pence)")
NO_SPACES = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts whose words and numbers stand together
WORD = (  # possessive: cut in one way only
    rf"(?:[^\W\d_]{{2,}}+(?:[-'.][^\W\d_]++)*+\.?|[amglLhs{NO_SPACES}](?![^\W_]))"
)
UNITS = re.compile(
    rf"(?:\s*+(?:(?:/\s*+)?(?:{WORD}|{CURRENCY}|%|°\s?[CFK]?)(?:\s?\^?[23](?!\d))?"
    r"|(?<=[\sA-Za-z])\([^()\d+*/=^<>]{0,60}\)|[.!,;:](?!\d)|\*\*|\$))*+\s*+"
)
NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TENS = "(?:twen|thir|for|fif|six|seven|eigh|nine)t"
TEENS = "(?:thir|four|fif|six|seven|eigh|nine)teen"
NUMERAL = rf"(?:{'|'.join(NUMERALS)}|{TEENS}|{TENS}y|hundred|thousand|million)"
PARTS = (
    rf"(?:halves|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|twelfths|{TEENS}ths|{TENS}ieths"
    "|hundredths|thousandths|millionths)"
)
NO_UNIT = re.compile(  # words that change the number before them
    rf"^\s*(?:[,;/]?\s?{NUMERAL}|{PARTS})\b"
    r"|\b(?:and|or|nor|plus|minus|pi|sqrt|half|quarter|third|squared|cubed|divided|factorial|mod|power|itself|out of)\b"
    r"|\bto the (?!second\b)\w{2,}(?:th|rd)\b|\b(?:log|ln|sin|cos|tan)\s?(?:\(|[a-z]\b)"
    rf"|\b(?:times|over|to|through|point|less|more|by|of|vs\.?|versus)\s(?:an?\s|every\s)?{NUMERAL}\b",
    re.IGNORECASE,
)
SHARE_OF, PART_OF = re.compile(r"\s?(?:%|percent\b)\s?of\b"), re.compile(r"\s?of\b")  # 50% of 8 is another number
AND_A_PART = re.compile(
    r"\s?(?:and|&)\s(?:an?|one|two|three)[\s-](?:half|thirds?|fourths?|quarters?|fifths?|eighths?)\b"
)
VARIABLE = re.compile(r"(?![μΩ])[A-Za-z\u0370-\u03ff][^\W\d_]?(?![^\W\d_])")  # "2x", "4t", "3pi"; or an unknown unit
NAME = re.compile(rf"(?:[^\W{NO_SPACES}]|[.,/^\\]|\d:)\Z")  # what a number in a name stands behind
OPERATOR_BEFORE = re.compile(r"(?:[\w)\]}%°$]\s{0,2}[-+×*/^÷]|\b(?:plus|minus|times))\s?\(?\Z")
OPERATOR_AFTER = re.compile(r"\s?[-+×*/^÷]\s?[\d(]")
JOINT = re.compile(r"(?:\s?[,;:≈-]\s?|\s(?:or|and|to)\s|\s)(?=[-+]?[$€£¥]?\.?\d)")
REFERENCE = re.compile(
    r"\b(?:question|step|problem|part|case|example|figure|equation|section|option|number|line)\s?#?\Z", re.IGNORECASE
)
LEADING = re.compile(r"(?:negative|minus)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Run:
    """Numbers in a text that stand together, as "1 000", "5 or 6" and "3:30" do."""

    start: int
    value: str | None  # the number that they say together; None if they say several
    operand: bool  # an operator stands before or after it


def clean(text: str) -> str:
    """text with ASCII digits, signs and spaces, LaTeX fractions as a/b, and no mark-up around numbers."""
    if NOT_ASCII.search(text):
        text = SUPERSCRIPT.sub(lambda run: "^" + run[0].translate(SUPERSCRIPTS), text.translate(INVISIBLE))
        text = NOT_ASCII.sub(_ascii, text.translate(SIGNS))
    if "\\" in text or "{" in text or "~" in text:
        for pattern, replacement in LATEX:
            text = pattern.sub(replacement, text)
    if "*" in text or "_" in text or "•" in text:
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
    if "<" in text:
        text = TAGS.sub(" ", BREAKS.sub("; ", text))
    return SPACES.sub(" ", text)


def _ascii(found: re.Match) -> str:
    return _character(found[0])


@lru_cache(maxsize=1 << 12)
def _character(character: str) -> str:
    """A digit, space, vulgar fraction or full-width letter in ASCII; any other character as it is."""
    if character.isspace():
        return "\n" if character in "\u2028\u2029\x85" else " "
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.name(character, "").startswith("VULGAR FRACTION"):
        top, slash, bottom = unicodedata.normalize("NFKD", character).partition("\u2044")
        return f" {top}/{bottom}" if slash and bottom else character
    if unicodedata.name(character, "").startswith("FULLWIDTH"):
        return unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "Sc" and character not in "¢€£¥₹₩₽₺₫":
        return "$"  # any other currency
    return character


def parse(text: str, decimal_comma: bool = True) -> str | None:
    """The number that the whole of a cleaned text says, canonical; None if it says none or leaves a doubt.

    Canonical: an integer or decimal in plain digits without a trailing zero, or a fraction in lowest terms.
    decimal_comma: whether "3,5" is 3.5, or none.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    text = _unwrapped(text)
    negative = False
    if word := LEADING.match(text):
        negative, text = True, text[word.end() :]
    found = NUMBER.match(text)
    if not found or (found["sign"] and found["inner"]):
        return None
    if not decimal_comma and found["plain"] and re.fullmatch(COMMA, found["plain"]):
        return None
    value = _value(found)
    if value is None or (SHARE_OF if found["bottom"] is None else PART_OF).match(text, found.end()):
        return None
    value, rest = _with_suffix(value, text[found.end() :])
    if rest is None or not UNITS.fullmatch(rest) or NO_UNIT.search(rest):
        return None
    if negative != ("-" in (found["sign"], found["inner"])):
        value = -value
    return written(value, fraction=found["bottom"] is not None)


def _unwrapped(text: str) -> str:
    """text without mark-up, quotes and signs of a formula around it; "(5)" is -5, as accountants write."""
    text = text.strip("*_`\"' \t\r\n").rstrip(".!;,:")
    while (len(text) > 1 and text[0] == "$" == text[-1]) or (text[:1] + text[-1:]) in ("{}", "**", "``"):
        text = text[1:-1].strip()
    if re.fullmatch(r"\(\s?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\)", text):
        return "-" + text[1:-1].strip()
    if text[:1] == "(" and text[-1:] == ")" and "(" not in text[1:] and not re.search(r"\d,(?!\d{3}(?!\d))\d", text):
        return text[1:-1].strip()
    return text


def _value(found: re.Match) -> Fraction | None:
    if found["bottom"]:
        if int(found["bottom"]) == 0:
            return None
        part = Fraction(int(found["top"]), int(found["bottom"]))
        if found["whole"] is None:
            return part
        return int(found["whole"]) + part if part < 1 else None
    if found["ten"]:
        return _power_of_ten(int(found["ten"]))
    digits = _point(found["plain"])
    if len(digits) > MAX_DIGITS:
        return None
    exponent = int(found["exponent"] or found["e"] or 0)
    scale = _power_of_ten(exponent)
    return None if scale is None else Fraction(digits) * scale


def _power_of_ten(exponent: int) -> Fraction | None:
    return Fraction(10) ** exponent if abs(exponent) < MAX_DIGITS else None


def _point(number: str) -> str:
    """The digits of a number with a decimal point and no groups: "1.234,56" -> "1234.56", "1 000" -> "1000"."""
    if re.fullmatch(EUROPEAN, number):
        number = number.replace(".", "").replace(",", ".")
    elif re.fullmatch(COMMA, number):
        number = number.replace(",", ".")
    return re.sub("[, ']", "", number)


def _with_suffix(value: Fraction, rest: str) -> tuple[Fraction, str | None]:
    """The value times a magnitude or plus cents, and the text after them; no text if the suffix makes it no number."""
    if cents := CENTS.match(rest):
        return value + Fraction(int(cents[1]), 100), rest[cents.end() :]
    magnitude = None
    while found := MAGNITUDE.match(rest):
        magnitude = found[1] or found[2]
        value *= 12 if magnitude == "dozen" else 10 ** MAGNITUDES[magnitude]
        rest = rest[found.end() :]
    if magnitude is None and (unit := ATTACHED.match(rest)):
        rest = rest[unit.end() :]
    elif magnitude is None and VARIABLE.match(rest):
        return value, None
    return value, rest


def written(value: Fraction, fraction: bool = False) -> str | None:
    """The canonical text of a value; None if it has more than MAX_DIGITS digits. fraction: keep 1/2 as a fraction."""
    if value.denominator == 1:
        text = str(value.numerator)
    elif fraction:
        text = f"{value.numerator}/{value.denominator}"
    else:  # made of decimal digits, so that the quotient ends
        text = format(EXACT.divide(Decimal(value.numerator), Decimal(value.denominator)), "f")
    return text if len(text) <= MAX_DIGITS + 2 else None


def number_runs(text: str) -> Iterator[Run]:
    """The numbers of a cleaned text, in order, without those in names ("m2", "2A") and references ("step 2")."""
    position = 0
    while found := NUMBER.search(text, position):
        start = found.start() + _loose_sign(found)
        joints, ends = [], [_end(text, found)]
        while (joint := JOINT.match(text, ends[-1])) and (following := NUMBER.match(text, joint.end())):
            joints.append(joint[0])
            ends.append(_end(text, following))
        position = max(ends[-1], position + 1)
        before = text[max(start - 24, 0) : start]
        if NAME.search(before) or re.match(r"[A-Za-z_]", text[ends[-1] :]) or REFERENCE.search(before):
            continue
        operand = OPERATOR_BEFORE.search(before) or OPERATOR_AFTER.match(text, ends[-1])
        yield Run(start, _together(text, start, ends, joints), operand is not None)


def _loose_sign(found: re.Match) -> int:
    """Characters before the number of a running text that are not its own: "- 5" may be the 5 of a list or of 7 - 5."""
    loose = re.match(r"\s*[-+]?\s", found[0])
    return loose.end() if loose else 0


def _end(text: str, found: re.Match) -> int:
    """The position after a number and what changes its value or is its unit, as "k", "million" and "cm"."""
    for suffix in (CENTS, AND_A_PART, ATTACHED):
        if match := suffix.match(text, found.end()):
            return match.end()
    end = found.end()
    while magnitude := MAGNITUDE.match(text, end):
        end = magnitude.end()
    return end


def _together(text: str, start: int, ends: list[int], joints: list[str]) -> str | None:
    """What numbers that stand together say: one number, an exact one before its approximation, or one said twice."""
    if (whole := parse(text[start : ends[-1]])) is not None or not joints:
        return whole
    starts = [start, *(end + len(joint) for end, joint in zip(ends, joints, strict=False))]
    values = [parse(text[a:b]) for a, b in zip(starts, ends, strict=True)]
    same = len({value and Fraction(value) for value in values}) == 1
    return values[0] if same or all("≈" in joint for joint in joints) else None
