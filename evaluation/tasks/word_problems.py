"""GSM8K-style word problems from a generator: offline, unlimited, of a chosen difficulty.

A story of one to a few operations on one count, a chain of thought of one equation a line, and `#### <answer>`:

    Mia has 7 apples. Mia finds 5 more. Then Mia sells 3. How many apples does Mia have now?
    7+5=12
    12-3=9
    #### 9

The demonstrations come from a fallible demonstrator. With probability wrong_step_share the result of a step is wrong,
as if by another operation (7+5=2, 12-3=15, 4*2=6), and later steps continue from the wrong result. So reinforcement
learning has errors to remove, and a reward model has errors to recognize. Arithmetic drills ("What is 7+5?") are mixed
in; their answers are always right.
"""

import random
from typing import Annotated

from pydantic import Field, PositiveInt

from algos.pieces.settings import Share, settings
from evaluation.tasks.rows import all_given

NAMES = ("Mia", "Tom", "Ana", "Sam", "Leo", "Eva", "Max", "Zoe")
ITEMS = ("apples", "books", "coins", "cards", "shells", "pens", "stamps", "cups")
START = (
    "{name} has {n} {item}.",
    "{name} starts with {n} {item}.",
    "There are {n} {item} on the desk of {name}.",
    "{name} owns {n} {item}.",
    "In the box of {name} are {n} {item}.",
    "{name} counts {n} {item}.",
)
ADD = (
    "{name} finds {n} more.",
    "Then {name} buys {n} {item}.",
    "A friend gives {name} {n} more.",
    "{name} gets {n} {item} as a gift.",
    "Then {n} {item} are added.",
    "{name} wins {n} more.",
)
SUBTRACT = (
    "{name} gives away {n}.",
    "Then {name} sells {n} {item}.",
    "{name} loses {n} of them.",
    "{name} drops {n} {item}.",
    "Then {n} {item} are taken away.",
    "{name} lends {n} to a friend.",
)
DOUBLE = (
    "Then the number of {item} doubles.",
    "{name} doubles the {item}.",
    "Now {name} gets as many again.",
    "Then {name} has twice as many.",
    "The {item} double in number.",
    "{name} makes it twice as many.",
)
QUESTION = "How many {item} does {name} have now?"
DRILL = "What is {expression}?"
MAX_ATTEMPTS = 200  # tries per wanted problem before the settings are called too narrow


@settings
class WordProblemsConfig:
    min_steps: PositiveInt = 1  # operations per problem
    max_steps: int = 3
    start_min: PositiveInt = 2  # the first count
    start_max: int = 12
    operand_max: PositiveInt = 9  # operands are 1..operand_max
    double_share: Share = 0.1  # share of the steps that double instead of adding or subtracting
    phrasings: Annotated[int, Field(gt=0, le=len(ADD))] = 3  # sentences per operation
    wrong_step_share: Share = 0.25  # probability that a step of a demonstration is wrong
    drill_share: Share = 0.25  # share of the demonstrations that are plain arithmetic

    def __post_init__(self):
        if self.max_steps < self.min_steps:
            raise ValueError(f"max_steps must be at least min_steps = {self.min_steps}, got {self.max_steps}")
        if self.start_max < self.start_min:
            raise ValueError(f"start_max must be at least start_min = {self.start_min}, got {self.start_max}")


def _apply(value: int, operation: str, operand: int) -> tuple[str, int]:
    if operation == "double":
        return f"{value}*2", value * 2
    if operation == "add":
        return f"{value}+{operand}", value + operand
    return f"{value}-{operand}", value - operand


def _slip(value: int, operation: str, operand: int) -> int:
    """The result of a mistaken operation: a sum for a difference, a difference for a sum, value + 2 for a double."""
    if operation == "double":
        return value + 2 if value != 2 else value  # 2 + 2 would be right
    return value + operand if operation == "subtract" else abs(value - operand)


def _problem(config: WordProblemsConfig, rng: random.Random) -> tuple[str, int, list[tuple[str, int]]]:
    """A question, its first count, and its operations."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    start = value = rng.randint(config.start_min, config.start_max)
    sentences = [rng.choice(START[: config.phrasings]).format(name=name, item=item, n=start)]
    operations = []
    for _ in range(rng.randint(config.min_steps, config.max_steps)):
        operand = rng.randint(1, config.operand_max)
        if rng.random() < config.double_share:
            operation, phrases = "double", DOUBLE
        elif operand <= value and rng.random() < 0.5:
            operation, phrases = "subtract", SUBTRACT
        else:
            operation, phrases = "add", ADD
        value = _apply(value, operation, operand)[1]
        operations.append((operation, operand))
        sentences.append(rng.choice(phrases[: config.phrasings]).format(name=name, item=item, n=operand))
    question = " ".join([*sentences, QUESTION.format(name=name, item=item)])
    return question, start, operations


def _solution(start: int, operations, rng: random.Random, wrong_step_share: float) -> str:
    """A worked solution. wrong_step_share > 0: some steps are wrong, and later steps continue from the wrong result."""
    value, lines = start, []
    for operation, operand in operations:
        slipped = rng.random() < wrong_step_share
        mistaken = _slip(value, operation, operand)
        expression, value = _apply(value, operation, operand)
        value = mistaken if slipped else max(value, 0)  # after an earlier mistake a subtraction may go below 0
        lines.append(f"{expression}={value}")
    return "\n".join([*lines, f"#### {value}"])


def _drill(config: WordProblemsConfig, rng: random.Random) -> dict:
    value = rng.randint(config.start_min, config.start_max + config.operand_max * (config.max_steps - 1))
    operand = rng.randint(1, config.operand_max)
    operation = "double" if rng.random() < config.double_share else "subtract" if rng.random() < 0.5 else "add"
    if operation == "subtract" and operand > value:
        operation = "add"
    expression, result = _apply(value, operation, operand)
    return {"question": DRILL.format(expression=expression), "answer": f"{expression}={result}\n#### {result}"}


def load(config: WordProblemsConfig, sizes: dict[str, int | None], seed: int) -> dict[str, list[dict]]:
    """Splits train, dev, test (disjoint by question text) and demonstrations (of train questions), from the seed.

    Raises ValueError if the settings allow too few different questions.
    """
    wanted = all_given(sizes, "word_problems")
    rng = random.Random(seed)
    seen, splits, sources = set(), {}, {}
    for split in ("test", "dev", "train"):
        rows: list[dict] = []
        attempts = 0
        while len(rows) < wanted[split]:
            attempts += 1
            if attempts > MAX_ATTEMPTS * wanted[split]:
                raise ValueError(f"the settings allow too few different questions for {wanted[split]} {split} problems")
            question, start, operations = _problem(config, rng)
            if question in seen:
                continue
            seen.add(question)
            sources[question] = (start, operations)
            rows.append({"question": question, "answer": _solution(start, operations, rng, 0.0)})
        splits[split] = rows
    demonstrations = []
    for _ in range(wanted["demonstrations"]):
        if rng.random() < config.drill_share:
            demonstrations.append(_drill(config, rng))
            continue
        question = rng.choice(splits["train"])["question"]
        start, operations = sources[question]
        answer = _solution(start, operations, rng, config.wrong_step_share)
        demonstrations.append({"question": question, "answer": answer})
    return {**splits, "demonstrations": demonstrations}
