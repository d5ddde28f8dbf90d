"""Random mutations of studies, responses and data files: each is read, graded or refused in one sentence.

    python -m tests.faults.fuzz --studies 10000 --responses 100000 --files 10000

Prints how many were read and how many refused; anything else that a mutation raises is a crash, printed with its input.
"""

import argparse
import copy
import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from algos.pieces.settings import SettingsError
from algos.training.rewards.rules import RULES, Response, RewardSettings
from evaluation.tasks import TaskSettings, load_task
from evaluation.tasks.grader import Grader, grader_of
from pipelines.study import Study
from pipelines.tree import tree

SMOKE = yaml.safe_load((Path(__file__).parents[2] / "pipelines/studies/smoke.yaml").read_text(encoding="utf-8"))
VALUES = (
    None,
    3,
    -1,
    0,
    0.5,
    1e400,
    float("nan"),
    10**30,
    True,
    "x",
    "",
    "../x",
    "/",
    "a\nb",
    "é",
    "\x00",
    "{",
    [],
    [1],
)
VALUES = (*VALUES, [[]], {}, {"a": 1}, {"": None}, "grpo", "base", "rl", "train", "cold_start", ["grpo"], "1e-4", " ")
PIECES = ("####", "#### ", "\\boxed{", "}", "{", "<answer>", "</answer>", "<think>", "</think>", "\n", "\n\n", " ", "$")
PIECES = (
    *PIECES,
    "7",
    "12",
    "1,234",
    "0.5",
    "1/2",
    "1/0",
    "-",
    "+",
    "=",
    ".",
    "e9",
    "1e999",
    "%",
    "(A)",
    "the answer is",
)
PIECES = (
    *PIECES,
    "wait",
    "Question:",
    "答案是",
    "\u2212",
    "٣",
    "½",
    "\u0000",
    "\ud800",
    "\U0001f600",
    "NaN",
    "inf",
    "**",
)
PIECES = (
    *PIECES,
    "\\frac{1}{2}",
    "\\frac",
    "^",
    "_",
    "9" * 400,
    "(" * 50,
    "__import__('os')",
    "<script>",
    "; rm -rf /",
)
GRADERS = [Grader(e, "number") for e in ("hash", "boxed", "tags", "last_number")]
GRADERS += [Grader(e, "text") for e in ("hash", "boxed", "tags", "choice", "text")]
QUESTION = {"question": "What is 1+1?", "answer": "It is 2.\n#### 2"}


def places(value: object, place: tuple = ()) -> list[tuple]:
    """The keys down to every value within a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in parts for found in ((*place, key), *places(part, (*place, key)))]


def study(draws: random.Random) -> dict:
    """The smoke study after one to three mutations: a value replaced, a key removed or renamed, or a part copied."""
    config = copy.deepcopy(SMOKE)
    for _ in range(draws.choice((1, 1, 2, 3))):
        if not (found := places(config)):
            break
        place = draws.choice(found)
        section = config
        for key in place[:-1]:
            section = section[key]
        kind = draws.randrange(6)
        if kind == 0:
            del section[place[-1]]
        elif kind == 1 and isinstance(section, dict):
            section[draws.choice((f"{place[-1]}x", "like", "vary", "from", "path", "seeds"))] = section.pop(place[-1])
        elif kind == 2:
            section[place[-1]] = copy.deepcopy(config.get(draws.choice(list(config))) if config else None)
        else:
            section[place[-1]] = copy.deepcopy(draws.choice(VALUES))
    return config


def read_study(config: dict) -> None:
    made = Study(config, "x")
    assert made.report() and made.warnings is not None and tree(made)


def response(draws: random.Random) -> str:
    """A response made of the pieces that the grader knows, of others and of letters."""
    text = "".join(draws.choice(PIECES) for _ in range(draws.randrange(14)))
    return text * draws.choice((1, 1, 1, 1, 1, 1, 40))


def grade(text: str) -> None:
    """By every grader and every rule: each gives an answer and a number."""
    for grader in GRADERS:
        for found in (grader.strict(text), grader.flexible(text)):
            assert found is None or grader.canonical(found) is not None
            assert grader.correct(found, ("2",)) in (True, False)
        grader.gold({"answer": text})
        grader.has_format(text)
    seen = Response(text, len(text), 100, False, QUESTION, "")
    scores = [rule.score(seen, RewardSettings()) for rule in RULES.values()]
    assert all(-1 <= score <= 1 for score in scores)
    assert grader_of(QUESTION) == Grader()


def data_file(draws: random.Random) -> tuple[str, bytes]:
    """The ending and the bytes of a file of rows after some mutations: of its values, of its bytes, or of both."""
    rows = [{"question": f"What is {i}+1?", "answer": f"#### {i + 1}", "level": i} for i in range(6)]
    for _ in range(draws.randrange(3)):
        row = draws.choice(rows)
        key = draws.choice((*row, "extract", "compare", "accepted", "id", "prompt", "messages"))
        row[key] = copy.deepcopy(draws.choice(VALUES))
    ending = draws.choice((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
    content = bytearray(encoded(rows, ending))
    for _ in range(draws.choice((0, 0, 1, 5))):
        if content:
            content[draws.randrange(len(content))] = draws.randrange(256)
    return ending, bytes(content[: draws.randrange(len(content) + 1)] if draws.random() < 0.2 else content)


def encoded(rows: list[dict], ending: str) -> bytes:
    import pandas as pd

    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".json":
        return json.dumps(rows).encode()
    table, out = pd.DataFrame([{k: str(v) for k, v in row.items()} for row in rows]), io.BytesIO()
    if ending == ".parquet":
        table.to_parquet(out)
        return out.getvalue()
    return table.to_csv(index=False, sep="\t" if ending == ".tsv" else ",").encode("utf-8", "replace")


def read_file(made: tuple[str, bytes], folder: Path) -> None:
    ending, content = made
    path = folder / f"train{ending}"
    path.write_bytes(content)
    (folder / "test.jsonl").write_text(json.dumps({**QUESTION, "question": "How many?"}) + "\n")
    task = TaskSettings("rows", settings={"train": str(path), "test": str(folder / "test.jsonl")})
    for rows in load_task(task).values():
        assert all(isinstance(row["question"], str) and grader_of(row).gold(row) for row in rows)
        json.dumps(rows)


def trial(what: str, count: int, make: Callable, take: Callable, seed: int = 0) -> Counter:
    """Make and take so many inputs; counts those that were taken and refused, and prints those that crash."""
    draws, counts = random.Random(f"{what} {seed}"), Counter[str]()
    for _ in range(count):
        made = make(draws)
        try:
            take(made)
            counts["taken"] += 1
        except SettingsError as error:
            one = "\n" not in str(error) and len(str(error)) > 10
            counts["refused" if one else "refused in more than one line"] += 1
        except Exception as error:
            counts["crashes"] += 1
            print(f"{what}: {type(error).__name__}: {str(error)[:200]!r} at {str(made)[:600]!r}", flush=True)
    shown = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    print(f"{count:,} {what}: {shown or 'none'}; {counts['crashes']} crashes", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = [
            trial("studies", args.studies, study, read_study, args.seed),
            trial("responses", args.responses, response, grade, args.seed),
            trial("data files", args.files, data_file, lambda made: read_file(made, Path(folder)), args.seed),
        ]
    bad = sum(counts[name] for counts in done for name in ("crashes", "refused in more than one line"))
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
