"""Which number a line says, and which of a response's numbers is its answer."""

import time

import pytest

from evaluation.tasks.answers import extract_flexible, extract_strict
from evaluation.tasks.grader import Grader


@pytest.mark.parametrize(
    "line, number",
    [
        ("3 fourths", None),
        ("2 thirds", None),
        ("5 tenths", None),
        ("5 halves", None),
        ("5 hundred thousand", "500000"),
        ("2 hundred million", "200000000"),
        ("5 millions", "5000000"),
        ("5 thousands", "5000"),
        ("3 dozens", "36"),
        ("3 crore", "30000000"),
        ("2 lakh", "200000"),
        ("5, six", None),
        ("5 six", None),
        ("5/six", None),
        ("5 mod seven", None),
        ("5 less two", None),
        ("5 nor six", None),
        ("2πr²", None),
        ("5(x+y)", None),
        ("2 log(x)", None),
        ("5 times", "5"),
        ("3 times as many", "3"),
        ("20 cups of flour", "20"),
        ("8 hours of sleep", "8"),
        ("12 pairs of shoes", "12"),
        ("3 cookies left over", "3"),
        ("1 point", "1"),
        ("5 miles to go", "5"),
        ("18 to the nearest dollar", "18"),
        ("18 dollars a day", "18"),
        ("10/4 = 2.5", "2.5"),
        ("1/2 = 0.5", "0.5"),
        ("½ = 0.5", "0.5"),
        ("1 1/2 = 1.5", "1.5"),
        ("x = 5 or x = 6", None),
        ("5 or x = 6", None),
        ("x = 5, y = 6", None),
        ("5, 6, x = 6", None),
        ("x != 6", None),
        ("x >= 6", None),
        ("x = 6", "6"),
        ("1,000 + 5 = 1,005", "1005"),
        ("2 ½", "5/2"),
        ("1 ½ cups", "3/2"),
        ("2  1/2", "5/2"),
        ("\\frac{ 3 }{ 4 }", "3/4"),
        ("USD 18", "18"),
        ("US$18", "18"),
        ("EUR 18", "18"),
        ("Rs. 18", "18"),
        ("₱18", "18"),
        ("18元", "18"),
        ("18 个", "18"),
        ("18円", "18"),
        ("18명", "18"),
        ("5 °C", "5"),
        ("18</answer>", "18"),
        ("(18)", "-18"),
        ("(1,5)", None),
        ("(1, 5)", None),
        ("(1,234)", "-1234"),
        ("5 months", "5"),
        ("7 widths", "7"),
        ("5 two-pound bags", None),
        ("4 quarters", "4"),
        ("5 (apples)", "5"),
        ("5 dollar(s)", "5"),
        ("3/4 of them", None),
        ("50% of them", None),
        ("10 of them", "10"),
        ("2 and a half", None),
        ("**18**", "18"),
        ("*18*", "18"),
        ("__18__", "18"),
        ("**18 dollars**", "18"),
        ("**Answer: 18**", "18"),
        ("18 **", "18"),
        ("2**3", None),
        ("5*3", None),
        ("5 * 3 = 15", "15"),
        ("5 = 7 = 6", None),
        ("10 ** 100", None),
        ("2 ** 1/2", None),
        ("1 __ 1/2", None),
        ("1 *000*", None),
        ("2 <br> 1/2", None),
        ("2<br>1/2", None),
        ("2 to the tenth power", None),
        ("2 to the fourth", None),
        ("1 out of every five", None),
        ("5 times itself", None),
        ("5 dollars and 50 cents = 5.50", "5.5"),
        ("1 and 1/2 = 1.5", "1.5"),
        ("2 hours and 30 minutes = 150 minutes", "150"),
        ("(1,234 apples)", "1234"),
        ("1 canteen", "1"),
        ("4 log cabins", "4"),
        ("18\n</think>", "18"),
        ("18<br>", "18"),
        ("<<9*2=18>>18", "18"),
    ],
)
def test_the_whole_line_is_the_answer(line, number):
    assert extract_strict(f"#### {line}") == number


