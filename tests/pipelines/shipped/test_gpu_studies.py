"""The studies for GPUs: planned as they are, and run at toy size on 40 rows of GSM8K with a tiny Qwen2."""

import re

import pandas as pd
import pytest
import yaml
from qwen import answering_qwen, few_answers
from shared_data import rows_of
from studies import FILES
from toy import FOR_GPUS, STUDIES, run_toy

from algos.training.rewards.rules import RULES
from evaluation.config import PromptSettings
from evaluation.tasks.files import read_jsonl, write_jsonl
from pipelines.study import load

PAGE = (STUDIES.parents[1] / "docs" / "gpu-studies.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def rows(data_folder, tmp_path_factory):
    """40 rows of GSM8K with three answers, in a folder as the task reads it; and the answers."""
    folder = tmp_path_factory.mktemp("gsm8k")
    train, answers = few_answers(rows_of(data_folder / "gsm8k" / "train.jsonl"), 30)
    test, _ = few_answers(rows_of(data_folder / "gsm8k" / "test.jsonl"), 10, answers)
    assert len(train) + len(test) == 40
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "test.jsonl", test)
    return folder, answers


def prompts_of(study: str, folder) -> list:
    settings = PromptSettings(**yaml.safe_load((STUDIES / f"{study}.yaml").read_text(encoding="utf-8"))["prompt"])
    return [settings.prompt(row["question"]) for row in read_jsonl(folder / "train.jsonl")]


@pytest.fixture(scope="session")
def instruct(rows, tmp_path_factory):
    folder, answers = rows
    prompts = prompts_of("gsm8k_0.5b", folder)
    return answering_qwen(tmp_path_factory.mktemp("instruct"), prompts, [f"#### {a}" for a in answers], chat=True)


@pytest.fixture(scope="session")
def base(rows, tmp_path_factory):
    folder, answers = rows
    prompts = prompts_of("gsm8k_zero", folder) + prompts_of("r1_qwen", folder)
    responses = [f"so</think><answer>{a}</answer>" for a in answers]
    return answering_qwen(tmp_path_factory.mktemp("base"), prompts, responses, chat=False)


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_study_for_gpus_runs_at_toy_size(name, rows, tmp_path, request):
    chat = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))["prompt"].get("chat", False)
    model = request.getfixturevalue("instruct" if chat else "base")
    task = load(STUDIES / f"{name}.yaml").task()
    task = {"name": "gsm8k", "path": str(rows[0]), "dev": 4, "extract": task["extract"]}
    results = run_toy(STUDIES / f"{name}.yaml", tmp_path, model, task, most_rl=9)
    scored = [row for path in results.rglob("responses.jsonl") for row in read_jsonl(path)]
    assert 0 < sum(row["correct"] for row in scored) < len(scored)  # real rows, some of them solved


def test_every_rule_reward_is_used_by_a_shipped_study():
    used = set()
    for path in FILES:
        study = load(path)
        for name in study.of_kind("rl"):
            used |= set(study.parsed(name, study.seeds_of(name)[0]).rewards)
    assert set(RULES) - used == set()


def test_the_page_has_each_study_and_its_largest_stage():
    shown = re.findall(
        r"^\| \[([\w.]+)\]\(.*?\).*?\| `(\w\S*)` \| <!-- value: .*?-->[\d.]+<!-- end --> GB \|", PAGE, re.M
    )
    assert [study for study, _ in shown] == list(FOR_GPUS)
    predicted = pd.read_csv(STUDIES.parents[1] / "results" / "published" / "memory" / "studies.csv")
    largest = predicted[predicted.largest].groupby("study").stage.agg(set)
    assert all(stage in largest[study] for study, stage in shown)
    own = {name: set(predicted[predicted.study == name].stage) for name in FOR_GPUS}
    for name, stages in own.items():  # those of TRL's trainer are not predicted
        study = load(STUDIES / f"{name}.yaml")
        assert stages == {s for s in study.of_kind("rl") if study.parsed(s, study.seeds_of(s)[0]).trainer == "own"}
