"""Malformed data files of every format, each with what its one sentence must say: file, row, value and fix."""

import json
from pathlib import Path

from tests.faults.bad.cases import Case

GOOD = {"question": "What is 1+1?", "answer": "It is 2.\n#### 2"}
TEST = {"question": "What is 2+2?", "answer": "It is 4.\n#### 4"}
DEV = {"question": "What is 3+3?", "answer": "It is 6.\n#### 6"}


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows(what: str, name: str, content: bytes, says: str, **task) -> Case:
    """A train file with this content, beside a good test file, read by the stage that makes the data."""

    def words(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        (folder / "test.jsonl").write_bytes(lines(TEST))
        (folder / "dev.jsonl").write_bytes(lines(DEV))
        given = {"name": "rows", "train": str(folder / name), **task}
        given = {"test": str(folder / "test.jsonl"), "dev": str(folder / "dev.jsonl"), **given}
        return ["evaluation.data", "--task", json.dumps(given), "--out", str(folder / "out")]

    return Case(f"data: {what}", words, f"^error: {says}")


def pairs(what: str, content: bytes, says: str, **settings) -> Case:
    """Preference pairs of a user's own."""

    def words(folder: Path) -> list[str]:
        (folder / "pairs.jsonl").write_bytes(content)
        given = json.dumps({"seed": 0, **settings})
        module = "algos.training.rewards.preferences"
        return [module, "--settings", given, "--pairs", str(folder / "pairs.jsonl"), "--out", str(folder / "out")]

    return Case(f"pairs: {what}", words, f"^error: {says}")


def problems(what: str, content: bytes, says: str) -> Case:
    """The problems of an evaluation."""

    def words(folder: Path) -> list[str]:
        (folder / "test.jsonl").write_bytes(content)
        given = ["--settings", "{}", "--problems", str(folder / "test.jsonl"), "--out", str(folder / "out")]
        return ["evaluation.evaluate", *given, str(folder)]

    return Case(f"problems: {what}", words, f"^error: {says}")


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
ROW = r"\S+train\.jsonl, row"
LINE = r"\S+train\.jsonl, line"
WIDE = b"question,answer\n" + b"x" * 140_000 + b",#### 2\n"
CASES = [
    rows("empty JSONL", "train.jsonl", b"", r".*(is empty|no rows|has no row)"),
    rows("no JSON", "train.jsonl", b"hello\n", f"{LINE} 1: not JSON"),
    rows("half a line", "train.jsonl", lines(GOOD) + b'{"question": "wh', f"{LINE} 2: not JSON"),
    rows("a list a line", "train.jsonl", b"[1, 2]\n", f"{LINE} 1: expected one JSON object, got list"),
    rows(
        "half of a character",
        "train.jsonl",
        b'{"question": "\\ud800", "answer": "#### 1"}\n',
        f"{LINE} 1: .* half of a",
    ),
    rows(
        "bytes of another encoding", "train.jsonl", b'{"question": "\xe9"}\n', f"{LINE} 1: byte 0xe9 is not utf-8; save"
    ),
    rows(
        "an encoding that is none", "train.jsonl", lines(GOOD), r"\S+: no encoding is called 'utf-9'", encoding="utf-9"
    ),
    rows("JSON 100,000 deep", "train.jsonl", b'{"question": ' + b"[" * 100_000 + b"\n", f"{LINE} 1: nested too deeply"),
    rows(
        "a number of 5,000 digits", "train.jsonl", b'{"answer": ' + b"1" * 5000 + b"}\n", f"{LINE} 1: a number .*digits"
    ),
    rows("no question", "train.jsonl", lines({"answer": "#### 1"}), f"{ROW} 1: no field 'question'; its fields are"),
    rows(
        "a question of null",
        "train.jsonl",
        lines(GOOD, {**GOOD, "question": None}),
        f"{ROW} 2: the field 'question' is empty",
    ),
    rows(
        "a number for a question", "train.jsonl", lines({**GOOD, "question": 3}), f"{ROW} 1: the question must be text"
    ),
    rows(
        "a blank question",
        "train.jsonl",
        lines(GOOD, {**GOOD, "question": "  "}),
        f"{ROW} 2: the field 'question' is empty",
    ),
    rows(
        "an empty conversation", "train.jsonl", lines({**GOOD, "question": []}), f"{ROW} 1: the question must be text"
    ),
    rows(
        "a turn of nobody",
        "train.jsonl",
        lines({**GOOD, "question": [{"role": "root", "content": "x"}]}),
        f"{ROW} 1: the question must be .*got the turn",
    ),
    rows(
        "a last turn of the assistant",
        "train.jsonl",
        lines({**GOOD, "question": [{"role": "assistant", "content": "x"}]}),
        f"{ROW} 1: .*it ends with assistant's",
    ),
    rows(
        "an answer of true", "train.jsonl", lines({**GOOD, "answer": True}), f"{ROW} 1: an answer must be text, a numb"
    ),
    rows("no answers", "train.jsonl", lines({**GOOD, "answer": []}), f"{ROW} 1: an answer must be text, a number"),
    rows("an infinite answer", "train.jsonl", b'{"question": "q", "answer": Infinity}\n', ".*(answer|JSON).*"),
    rows(
        "an answer without a number",
        "train.jsonl",
        lines({**GOOD, "answer": "two"}),
        ".*row 1: the answer has no final",
    ),
    rows("null", "train.jsonl", b"null\n", f"{LINE} 1: expected one JSON object, got NoneType"),
    rows("a test question", "train.jsonl", lines(GOOD, TEST), "1 questions of train are in test too"),
    rows(
        "a train file for a test file",
        "train.jsonl",
        lines(GOOD),
        "task: settings: test: no.jsonl does not exist",
        test="no.jsonl",
    ),
    rows(
        "a format that is none",
        "train.xml",
        b"<a/>",
        r"task: settings: train: '\S+xml' must end in \.jsonl, \.json, \.csv",
    ),
    rows("JSON, not a list", "train.json", b'{"question": "q"}', r"\S+: expected a list of JSON objects"),
    rows("broken JSON", "train.json", b'[\n{"question": }]', r"\S+train\.json, line 2: not JSON"),
    rows("JSON 100,000 deep in one list", "train.json", b"[" * 100_000, r"\S+train\.json.*: nested too deeply"),
    rows(
        "CSV without a header", "train.csv", b"1+1,#### 2\n2+2,#### 4\n", r"\S+train\.csv, row 1: no field 'question'"
    ),
    rows(
        "CSV with a short row",
        "train.csv",
        b"question,answer\nq\n",
        r"\S+train\.csv, row 1: the field 'answer' is empty",
    ),
    rows(
        "CSV with a long row", "train.csv", b"question,answer\nq,#### 1,2,3\n", r"\S+train\.csv, row 1: more .*columns"
    ),
    rows(
        "CSV with a cell of 140,000 letters",
        "train.csv",
        WIDE,
        r"\S+train\.csv.*: field larger than .*; write longer texts as JSONL",
    ),
    rows(
        "CSV with a zero byte",
        "train.csv",
        b"question,answer\nq\x00,x\n",
        r"\S+train\.csv.*|.*answer has no final line",
    ),
    rows("TSV with commas", "train.tsv", b"question,answer\nq,#### 1\n", r"\S+train\.tsv, row 1: no field 'question'"),
    rows("Parquet that is none", "train.parquet", b"PAR1 no", r"\S+train\.parquet: not a Parquet file"),
    rows("an empty Parquet file", "train.parquet", b"", r"\S+train\.parquet: not a Parquet file"),
    pairs("empty", b"", r"\S+pairs\.jsonl has 0 different prompts"),
    pairs("no prompt", lines({"chosen": "a", "rejected": "b"}), r"\S+, row 1: 'prompt' must be a text"),
    pairs(
        "messages of numbers", lines({**PAIR, "prompt": [1]}), r"\S+, row 1: 'prompt' must be a text or a list of chat"
    ),
    pairs(
        "a message of a number",
        lines({**PAIR, "prompt": [{"role": "user", "content": 1}]}),
        r"\S+, row 1: 'prompt' must",
    ),
    pairs(
        "a response of null", lines({**PAIR, "rejected": None}), r"\S+, row 1: 'rejected' must be a text that is not"
    ),
    pairs(
        "equal responses", lines({**PAIR, "rejected": "2"}), r"\S+, row 1: 'chosen' and 'rejected' are the same text"
    ),
    pairs("one prompt", lines(PAIR), r"\S+ has 1 different prompts; held_out_share"),
    pairs("an unknown setting", lines(PAIR), "preferences, key: 'x' is unknown", x=1),
    problems("empty", b"", r"\S+test\.jsonl is empty; at least one problem"),
    problems("no gold answer", lines({"question": "q", "answer": "no"}), r"\S+, row 1: the answer has no final line"),
    problems("an id that is missing", lines({**TEST, "prompt": "p"}), r"\S+, row 1: 'id' must be a text, got None"),
    problems(
        "two equal ids", lines(*2 * [{**TEST, "id": "a", "prompt": "p"}]), r"\S+, row 2: the id 'a' is that of row 1"
    ),
    problems(
        "no prompt",
        lines({**TEST, "id": "a"}),
        r"\S+, row 1: 'prompt' must be a text or a list of chat messages, got 'None'",
    ),
]
