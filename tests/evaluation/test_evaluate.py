"""One call evaluates all seeds of a stage, with the responses that each would give alone."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.sampling.respond import respond
from evaluation import evaluate as command
from evaluation.config import EvaluationConfig, Reach
from evaluation.evaluate import check_folders, evaluate, responses
from evaluation.tasks.files import read_jsonl, write_jsonl

PROBLEMS = [
    {"id": f"test/{i}", "prompt": f"Question: 1+{i}\nAnswer:\n", "question": "?", "answer": f"#### {1 + i}"}
    for i in range(4)
]
CONFIG = EvaluationConfig(samples=2, max_response_tokens=6, device="cpu")


@pytest.fixture
def stage(tmp_path):
    """A stage's folder with checkpoints of two seeds, and problems beside it."""
    tokenizer = tiny_tokenizer()
    for seed in (0, 1):
        folder = tmp_path / "stages" / "my_stage" / f"seed{seed}"
        save_policy(tiny_model(tokenizer, seed, torch.float32), tokenizer, folder / "checkpoint")
    write_jsonl(tmp_path / "test.jsonl", PROBLEMS)
    return tmp_path / "stages" / "my_stage"


def test_two_seeds_in_one_call_are_two_records(stage):
    settings = json.dumps({"samples": 2, "max_response_tokens": 6, "device": "cpu"})
    folders = [str(stage / "seed0"), str(stage / "seed1")]
    command = [sys.executable, "-m", "evaluation.evaluate", "--settings", settings, "--threads", "1"]
    command += ["--problems", str(stage.parents[1] / "test.jsonl"), "--out", str(stage / "evaluation"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        out = stage / "evaluation" / f"seed{seed}"
        record = json.loads((out / "run.json").read_text())
        assert (record["name"], record["status"]) == (f"my_stage/seed{seed}", "finished")
        assert json.loads((out / "scores.json").read_text())["problems"] == 4
        alone = responses(stage / f"seed{seed}" / "checkpoint", PROBLEMS, CONFIG, "alone").rows
        assert read_jsonl(out / "responses.jsonl") == alone
    first, second = (read_jsonl(stage / "evaluation" / f"seed{s}" / "responses.jsonl") for s in (0, 1))
    assert [r["response"] for r in first] != [r["response"] for r in second]


def test_a_second_evaluation_waits_beside_the_folder_that_snakemake_deletes(stage, monkeypatch):
    held = []
    monkeypatch.setattr(command, "evaluate", lambda *args: held.append((stage / ".evaluation.lock").exists()))
    words = ["--settings", "{}", "--threads", "1", "--problems", str(stage.parents[1] / "test.jsonl")]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(stage / "evaluation"), str(stage / "seed0")])
    command.main()
    assert held == [True] and not (stage / ".evaluation.lock").exists()


def test_greedy_and_sampled_responses_are_those_of_two_separate_calls(stage):
    checkpoint = str(stage / "seed0" / "checkpoint")
    apart = respond(checkpoint, PROBLEMS, 0, CONFIG) + respond(checkpoint, PROBLEMS, 2, CONFIG)
    together = responses(stage / "seed0" / "checkpoint", PROBLEMS, CONFIG, "together").rows
    assert together == sorted(apart, key=lambda row: (row["problem"], row["sample"]))


def test_reach_and_another_task_add_scores_and_leave_the_others_as_they_are(stage, tmp_path):
    others = [{**row, "prompt": f"Add one to {i}."} for i, row in enumerate(PROBLEMS[:3])]
    config = EvaluationConfig(samples=2, max_response_tokens=6, device="cpu", reach=Reach(problems=2, samples=5))
    evaluate(stage / "seed0", PROBLEMS, CONFIG, tmp_path / "plain", 1)
    evaluate(stage / "seed0", PROBLEMS, config, tmp_path / "more", 1, others)
    plain, more = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("plain", "more"))
    assert {key: more["per_problem"][key] for key in plain["per_problem"]} == plain["per_problem"]
    added = {key: len(values) for key, values in more["per_problem"].items() if key not in plain["per_problem"]}
    assert added == {"mean@5": 2, "pass@5": 2, "other_greedy": 3, "other_mean@2": 3}
    assert read_jsonl(tmp_path / "plain" / "responses.jsonl") == read_jsonl(tmp_path / "more" / "responses.jsonl")
    rows = read_jsonl(tmp_path / "more" / "other_responses.jsonl")
    alone = responses(stage / "seed0" / "checkpoint", others, CONFIG, "alone").rows
    assert rows == alone and more["overall"]["other_greedy"] == sum(r["correct"] for r in rows if r["sample"] < 0) / 3
    many = respond(str(stage / "seed0" / "checkpoint"), PROBLEMS[:2], 5, CONFIG)
    assert more["per_problem"]["mean@5"] == [sum(r["correct"] for r in many[i : i + 5]) / 5 for i in (0, 5)]


def test_a_model_is_dropped_before_the_next_one_is_loaded(stage, monkeypatch):
    loaded = []

    def load(*arguments):
        gc.collect()
        assert all(reference() is None for reference in loaded)
        model = load_policy(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("evaluation.evaluate.load_policy", load)
    for seed in (0, 1):
        responses(stage / f"seed{seed}" / "checkpoint", PROBLEMS, CONFIG, "x")
    assert len(loaded) == 2


def test_a_folder_without_a_checkpoint_and_two_of_one_name_are_refused(stage, tmp_path):
    with pytest.raises(SettingsError, match="seed7 has no folder checkpoint"):
        check_folders([stage / "seed7"])
    with pytest.raises(SettingsError, match="two folders are called seed0"):
        check_folders([stage / "seed0", stage / "seed0"])
