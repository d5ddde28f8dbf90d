"""The test problems are seen by the evaluation of a study's stages, and by no job before it."""

import json
import os
import re
import shlex

import pandas as pd
import pytest
import yaml
from project import PROJECT, dry_run, jobs_of, planned, run_here
from studies import FILES, SMOKE, rl

from evaluation.tasks.files import read_jsonl
from pipelines.study import load

SEEING = {"evaluate", "evaluate_model"}  # the rules that are given the test problems; `data` makes them


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_job_but_the_evaluation_is_given_the_test_problems(path, tmp_path):
    """Of every job of every shipped study: its inputs, and its command with all parameters."""
    (tmp_path / "pipelines").symlink_to(PROJECT / "pipelines")  # a study names a reward by its path
    said = dry_run(tmp_path, "--printshellcmds", study=str(path))
    commands = re.findall(r"^Shell command: (python -m .*)$", said, re.M)
    assert len(commands) == sum(jobs_of(said).values()) - 1  # all but `all`
    evaluations = {"test": 0, "dev": 0}
    for command in commands:
        words = shlex.split(command)
        seen = {split for split in evaluations if any(word.endswith(f"/{split}.jsonl") for word in words)}
        if "test.jsonl" in command:
            assert words[2] == "evaluation.evaluate" and seen == {"test"}, command
        if words[2] == "evaluation.evaluate":
            for split in seen:
                evaluations[split] += 1
        elif "dev" in seen:  # the accuracy during training
            assert words[words.index("--dev") + 1].endswith("/dev.jsonl") and command.count("dev.jsonl") == 1
    study = load(path)
    assert evaluations == {
        "test": len(study.evaluated) + len(study.evaluated_models),
        "dev": len([trial for trial in study.trials if trial in study.needed]),
    }
    given = [file for name in study.stages for seed in study.seeds_of(name) for file in study.inputs(name, seed)]
    assert given and not [file for file in given if file.endswith("test.jsonl")]


def test_the_rules_that_name_the_test_problems_are_those_that_evaluate():
    """Inputs that no command shows: rules name files by themselves, or by the inputs of a stage, which stand above."""
    texts = {path.name: path.read_text() for path in (PROJECT / "pipelines" / "rules").glob("*.smk")}
    texts["common.smk"] = texts["common.smk"].replace("{OTHER_DATA}/test.jsonl", "")  # by a function of its own:
    assert {name for name, text in texts.items() if "other_problems" in text} == {"common.smk", "evaluate.smk"}
    assert [name for name, text in texts.items() if "test.jsonl" in text] == ["evaluate.smk"]
    rules = re.split(r"^rule (\w+):", texts["evaluate.smk"], flags=re.M)
    assert {name for name, text in zip(rules[1::2], rules[2::2], strict=True) if "test.jsonl" in text} == SEEING
    lists = {name: text.count("SPLITS") for name, text in texts.items() if "SPLITS" in text}
    assert lists == {"common.smk": 1, "start.smk": 2}  # imported, and what `data` and `other_data` make


STUDY = SMOKE | {
    "study": "tiny",
    "results": "results/tiny",
    "seeds": [0, 1],
    "task": SMOKE["task"] | {"train": 40, "dev": 12, "test": 12, "demonstrations": 100},
    "sampling": {"max_response_tokens": 12, "temperature": 1.0},
    "models": {"base": {"vocab_size": 160, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}},
    "stages": {
        "cold": {"kind": "sft", "from": "base", "data": "demonstrations", "seeds": [0], "steps": 40},
        "plain": rl("cold", steps=2),
        "tuned": {
            "like": "plain",
            "tune": {"trials": 2, "space": {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "scale": "log"}}},
        },
    },
    "evaluation": {"samples": 2},
}
DATA = "results/tiny/data"
BEFORE_TEST = ["results/tiny/stages/tuned/seed0/run.json", "results/tiny/stages/tuned/seed1/run.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tuned study, run to its end; until its last checkpoint is trained, the file of test problems is no JSONL."""
    folder = tmp_path_factory.mktemp("tiny")
    config = STUDY | {"mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run_here(folder, "tiny.yaml", f"{DATA}/test.jsonl")
    test = folder / DATA / "test.jsonl"
    kept = test.read_text()
    times = test.stat()
    test.write_text("the test problems\n")
    run_here(folder, "tiny.yaml", *BEFORE_TEST)
    test.write_text(kept)
    os.utime(test, ns=(times.st_atime_ns, times.st_mtime_ns))
    run_here(folder, "tiny.yaml")
    return folder


def test_tuning_and_training_go_on_without_the_test_problems(finished):
    stages = finished / "results" / "tiny" / "stages"
    choice = json.loads((stages / "tuned" / "tuning.json").read_text())
    best = max(choice["trials"], key=lambda trial: trial["score"])
    assert choice["trials"].index(best) == choice["chosen"]
    for seed in (0, 1):
        run = json.loads((stages / "tuned" / f"seed{seed}" / "run.json").read_text())
        assert run["settings"]["optimizer"]["learning_rate"] == best["values"]["optimizer.learning_rate"]
        assert run["settings"]["seed"] == seed
    dev = {row["id"] for row in read_jsonl(finished / DATA / "dev.jsonl")}
    for trial in choice["trials"]:
        seen = {row["problem"] for row in read_jsonl(stages / trial["stage"] / "dev" / "seed100" / "responses.jsonl")}
        assert seen == dev and not (stages / trial["stage"] / "evaluation").exists()


def test_the_report_of_a_tuned_study_has_its_tables(finished):
    report = finished / "results" / "tiny" / "report"
    row = pd.read_csv(report / "tuned.csv").set_index("stage").loc["tuned"]
    assert row["default"] == "plain" and row["trials"] == 2
    assert row["generated_tokens_with_tuning"] > row["generated_tokens"]
    assert len(pd.read_csv(report / "tuning.csv")) == 2 and len(pd.read_csv(report / "expected_best.csv")) == 2
    assert json.loads((finished / "results" / "tiny" / "mlflow_mirror.json").read_text())["errors"] == []


def test_nothing_is_left_to_do(finished):
    assert planned(finished, study="tiny.yaml") == {}
