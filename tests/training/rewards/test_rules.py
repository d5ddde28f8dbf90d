"""Rule rewards by hand and by their golden values."""

import time

import pytest

from algos.training.rewards.rules import RULES, Response, RewardSettings, script, split_words, words_by_script


def response(text="", **known) -> Response:
    rest = {"tokens": 5, "max_tokens": 20, "truncated": False, "prompt_end": "Answer:\n"}
    problem = {"answer": known.pop("solution", "2+3=5\n#### 5"), **known.pop("grader", {})}
    return Response(text, **{**rest, "problem": problem, **known})


def score(name: str, text="", settings=None, **known) -> float:
    return RULES[name].score(response(text, **known), RewardSettings(**settings or {}))


def test_correctness_and_format_are_apart():
    assert [score("correctness", t) for t in ("2+3=5\n#### 5", "#### 6", "5", "#### 5.0")] == [1, 0, 0, 1]
    assert [score("format", t) for t in ("2+3=5\n#### 5", "#### 6", "5", "#### 5 or so")] == [1, 1, 0, 0]
    assert score("correctness", "") == score("correctness", "#### 5", solution="no final line") == 0


def test_correctness_and_format_follow_the_grader_of_the_row():
    tags = {"extract": "tags"}
    texts = ("<think>2+3</think><answer>5</answer>", "<answer>6</answer>", "#### 5")
    assert [score("correctness", text, grader=tags) for text in texts] == [1, 0, 0]
    assert [score("format", text, grader=tags) for text in texts] == [1, 1, 0]


WELL_FORMED = "<think>a</think><answer>5</answer>"


@pytest.mark.parametrize(
    "text, strict, soft",
    [
        (WELL_FORMED, 1, 1),
        (" <think>a\nb</think>\n\n<answer>\n5</answer>\n", 1, 1),
        (WELL_FORMED + " trailing", 0, 1),
        ("leading " + WELL_FORMED, 0, 1),
        ("<think>a</think> so <answer>5</answer>", 0, 1),
        (WELL_FORMED + "<answer>5</answer>", 0, 0.5),
        ("<think>a<think></think><answer>5</answer>", 0, 0.75),
        ("</think>a<think><answer>5</answer>", 0, 1),  # tags swapped
        ("<think></think>", 0, 0.5),
        ("a</think><answer>5</answer>", 0, 0.75),
        ("", 0, 0),
    ],
)
def test_golden_think_format(text, strict, soft):
    assert (score("think_format", text), score("think_format_soft", text)) == (strict, soft)


def test_a_think_tag_at_the_end_of_the_prompt_counts():
    rest = WELL_FORMED.removeprefix("<think>")
    for end in ("<|assistant|><think>", "<think>\n"):
        assert score("think_format", rest, prompt_end=end) == score("think_format_soft", rest, prompt_end=end) == 1
        assert score("think_format", WELL_FORMED, prompt_end=end) == 0  # then it is there twice
    assert score("think_format", rest, prompt_end="<think> step") == 0


ENGLISH = "She had four apples and ate three more"  # 8 words


@pytest.mark.parametrize(
    "text, expected",
    [
        (ENGLISH + " 你好", 0.8),  # golden: 8 of 10
        (ENGLISH + " привет мир", 0.8),
        (ENGLISH, 1.0),
        ("", 0.0),
        ("7+5=12 $x^2$ 3.5", 0.0),  # digits and formulas are no words
        (f"{ENGLISH} 你=3 好 12 x=4 `код` $я + ю$ \\(ы\\) \\[э\\]", 0.8),
        (f"<think>{ENGLISH} 你好</think> совсем другой <answer>ответ</answer>", 0.8),
        (f"{ENGLISH} привет мир</think> ответ", 0.8),
        (f"{ENGLISH} ``` привет мир", 0.8),  # not closed, hence no code: it cannot hide words
        (f"She paid $5 привет and $6 мир {'a ' * 5}", 0.8),
        ("Ｄｏｎ’ｔ don't naïve na\u0308ive café", 1.0),
        ("हिन्दी", 0.0),
    ],
)
def test_golden_language(text, expected):
    assert score("language", text) == pytest.approx(expected)


def test_the_target_script_is_a_setting():
    text = "<think>先に五つ、then three</think>"
    assert words_by_script(text.removeprefix("<think>").removesuffix("</think>")) == {
        "CJK": 2,
        "HIRAGANA": 2,
        "LATIN": 2,
    }
    assert score("language", text, {"language_script": "CJK"}) == pytest.approx(1 / 3)
    assert words_by_script("हिन्दी में") == {"DEVANAGARI": 2}  # vowel signs do not split words
    assert [script(c) for c in "aя한ー5 "] == ["LATIN", "CYRILLIC", "HANGUL", "KATAKANA", "", ""]


def test_golden_edit_similarity():
    assert score("edit_similarity", "kitten", solution="sitting") == 1 - 3 / 7
    assert score("edit_similarity", " 2+3=5\n#### 5\n", solution="2+3=5\n#### 5") == 1
    assert score("edit_similarity", "", solution="x") == 0


def test_repetition_counts_letters_where_a_script_has_no_spaces():
    assert split_words("七加五 is 十二, ok") == ["七", "加", "五", "is", "十", "二", ",", "ok"]
    assert score("repetition", "ก ข ค") == 0
    assert score("repetition", "七加五七加五") == pytest.approx(3 / 4 - 1)  # 4 trigrams, 3 of them different
    assert score("repetition", "これはこれはこれは") < -0.5


def test_golden_repetition():  # 7 trigrams, 3 of them different
    assert score("repetition", "a b c a b c a b c") == pytest.approx(-0.5714286)
    assert score("repetition", "a b c a b c a b c", {"repetition_ngram": 1}) == pytest.approx(-2 / 3)
    assert score("repetition", "a b c d") == score("repetition", "a a") == score("repetition", "") == 0


def test_golden_overlong():
    settings = {"overlong_tokens": 4}
    scores = [score("overlong", settings=settings, tokens=t, max_tokens=20) for t in (1, 16, 17, 18, 20, 21)]
    assert scores == [0, 0, -0.25, -0.5, -1, -1]
    assert str(scores[1]) == "0.0"  # not -0.0


@pytest.mark.parametrize("settings", [{"repetition_ngram": 0}, {"overlong_tokens": 0}, {"language_script": "LATN"}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RewardSettings(**settings)


HOSTILE = [
    "<think>" * 3000,
    "<think>" + " " * 20000 + "</think>" + "\n" * 20000 + "<answer>",
    "\ufffd\ud800\x00\u202e",
    "a\u0301\u0323" * 8000,  # stacked marks: normalizing the whole text would sort them in quadratic time
    "\\(" * 10000 + "$a" * 10000 + "`" * 9999,
    "####" * 5000 + " " * 20000 + "x",
    "#### " + "9" * 20000,
    "__import__('os').abort()",
    "a" * 40000,
    "∞½²٣Ⅷ" * 4000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_data(text):
    """In range, no exception, and no blow-up of a pattern: seconds would be minutes."""
    start = time.perf_counter()
    for name, rule in RULES.items():
        value = score(name, text, {"overlong_tokens": 4}, solution="7+5=12\n#### 12", prompt_end="<think>")
        assert isinstance(value, float) and rule.maximum - 1 <= value <= rule.maximum
    assert time.perf_counter() - start < 5
