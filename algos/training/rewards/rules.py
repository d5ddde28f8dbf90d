"""Rule rewards: pure functions of one response.

To add a reward, add a function of (Response, RewardSettings) -> float and its line in RULES. Responses are text by a
model in search of reward: no part of a response is evaluated as code, and no rule raises. The time of a rule is linear
in the length of the response; the edit distance takes the product of two lengths.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from pydantic import PositiveFloat, PositiveInt
from rapidfuzz.distance import Levenshtein

from algos.pieces.settings import one_of, settings
from evaluation.tasks.grader import Grader, grader_of

SPACED = {"ARABIC", "BENGALI", "CYRILLIC", "DEVANAGARI", "GREEK", "HANGUL", "HEBREW", "LATIN", "TAMIL", "TELUGU"}
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN"}  # no spaces between words
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
THINK_FORMAT = re.compile(r"\A\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*\Z", re.DOTALL)
DISPLAY_MATH = re.compile(r"\\[()\[\]]")  # LaTeX's \( \) and \[ \]
INLINE_MATH = re.compile(r"\$(?=\S)[^$\n]*(?<=\S)\$(?!\d)")  # pandoc's rule, by which "$5 and $6" is no formula
ASCII_RUN = re.compile(r"[!-~]+")
SYMBOLS = frozenset("0123456789=+*/^\\_{}<>|")  # none of them is in an ordinary word


@settings
class RewardSettings:
    """Parameters of the rules."""

    repetition_ngram: PositiveInt = 3  # repetition: words per n-gram
    overlong_tokens: PositiveInt | None = None  # overlong: tokens before the limit where it grows; null: a fifth (DAPO)
    language_script: str = "LATIN"  # language: the script that the chain of thought should be written in
    own_seconds: PositiveFloat | None = None  # limit for one batch of a reward of the user's own; null: an hour
    own_threads: PositiveInt = 1  # calls of a reward of the user's own at the same time

    def __post_init__(self):
        one_of(self.language_script, SPACED | UNSPACED, "language_script")


@dataclass(frozen=True)
class Response:
    """What a rule may know of one response."""

    text: str
    tokens: int  # end-of-sequence included
    max_tokens: int  # the run's max_response_tokens
    truncated: bool  # the limit came before end-of-sequence
    problem: dict  # its row: prompt, question, answer (the worked solution), and whatever else the task's rows hold
    prompt_end: str  # the last tokens of the prompt

    @property
    def grader(self) -> Grader:
        return grader_of(self.problem)

    @property
    def opened(self) -> str:
        """The text after the <think> that some chat templates put at the end of the prompt."""
        return f"<think>{self.text}" if self.prompt_end.rstrip().endswith("<think>") else self.text

    @property
    def chain_of_thought(self) -> str:
        """What stands between <think> and </think>; from the start or to the end where one is missing."""
        _, tag, thought = self.opened.partition("<think>")
        return (thought if tag else self.opened).partition("</think>")[0]


def correctness(response: Response, settings: RewardSettings) -> float:
    """1 if the strict answer is the gold one, else 0. Training and evaluation share this grader."""
    grader = response.grader
    return float(grader.correct(grader.strict(response.text), grader.gold(response.problem)))


def answer_format(response: Response, settings: RewardSettings) -> float:
    """1 if the response ends with its only place for an answer (`#### <number>` by default), right or wrong; else 0."""
    return float(response.grader.has_format(response.text))


def think_format(response: Response, settings: RewardSettings) -> float:
    """1 if the response is <think>...</think> <answer>...</answer> and nothing else, each tag once; else 0.

    Source: the template of DeepSeek-R1-Zero, arXiv:2501.12948, table 1. Without the count, `.*?` passes over more tags.
    """
    text = response.opened
    return float(all(text.count(tag) == 1 for tag in TAGS) and THINK_FORMAT.match(text) is not None)


def think_format_soft(response: Response, settings: RewardSettings) -> float:
    """A quarter for each of the four tags that occurs exactly once, wherever it stands."""
    return sum(response.opened.count(tag) == 1 for tag in TAGS) / len(TAGS)


def language(response: Response, settings: RewardSettings) -> float:
    """Share of the words of the chain of thought that are in the target script; 0 if it has no words.

    Source: DeepSeek-R1, arXiv:2501.12948, section 2.3.2, which does not say how words are told apart.
    """
    words = words_by_script(response.chain_of_thought)
    return words[settings.language_script] / max(words.total(), 1)


def words_by_script(text: str) -> Counter:
    """Words of the prose in text, by Unicode script; in scripts without spaces each letter counts as a word."""
    letters = (c for c in prose(text) if c not in "'’" and unicodedata.category(c)[0] != "M")  # marks are in words
    words: Counter[str] = Counter()
    for name, run in groupby(letters, key=script):
        if name:
            words[name] += len(list(run)) if name in UNSPACED else 1
    return words


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """Script of a letter, "" of anything else. Python has no such property, but a letter's name begins with it."""
    plain = unicodedata.normalize("NFKD", character)[0]  # a full-width or mathematical A is an A
    return re.split("[ -]", unicodedata.name(plain, ""))[0] if plain.isalpha() else ""


def prose(text: str) -> str:
    """text without code, formulas and whatever holds digits or operators."""
    text = DISPLAY_MATH.sub("$$", text)
    for delimiter in ("```", "`", "$$"):
        *pieces, last = text.split(delimiter)
        text = " ".join([*pieces[::2], last])  # what an unclosed delimiter opens is prose
    text = INLINE_MATH.sub(" ", text)
    return ASCII_RUN.sub(lambda run: " " if SYMBOLS & set(run[0].strip("*_")) else run[0], text)


def edit_similarity(response: Response, settings: RewardSettings) -> float:
    """1 - edit distance / longer length, to the worked solution."""
    return Levenshtein.normalized_similarity(response.text.strip(), response.problem["answer"].strip())


def repetition(response: Response, settings: RewardSettings) -> float:
    """Minus the share of n-grams of words that occurred before: 0 if none did, down to nearly -1."""
    words, n = split_words(response.text), settings.repetition_ngram
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


def split_words(text: str) -> list[str]:
    """The words of a text: what stands between spaces, and each letter of a script that has no spaces."""
    words: list[str] = []
    for piece in text.split():
        if piece.isascii():
            words.append(piece)
            continue
        for unspaced, run in groupby(piece, key=lambda character: script(character) in UNSPACED):
            letters = list(run)
            words += letters if unspaced else ["".join(letters)]
    return words


def overlong(response: Response, settings: RewardSettings) -> float:
    """0 up to overlong_tokens below the limit, from there down to -1 at the limit, in a straight line.

    Source: DAPO, arXiv:2503.14476, section 3.4, soft overlong punishment.
    """
    cache = settings.overlong_tokens or max(response.max_tokens // 5, 1)
    return min(max((response.max_tokens - cache - response.tokens) / cache, -1.0), 0.0)


@dataclass(frozen=True)
class Rule:
    score: Callable[[Response, RewardSettings], float]
    maximum: float = 1.0  # of a faultless response


RULES: dict[str, Rule] = {
    "correctness": Rule(correctness),
    "format": Rule(answer_format),
    "think_format": Rule(think_format),
    "think_format_soft": Rule(think_format_soft),
    "language": Rule(language),
    "edit_similarity": Rule(edit_similarity),
    "repetition": Rule(repetition, maximum=0.0),
    "overlong": Rule(overlong, maximum=0.0),
}
