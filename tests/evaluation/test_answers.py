import pytest

from evaluation.tasks.answers import extract_flexible, extract_strict, gold_answer, has_format, is_correct, normalize


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("1,234", "1234"),
        ("$18.00.", "18"),
        ("-5", "-5"),
        ("−5", "-5"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        ("50%", "50"),
        ("12 apples", "12"),
        ("no number", None),
        ("1.2.3", None),
        ("+7", "7"),
        ("007", "7"),
        ("-0", "0"),
        (".5", "0.5"),
        ("4/2", "2"),
        ("1/0", None),
        ("", None),
        ("...", None),
        ("9" * 100, None),
        ("3 or 4", None),
    ],
)
def test_normalize(raw, expected):
    assert normalize(raw) == expected
    if expected is not None:
        assert normalize(normalize(raw)) == normalize(raw)


@pytest.mark.parametrize(
    "response, strict, flexible",
    [
        ("2+3=5\n#### 5", "5", "5"),
        ("#### 1,234", "1234", "1234"),
        ("The answer is 18.", None, "18"),
        ("it is 3 or 4", None, "4"),
        ("#### 5\n#### 6", "5", "6"),
        ("#### \n5", None, "5"),
        ("no number", None, None),
        ("#### 18.00", "18", "18"),
        ("", None, None),
        ("1.2.3", None, None),
        ("#### −5", "-5", "-5"),
    ],
)
def test_extraction(response, strict, flexible):
    assert extract_strict(response) == strict
    assert extract_flexible(response) == flexible


def test_listing_many_numbers_does_not_earn_the_strict_answer():
    response = "\n".join(f"#### {n}" for n in range(20))
    assert [is_correct(extract_strict(response), str(n)) for n in range(20)].count(True) == 1


def test_correctness_compares_numbers():
    assert is_correct("18", "18") and is_correct("0.5", "1/2")
    assert not is_correct(None, "18") and not is_correct("-18", "18")


def test_gold_answers_of_gsm8k_solutions():
    assert gold_answer("He has 4+3=<<4+3=7>>7.\n#### 7") == "7"
    assert gold_answer("It is 70,000.\n#### 70,000") == "70000"
    assert gold_answer("no final line") is None


@pytest.mark.parametrize(
    "response, expected",
    [
        ("2+3=5\n#### 5", True),
        ("#### 5", True),
        ("#### 5\n", True),
        ("#### 5 apples", False),
        ("5", False),
        ("#### 5\n#### 5", False),
        ("so #### 5", False),
    ],
)
def test_format(response, expected):
    assert has_format(response) is expected


def test_hostile_responses_are_data():
    for text in ("#### " + "9" * 10_000, "#### " + "." * 10_000, "{" * 5000, "\\boxed{" * 1000, "#### 1e999", "\x00"):
        assert extract_strict(text) is None or len(extract_strict(text)) <= 64
        extract_flexible(text)
        has_format(text)
