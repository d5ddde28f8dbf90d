"""How answers are found and compared, for each kind of task."""

import pytest

from algos.pieces.settings import SettingsError, from_dict
from evaluation.tasks.grader import Grader, grader_of
from evaluation.tasks.rows import check_rows


def verdict(grader: Grader, solution: str, response: str) -> tuple[bool, bool, bool]:
    """Strict, flexible and format of a response to a row with this solution."""
    gold = grader.gold({"answer": solution})
    assert gold
    return (
        grader.correct(grader.strict(response), gold),
        grader.correct(grader.flexible(response), gold),
        grader.has_format(response),
    )


@pytest.mark.parametrize(
    "extract, compare, solution, response, expected",
    [
        ("hash", "number", "2+3\n#### 5", "2+3=5\n#### 5", (True, True, True)),
        ("hash", "text", "#### Paris", "The capital.\n#### paris.", (True, True, True)),
        ("hash", "text", "#### Paris", "Paris", (False, True, False)),
        ("hash", "text", "#### Paris", "#### Paris\n#### Rome", (False, False, False)),
        ("boxed", "number", r"so \boxed{\frac{1}{2}}", r"it is \boxed{0.5}.", (True, True, True)),
        ("boxed", "number", "18", r"it is \boxed{18}", (True, True, True)),  # the solution is the answer
        ("boxed", "number", "18", "#### 18", (False, True, False)),
        ("boxed", "number", "18", r"\boxed{17} or \boxed{18}", (False, True, False)),
        ("boxed", "number", "18", r"<think>\boxed{17}?</think>It is \boxed{18}", (True, True, True)),
        ("boxed", "text", r"\boxed{red}", r"so \boxed{ Red }", (True, True, True)),
        ("tags", "number", "18", "<think>9+9</think> <answer>18</answer>", (True, True, True)),
        ("tags", "number", "18", "<answer>17</answer><answer>18</answer>", (False, False, False)),
        ("tags", "text", "Red", "<answer>red</answer> I think", (True, True, False)),
        ("last_number", "number", "18", "Half of 36 is 18.", (True, True, True)),
        ("last_number", "number", "18", "between 17 and 18", (False, False, False)),
        ("choice", "text", "B", "The answer is (B).", (True, True, True)),
        ("choice", "text", "(B) 12", "#### B", (True, True, True)),
        ("choice", "text", "B", "A is too small, so B", (False, True, False)),
        ("choice", "text", "B", "The answer is (C).", (False, False, True)),
        ("text", "text", "New York", "#### new  york", (True, True, True)),
        ("text", "text", "New York", "thinking\nNew York", (False, True, False)),
    ],
)
def test_answers_are_found_and_compared(extract, compare, solution, response, expected):
    assert verdict(Grader(extract, compare), solution, response) == expected


@pytest.mark.parametrize(
    "solution, response, right",
    [
        (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", True),
        (r"\boxed{x^2+2x+1}", r"\boxed{(x+1)^2}", True),
        (r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}", True),
        (r"\boxed{10}", r"\boxed{9+1}", True),
        (r"\boxed{\{1,2\}}", r"\boxed{\{2,1\}}", True),
        (r"\boxed{(1,2)}", r"\boxed{(2,1)}", False),
        (r"\boxed{x+1}", r"\boxed{x+2}", False),
        (r"\boxed{5}", r"\boxed{__import__('os').system('true')}", False),
        (r"\boxed{5}", r"\boxed{9^{9^{9^{9}}}}", False),
    ],
)
def test_formulas_are_compared_as_mathematics(solution, response, right):
    assert verdict(Grader("boxed", "math"), solution, response)[0] is right


def test_a_row_may_accept_several_answers():
    row = {"question": "?", "answer": "either", "accepted": ["Paris", "Lutetia"], "extract": "text", "compare": "text"}
    grader = grader_of(row)
    assert [grader.correct(grader.strict(f"#### {city}"), grader.gold(row)) for city in ("lutetia", "Rome")] == [
        True,
        False,
    ]
    numbers = grader_of({"extract": "boxed"})
    assert numbers.gold({"answer": "", "accepted": [3, "0.5"]}) == ("3", "0.5")
    assert numbers.gold({"answer": "", "accepted": [3, "3 or 4"]}) == ()


def test_a_gold_answer_that_the_grader_cannot_read_is_refused_with_its_row():
    row = {"question": "?", "answer": "none", "extract": "boxed"}
    with pytest.raises(SettingsError, match="file, row 1: the answer has no answer for extract: boxed: 'none'"):
        check_rows([row], "file")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"extract": "choice"}, "extract choice finds text, so it needs compare: text"),
        ({"extract": "last_number", "compare": "text"}, "extract last_number finds numbers"),
        ({"extract": "box"}, "'box'"),
    ],
)
def test_a_grader_that_compares_what_it_does_not_find_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(Grader, settings, "task")
