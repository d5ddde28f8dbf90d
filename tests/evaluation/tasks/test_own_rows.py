"""The user's own rows: formats, fields, conversations, repeats and refusals."""

import json

import pandas as pd
import pytest

from algos.pieces.settings import SettingsError, from_dict
from evaluation.config import PromptSettings
from evaluation.data import write_splits
from evaluation.tasks import TaskSettings, load_task
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.grader import grader_of

ROWS = [{"problem": f"What is {i} + {i}?", "solution": f"{i}+{i}={2 * i}\n#### {2 * i}"} for i in range(30)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def task(tmp_path, train=ROWS[:20], test=ROWS[20:], suffix=".jsonl", **settings) -> TaskSettings:
    files = {"train": write(tmp_path / f"train{suffix}", train), "test": write(tmp_path / f"test{suffix}", test)}
    fields = {"question": "problem", "answer": "solution"}
    return from_dict(TaskSettings, {"name": "rows", **files, **fields, **settings}, "task")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_rows_are_read_from_every_format(tmp_path, suffix):
    splits = load_task(task(tmp_path, suffix=suffix))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 18, "dev": 2, "test": 10, "demonstrations": 18,
    }  # fmt: skip
    assert splits["test"][0] == {"question": "What is 20 + 20?", "answer": "20+20=40\n#### 40"}


def test_sizes_bound_the_splits(tmp_path):
    splits = load_task(task(tmp_path, sizes={"train": 5, "test": 3}))
    assert len(splits["train"]) == 5 and len(splits["test"]) == 3


@pytest.mark.parametrize(
    "answer, extract, written, gold",
    [
        (18, "hash", "#### 18", ("18",)),
        (18.0, "boxed", r"\boxed{18}", ("18",)),
        ("so\n#### 18", "tags", "so\n<answer>18</answer>", ("18",)),
        (r"so \boxed{18}", "boxed", r"so \boxed{18}", ("18",)),
        (["18", "18.5"], "boxed", r"\boxed{18}", ("18", "18.5")),
    ],
)
def test_an_answer_is_put_where_the_grader_looks(tmp_path, answer, extract, written, gold):
    test = [{"problem": "new?", "solution": answer}]
    row = load_task(task(tmp_path, test=test, extract=extract))["test"][0]
    assert row["answer"] == written and grader_of(row).gold(row) == gold


def test_a_worked_solution_may_stand_beside_the_accepted_answers(tmp_path):
    test = [{"problem": "new?", "solution": "by and by", "final": ["18"]}]
    train = [{**row, "final": [row["solution"].split()[-1]]} for row in ROWS[:20]]
    row = load_task(task(tmp_path, train, test, accepted="final", extract="boxed"))["test"][0]
    assert row["answer"] == "by and by\n\\boxed{18}" and grader_of(row).gold(row) == ("18",)


def test_a_conversation_is_the_prompt_as_it_is(tmp_path):
    turns = [{"role": "system", "content": "Count."}, {"role": "user", "content": "1 + 1?"}]
    settings = task(tmp_path, test=[{"problem": turns, "solution": "2"}])
    write_splits(settings, PromptSettings(), tmp_path / "data")
    (row,) = read_jsonl(tmp_path / "data" / "test.jsonl")
    assert row["prompt"] == turns and row["question"] == "Count.\n1 + 1?"


def test_repeated_questions_are_kept_once_and_said(tmp_path, capsys):
    splits = load_task(task(tmp_path, train=ROWS[:20] + ROWS[:5]))
    assert len(splits["train"]) + len(splits["dev"]) == 20
    assert "train.jsonl: 5 questions occur again; the first of each is kept." in capsys.readouterr().err


def test_questions_that_nearly_repeat_a_test_question_are_refused_or_dropped(tmp_path):
    near = [{"problem": "what is  20+20", "solution": "#### 40"}]
    with pytest.raises(SettingsError, match=r"1 questions of train are in test too.*near_duplicates: drop"):
        load_task(task(tmp_path, train=ROWS[:20] + near))
    dropped = load_task(task(tmp_path, train=ROWS[:20] + near, near_duplicates="drop"))
    assert len(dropped["train"]) + len(dropped["dev"]) == 20
    kept = load_task(task(tmp_path, train=ROWS[:20] + near, near_duplicates="keep"))
    assert len(kept["train"]) + len(kept["dev"]) == 21


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path):
    settings = task(tmp_path)
    text = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    for data in (("\ufeff" + text.replace("\n", "\r\n")).encode(), text.encode("utf-16")):
        (tmp_path / "train.jsonl").write_bytes(data)
        assert len(load_task(settings)["train"]) == 18


@pytest.mark.parametrize(
    "data, message",
    [
        (
            b'{"problem": "a", "solution": "1"}\n{"problem": "caf\xe9"}\n',
            r"line 2: byte 0xe9 is not utf-8; save the file",
        ),
        (b'{"problem": "\\ud83d", "solution": "1"}\n', r"line 1: '\\ud83d' is half of a character"),
        (b'{"problem": "a"}\n', r"row 1: no field 'solution'; its fields are 'problem'"),
        (
            b'{"problem": "a", "solution": true}\n',
            r"row 1: an answer must be text, a number or a list of them, got 'True'",
        ),
        (b'{"problem": 3, "solution": "1"}\n', r"row 1: the question must be text, or a list"),
        (b'{"problem": [{"role": "bot", "content": "a"}], "solution": "1"}\n', r"got the turn"),
        (b'{"problem": [{"role": "assistant", "content": "a"}], "solution": "1"}\n', r"ends with assistant's"),
        (b'{"problem": "a", "solution": "red"}\n', r"the answer has no"),
        (b"", r"empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, data, message):
    settings = task(tmp_path)
    (tmp_path / "test.jsonl").write_bytes(data)
    with pytest.raises(SettingsError, match=message):
        load_task(settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train": "rows.txt"}, r"train: 'rows.txt' must end in .jsonl"),
        ({"train": "gone.jsonl"}, r"train: gone.jsonl does not exist"),
        ({"train": 5}, r"settings.train is missing"),
        ({"questions": "x"}, r"Did you mean 'question'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    files = {"train": write(tmp_path / "a.jsonl", ROWS), "test": write(tmp_path / "b.jsonl", ROWS)}
    with pytest.raises(SettingsError, match=message):
        from_dict(TaskSettings, {"name": "rows", **files, **settings}, "task")
