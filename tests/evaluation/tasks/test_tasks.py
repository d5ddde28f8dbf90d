import json
import re

import pytest

from algos.pieces.settings import SettingsError, from_dict
from evaluation.config import PromptSettings
from evaluation.data import main, write_splits
from evaluation.tasks import TASKS, TaskSettings, check_rows, load_task
from evaluation.tasks.answers import gold_answer
from evaluation.tasks.files import read_jsonl

SMALL = {"train": 60, "dev": 10, "test": 20, "demonstrations": 200}


def word_problems(seed=0, **settings):
    return load_task(TaskSettings("word_problems", seed=seed, settings=settings, **SMALL))


def steps(answer: str) -> list[tuple[str, int]]:
    """The equations of a worked solution as (expression, result)."""
    return [(m[1], int(m[2])) for m in re.finditer(r"^(\d+[-+*]\d+)=(\d+)$", answer, re.M)]


def calculate(expression: str) -> int:
    left, operation, right = re.fullmatch(r"(\d+)([-+*])(\d+)", expression).groups()
    return {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operation](int(left), int(right))


def test_gold_solutions_are_right_chained_and_end_in_their_answer():
    for row in word_problems()["train"]:
        equations = steps(row["answer"])
        assert 1 <= len(equations) <= 3
        for (expression, result), following in zip(equations, [*equations[1:], None], strict=True):
            assert calculate(expression) == result >= 0
            assert following is None or following[0].startswith(str(result))
        assert gold_answer(row["answer"]) == str(equations[-1][1])


def test_the_numbers_of_a_solution_come_from_its_story():
    for row in word_problems(double_share=0.0)["train"]:
        story = [int(n) for n in re.findall(r"\d+", row["question"])]
        equations = steps(row["answer"])
        used = [int(equations[0][0].split("+")[0].split("-")[0])]
        used += [int(re.split(r"[-+]", expression)[1]) for expression, _ in equations]
        assert used == story


def test_the_same_seed_gives_the_same_problems_and_another_one_others():
    assert word_problems(0) == word_problems(0) != word_problems(1)


def test_splits_are_disjoint_by_question():
    splits = word_problems()
    texts = [{row["question"] for row in splits[split]} for split in ("train", "dev", "test")]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 90
    demonstrated = {row["question"] for row in splits["demonstrations"] if not row["question"].startswith("What is")}
    assert demonstrated <= texts[0]


def test_the_share_of_wrong_demonstration_steps_is_the_one_asked_for():
    def wrong(share):
        rows = load_task(
            TaskSettings(
                "word_problems",
                train=400,
                dev=1,
                test=1,
                demonstrations=3000,
                settings={"wrong_step_share": share, "drill_share": 0.0},
            )
        )["demonstrations"]
        each = [calculate(expression) != result for row in rows for expression, result in steps(row["answer"])]
        return sum(each) / len(each)

    assert wrong(0.0) == 0.0
    assert wrong(0.25) == pytest.approx(0.25, abs=0.03)


def test_drills_are_right_and_of_the_share_asked_for():
    drills = [row for row in word_problems(drill_share=0.5)["demonstrations"] if row["question"].startswith("What is")]
    assert 70 < len(drills) < 130
    assert all(calculate(expression) == result for row in drills for expression, result in steps(row["answer"]))


def test_gsm8k_from_a_folder(tmp_path):
    rows = [{"question": f"q{i}?", "answer": f"It is 1+{i}=<<1+{i}={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:20])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[20:])))
    splits = load_task(TaskSettings("gsm8k", settings={"path": str(tmp_path)}))
    assert [len(splits[name]) for name in ("train", "dev", "test", "demonstrations")] == [18, 2, 10, 18]
    assert splits["test"][0]["question"] == "q20?" and "<<" not in splits["test"][0]["answer"]
    with pytest.raises(SettingsError, match="test asks for 11 problems, the data has 10"):
        load_task(TaskSettings("gsm8k", test=11, settings={"path": str(tmp_path)}))


def test_gsm_symbolic_from_reasoning_gym():
    splits = load_task(TaskSettings("gsm_symbolic", train=10, dev=2, test=4, demonstrations=5))
    assert [len(splits[name]) for name in ("train", "dev", "test", "demonstrations")] == [10, 2, 4, 5]
    assert all(gold_answer(row["answer"]) is not None for rows in splits.values() for row in rows)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "is empty"),
        ([{"question": "q"}], "row 1: 'answer' is missing"),
        (
            [{"question": "q", "answer": "#### 1"}, {"question": "", "answer": "#### 1"}],
            "row 2: 'question' is missing or empty",
        ),
        ([{"question": "q", "answer": "about five"}], "no final line"),
    ],
)
def test_bad_rows_are_refused_by_number(rows, message):
    with pytest.raises(SettingsError, match=message):
        check_rows(rows, "data")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "word_problem"}, "Did you mean 'word_problems'"),
        ({"name": "gsm8k", "settings": {"path": "/nowhere"}}, "/nowhere"),
        ({"name": "word_problems", "train": 0}, "train must be above 0"),
        ({"name": "word_problems", "settings": {"max_steps": 0}}, "max_steps must be at least min_steps"),
        ({"name": "word_problems", "settings": {"phrasings": 9}}, "at most 6"),
    ],
)
def test_bad_task_settings_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(TaskSettings, values, "task")


def test_settings_that_allow_too_few_questions_are_refused():
    narrow = {"min_steps": 1, "max_steps": 1, "start_min": 2, "start_max": 2, "operand_max": 1, "phrasings": 1}
    with pytest.raises(SettingsError, match="too few different questions"):
        load_task(TaskSettings("word_problems", train=5000, dev=1, test=1, demonstrations=1, settings=narrow))


def test_written_rows_have_prompts(tmp_path):
    write_splits(TaskSettings("word_problems", **SMALL), PromptSettings("Q: {question}\nA:"), tmp_path)
    row = read_jsonl(tmp_path / "test.jsonl")[3]
    assert row["id"] == "test/3" and row["prompt"] == f"Q: {row['question']}\nA:"
    assert PromptSettings("{question}", chat=True).prompt("x") == [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="once"):
        PromptSettings("no place for it")


def test_a_task_that_is_not_json_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data", "--task", "{name: gsm8k}", "--out", str(tmp_path)])
    with pytest.raises(SettingsError, match="--task is not JSON"):
        main()


def test_every_task_is_documented():
    assert all(task.load.__doc__ for task in TASKS.values())
