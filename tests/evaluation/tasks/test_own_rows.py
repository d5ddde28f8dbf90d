"""The user's own rows: formats, fields, conversations, repeats and refusals."""

import json
from datetime import datetime, timedelta
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
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
        ({"train": 5}, r"train: 5 names no file of rows; numbers of rows go into `sizes`"),
        ({"questions": "x"}, r"Did you mean 'question'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    files = {"train": write(tmp_path / "a.jsonl", ROWS), "test": write(tmp_path / "b.jsonl", ROWS)}
    with pytest.raises(SettingsError, match=message):
        from_dict(TaskSettings, {"name": "rows", **files, **settings}, "task")


def refused(settings: TaskSettings) -> str:
    with pytest.raises(SettingsError) as error:
        load_task(settings)
    return str(error.value)


def test_a_row_that_is_wrong_is_named_by_its_place_in_its_file(tmp_path):
    for wrong, said in (({"solution": "red"}, "the answer has no"), ({"problem": " "}, "the field 'problem' is empty")):
        rows = [*ROWS[:7], {**ROWS[7], **wrong}, *ROWS[8:20]]
        assert f"train.jsonl, row 8: {said}" in refused(task(tmp_path, train=rows))


def test_fields_that_the_stages_use_stand_in_a_place_of_their_own(tmp_path):
    row = load_task(task(tmp_path, test=[{"problem": "new?", "solution": "1", "id": 7, "prompt": "x", "level": 2}]))
    assert row["test"][0]["own"] == {"id": 7, "prompt": "x"} and row["test"][0]["level"] == 2


def test_parquet_columns_that_json_does_not_know(tmp_path):
    day = datetime(2026, 1, 2, 3)
    table = pa.table({
        "problem": [f"{i} tenths?" for i in range(4)],
        "solution": pa.array([0.1, 0.3, 2.0, 0.7], pa.float32()),
        "made": [day] * 4, "took": [timedelta(seconds=5)] * 4, "price": [Decimal("1.50")] * 4,
        "image": [b"\x89png"] * 4, "note": [b"in \xc3\xa9"] * 4, "near": pa.array([[0.1]] * 4, pa.list_(pa.float32())),
        "deep": [{"at": day, "raw": b"\xff"}] * 4,
    })  # fmt: skip
    settings = task(tmp_path, suffix=".parquet")
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    rows = load_task(settings)["test"]
    assert [row["answer"] for row in rows] == ["#### 0.1", "#### 0.3", "#### 2", "#### 0.7"]
    rest = {
        "made": "2026-01-02T03:00:00",
        "took": "0:00:05",
        "price": "1.50",
        "near": [0.1],
        "deep": {"at": day.isoformat()},
    }
    assert {key: rows[0][key] for key in rest} == rest and "image" not in rows[0]


@pytest.mark.parametrize(
    "train, test, near",
    [
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("Round 1.5 up", "Round 15 up", False),
        ("What is \u222b?", "What is \u221a?", False),
        ("5 1?", "51?", False),
        ("Take 50% of it", "Take 50 of it", False),
        ("A well-known 3.", "a well known, 3!", True),
        ("1,000 apples", "1000  Apples", True),
    ],
)
def test_arithmetic_is_no_punctuation(tmp_path, train, test, near):
    settings = task(tmp_path, [*ROWS[:9], {"problem": train, "solution": "1"}], [{"problem": test, "solution": "2"}])
    if near:
        assert "1 questions of train are in test too" in refused(settings)
    else:
        load_task(settings)


def test_no_split_of_worked_solutions_shows_test_or_dev_questions(tmp_path):
    shown = write(tmp_path / "shown.jsonl", ROWS[15:25])
    kept = task(tmp_path, demonstrations=shown, near_duplicates="keep")
    assert "the demonstrations question 'What is 20 + 20?' is in test too" in refused(kept)
    assert "5 questions of dev are in test too" in refused(task(tmp_path, dev=shown))
    splits = load_task(task(tmp_path, demonstrations=write(tmp_path / "same.jsonl", ROWS[:20])))
    assert {row["question"] for row in splits["demonstrations"]} == {row["question"] for row in splits["train"]}


def test_repeated_questions_with_other_answers_are_said(tmp_path, capsys):
    load_task(task(tmp_path, train=[*ROWS[:20], {**ROWS[3], "solution": "#### 9"}, ROWS[4]]))
    said = capsys.readouterr().err
    assert "2 questions occur again" in said and "1 of them have another answer than the first one" in said


@pytest.mark.parametrize(
    "suffix, text, message",
    [
        (".jsonl", '{"problem": "a", "solution": "1", "solution": "2"}\n', "line 1: the key 'solution' stands twice"),
        (".json", '[{"problem": "\\ud83d", "solution": "1"}]', "is half of a character"),
        (".csv", "problem,solution,solution\na,1,2\n", "two columns are called 'solution'"),
        (".jsonl", '{"problem": "a", "solution": null}\n', "row 1: the field 'solution' is empty"),
        (".jsonl", '{"problem": "a", "solution": "(5)"}\n', "the answer has no final line"),
        (".jsonl", '{"problem": "a", "solution": "5!"}\n', "the answer has no final line"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(tmp_path, suffix, text, message):
    settings = task(tmp_path, suffix=suffix)
    (tmp_path / f"test{suffix}").write_text(text)
    assert message in refused(settings)


def test_one_row_to_train_on_is_too_few_without_a_dev_file(tmp_path):
    assert "has 1 rows to train on, and dev is taken from them; give `dev:`" in refused(task(tmp_path, train=ROWS[:1]))


def test_the_name_of_a_size_is_a_split(tmp_path):
    with pytest.raises(SettingsError, match=r"sizes: 'tran' is unknown.*Did you mean 'train'"):
        task(tmp_path, sizes={"tran": 2})


def test_columns_without_a_name_are_no_fields(tmp_path):
    settings = task(tmp_path, suffix=".csv")
    (tmp_path / "test.csv").write_text("problem,solution,,\na,1,,\n")
    assert len(load_task(settings)["test"]) == 1


def test_an_answer_beside_the_worked_solution_is_kept(tmp_path):
    row = load_task(task(tmp_path, test=[{"problem": "new?", "solution": "1+1=2\n#### 2", "answer": "2"}]))["test"][0]
    assert row["answer"] == "1+1=2\n#### 2" and row["own"] == {"answer": "2"}