@pytest.mark.parametrize(
    "response, number",
    [
        ("The answer is **18**.", "18"),
        ("Answer: **18**", "18"),
        ("**Answer:** 18", "18"),
        ("She makes **18** dollars.", "18"),
        ("### Final Answer\n**18**", "18"),
        ("* 18 apples", "18"),
        ("The total: *18*", "18"),
        ("__18__", "18"),
        ("The answer is 5. I hope my answer is correct.", "5"),
        ("The answer is 5.\nLet me know if the answer is helpful!", "5"),
        ("The answer is twenty-five.", None),
        ("The answer is thirty-two", None),
        ("The answer is one hundred", None),
        ("the answer is five or six", None),
        ("the answer is two thirds", None),
        ("the answer is unclear; two people disagree", None),
        ("The answer is: five.", "5"),
        ("the answer is **seven**", "7"),
        ("<think>Maybe\n#### 5?\n</think>\n#### 6", "6"),
        ("<think>I restate.\nQuestion: how many?\n6.</think>\n#### 6", "6"),
        ("<think>try <answer>5</answer></think><answer>6</answer>", "6"),
        ("Sure!\nQuestion: How many?\nIt is 2*3.\n#### 6", "6"),
        ("<|begin_of_thought|>x 3<|end_of_thought|><|begin_of_solution|>\n#### 6", "6"),
        ("#### 1. Compute the total\n\nWe add.\n\n#### 42", "42"),
        ("#### 1. Compute\nWe add.\n#### 42", "42"),
        ("#### 1. Add\n#### 2. Sum it\n so \n#### 42", "42"),
        ("#### 1/2\n#### 0.5", "0.5"),
        ("<answer>1/2</answer> so <answer>0.5</answer>", "0.5"),
        ("He has 3 apples. Total:18", "18"),
        ("他一共有18个苹果。", "18"),
        ("He has 18 apples (9 + 9).", None),
        ("The answer is not 5 but 6.", None),
        ("The answer is two plus 3 = 5", None),
        ("The answer is ten less than 50: 40", None),
        ("The answer is one of 5", "5"),
        ("It takes 2 and a half hours.", None),
        ("2 + 3 = 5", "5"),
        ("7 × 8", None),
        ("<answer>#### 6</answer>", "6"),
        ("10. She has 3 left", "3"),
        ("x**2 is 9", "9"),
        ("He needs 5 hundred thousand", "500000"),
        ("- **Total**: 18", "18"),
        ("Total = **$1,234.50**", "1234.5"),
        ("**Total: 9 * 2 = 18**", "18"),
        ("18*", "18"),
        ("3 * 4 * 5 = 60", "60"),
        ("the answer is 3*4*5 = 60", "60"),
        ("the answer is 2 * 3", None),
    ],
)
def test_the_number_that_a_reader_would_take(response, number):
    assert extract_flexible(response) == number


@pytest.mark.parametrize(
    "response", ["#### 5{}or 6", "<answer>5{}or 6</answer>", "\\boxed{{5{}or 6}}", "The answer is 5{}or 6"]
)
def test_padding_hides_no_second_answer(response):
    for extract in ("hash", "boxed", "tags", "last_number"):
        assert Grader(extract).strict(response.format(" " * 450)) is None
        assert Grader(extract).strict(response.format(" \t" * 2500)) is None


@pytest.mark.parametrize(
    "text",
    [
        "#### 5" + "\n" * 40_000,
        "#### 5" + "\n " * 40_000,
        "####" + "\n \n" * 40_000 + "x",
        "the answer is x " * 12_000,
        "the answer is five " * 10_000,
        "answer: A B " * 10_000,
        "option (A) " * 10_000,
        "A " * 50_000,
        "**" * 50_000,
        "*a" * 50_000,
        "_a" * 50_000,
        "</think>" * 20_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_repetition_is_graded_in_no_time(text):
    for grader in (Grader(), Grader("boxed"), Grader("tags"), Grader("choice", "text"), Grader("hash", "text")):
        for grade in (grader.strict, grader.flexible, grader.has_format):
            started = time.process_time()
            grade(text)
            assert time.process_time() - started < 0.5  # at most 0.15 here


def test_what_strict_finds_flexible_finds():
    for extract, response in (("tags", "#### 1. Add\n\n40+2\n\n<answer>42</answer>"), ("boxed", r"\boxed{#### 42}")):
        assert Grader(extract).strict(response) == Grader(extract).flexible(response) == "42"


@pytest.mark.parametrize(
    "answer", ["Paris", '"Paris".', "\u201cparis\u201d", "`Paris`", "**Paris!**", "\u200bPar\u200bis"]
)
def test_marks_around_a_text_are_not_compared(answer):
    assert Grader("hash", "text").strict(f"#### {answer}") == "paris"


@pytest.mark.parametrize(
    "one, other", [("n!", "n"), ("__init__", "init"), ("f'", "f"), ('5"', "5"), ("a.b", "ab"), ("*x", "x")]
)
def test_marks_that_belong_to_a_text_are_compared(one, other):
    grader = Grader("hash", "text")
    assert grader.canonical(one) != grader.canonical(other)
