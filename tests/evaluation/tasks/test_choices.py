"""Which letter a response chooses."""

import pytest

from evaluation.tasks.grader import Grader

GRADER = Grader("choice", "text")


@pytest.mark.parametrize(
    "response, letter",
    [
        ("Answer: B", "B"),
        ("Final Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("ANSWER: B", "B"),
        ("Option B is correct.", "B"),
        ("Choice (B)", "B"),
        ("**B**", "B"),
        ("B. Paris", "B"),
        ("(B) Paris", "B"),
        ("The answer is $B$", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("\\boxed{\\textbf{(B)}}", "B"),
        ("#### Option B", "B"),
        ("#### Answer: B", "B"),
        ("#### The answer is B", "B"),
        ("#### B, because", "B"),
        ("#### A or B", None),
        ("#### A B C D", None),
        ("#### (A) (B) (C)", None),
        ("#### A / B", None),
        ("\\boxed{A or B}", None),
        ("<answer>A or B or C or D</answer>", None),
        ("The answer is A, B, C or D", None),
        ("The answer is not A", None),
        ("#### A better answer is C", None),
        ("#### a dog", None),
        ("#### I think B", None),
        ("The answer is not A but B.", None),
        ("The answer is B. Option A is wrong.", "B"),
        ("Answer:\nB", "B"),
        ("The correct answer is (C) because A is too small", "C"),
        ("#### B. Vitamin C", "B"),
        ("#### b", "B"),
        ("#### b) dog", "B"),
        ("#### A because it is", "A"),
        ("I think the answer is D, I guess", "D"),
        ("The answer is: **B) 12**", "B"),
        ("Option A is wrong. The answer is B", "B"),
        ("The best option is C.", "C"),
        ("The answer is (A) and (B)", None),
        ("The answer would be B", "B"),
        ("#### B) Paris or Rome", "B"),
        ("#### B. George W. Bush", "B"),
        ("#### C) John F. Kennedy", "C"),
        ("#### B. Vitamin C.", "B"),
        ("\\boxed{B. Washington D.C.}", "B"),
        ("#### C. Both A and B", "C"),
        ("<answer>D. A and B only</answer>", "D"),
        ("#### (B) Paris (C) Rome", None),
        ("#### A. B. C.", None),
        ("#### A. Paris or B. Rome", None),
        ("The answer is B, A is wrong", "B"),
        ("The answer is B, C is too small", "B"),
        ("The answer cannot be A, so B", None),
        ("The answer is a", None),
        ("#### C: 12", "C"),
        ("The answer is C)", "C"),
        ("A", "A"),
        ("I", "I"),
        ("(a)", "A"),
        ("The answer must be option E", "E"),
        ("#### B\nI hope it is right", "B"),
        ("Therefore, the answer is A.", "A"),
        ("Therefore, the answer is A because x", "A"),
    ],
)
def test_one_letter_is_chosen_or_none(response, letter):
    assert GRADER.strict(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("It is B, I think", "B"),
        ("The answer: B. A dog is big", "B"),
        ("A is too small, so B", "B"),
        ("I'd go with C", "C"),
    ],
)
def test_else_the_last_letter_that_is_no_word(response, letter):
    assert GRADER.flexible(response) == letter
