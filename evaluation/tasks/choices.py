"""The letter that a text chooses: "B", "(B) Paris", "The answer is B."; none if it leaves a doubt."""

import re

SINGLE = re.compile(r"(?<![^\W_])[A-Z](?![^\W_])")
WORD = re.compile(
    r"\s(?!(?:or|and|nor|is|was|but|not|because|since|as|if)\b)[a-z]|['’]"
)  # after the article A, the pronoun I
REASON = re.compile(r"\s(?:because|since|as|is)\b")
MARK_UP = re.compile(r"\\(?:text|math)(?:bf|it|rm)?\s?\{([^{}]*)\}|[$*]|\\[()\[\]]")
LABEL = re.compile(
    r"(?:the |my )?(?:(?:final|correct|right|best) )*(?:answer|choice|option)(?: is)? ?[:=]? ?(?:option |choice )?",
    re.IGNORECASE,
)
CHOICE = re.compile(r"\(?(?P<letter>[A-Za-z])(?P<close>\))?(?P<end>[.:,;]| [–—-](?= ))?(?P<rest> .*|)")
ANOTHER = re.compile(  # behind a marked letter: more marked ones, alone or with their options' texts
    r" (?:or|and|nor)\b|(?: \(?[A-Z]\)?[.:,]?)+$|.*(?:\([A-Z]\)|\b(?:or|and|nor) \(?[A-Z][.:)])"
)
CUES = [re.compile(rf"\b{word}s?\b[\s:*(]*", re.IGNORECASE) for word in ("answer", "(?:choice|option)")]
REACH = 60  # characters after a cue in which its letter stands
DENIED = re.compile(r"\b(?:can)?not\b|n't\b|n’t\b")
WRONG = re.compile(r"\)?\*{0,2} (?:is|was) (?:wrong|incorrect|false|not)\b")
LISTED = re.compile(r"\)?\s?(?:[,/&]|or\b|and\b)\s?(?:or\s|and\s)?\(?(?=([A-HJ-Z])(?![^\W_]|\)?\s(?:is|was)\b))")


def letters(text: str) -> list[re.Match]:
    """The capital letters that stand alone, without the article "A dog" and the pronoun "I think"."""
    return [found for found in SINGLE.finditer(text) if found[0] not in "AI" or not WORD.match(text, found.end())]


def chosen(text: str) -> str | None:
    """The letter, in upper case, that the whole of a text chooses; None if it is no choice or one of several."""
    text = MARK_UP.sub(lambda found: found[1] or "", text)
    text = " ".join(text.split())
    found = CHOICE.fullmatch(text, label.end() if (label := LABEL.match(text)) else 0)
    if not found:
        return None
    letter, rest = found["letter"], found["rest"]
    marked = found["close"] or (found["end"] or "") in (".", ":")  # what follows is the option's own text
    if label and letter.islower() and not marked:
        return None  # "The answer is a" may be the beginning of a sentence
    if rest.strip():
        if not (marked or found["end"]) and (letter.islower() or (letter in "AI" and not REASON.match(rest))):
            return None
        if ANOTHER.match(rest) or (not marked and letters(rest)):
            return None
    return letter.upper()


def cued(text: str) -> list[str]:
    """The letter behind the last "answer", else behind the last "option"; several letters where it names several."""
    for cue in CUES:
        for found in reversed(list(cue.finditer(text))):
            line = text[found.end() : found.end() + REACH].partition("\n")[0]
            first = next(iter(letters(line)), None)
            if first is None or WRONG.match(line, first.end()):
                continue
            if DENIED.search(line, 0, first.start()):
                return []
            other = LISTED.match(line, first.end())
            return [first[0], other[1]] if other else [first[0]]
    return []
