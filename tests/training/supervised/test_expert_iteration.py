"""Expert iteration: rounds of sampling, keeping correct responses, and fine-tuning on them."""

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.sampling.engines import TransformersEngine
from algos.training.sampling.respond import graded
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised import expert_iteration
from algos.training.supervised.config import (
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)
from evaluation.tasks.files import read_jsonl, write_jsonl

TOKENIZER = tiny_tokenizer()


def problem(i: int) -> dict:
    question = f"Mia has {i} apples."
    prompt = f"Question: {question}\nAnswer:\n"
    return {"id": f"train/{i}", "prompt": prompt, "question": question, "answer": f"{i}\n#### {i}"}


@pytest.fixture
def folder(tmp_path):
    """A model and train problems on disk."""
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "student")
    write_jsonl(tmp_path / "train.jsonl", map(problem, range(8)))
    return tmp_path


def test_settings_that_make_no_sense_are_refused():
    sampling, training = RejectionConfig(0), SupervisedConfig(0)
    with pytest.raises(ValueError, match=r"hint must contain \{answer\} once"):
        ExpertIterationConfig(sampling, training, hint="no place")
    with pytest.raises(ValueError, match=r"training\.trainer must be own"):
        ExpertIterationConfig(sampling, replace(training, trainer="trl"))
    with pytest.raises(ValueError, match=r"sampling\.device and training\.device must be"):
        ExpertIterationConfig(sampling, replace(training, device="cpu"))


def test_the_hint_stands_behind_the_question_in_text_and_in_chat():
    hinted = expert_iteration.with_hint(problem(3), " (It is {answer}.)")
    assert hinted["prompt"] == "Question: Mia has 3 apples. (It is 3.)\nAnswer:\n"
    chat = {**problem(3), "prompt": [{"role": "user", "content": problem(3)["prompt"]}]}
    assert expert_iteration.with_hint(chat, " ({answer})")["prompt"][0]["content"].startswith(
        "Question: Mia has 3 apples. (3)"
    )
    with pytest.raises(SettingsError, match="train/3: its prompt does not hold its question once"):
        expert_iteration.with_hint({**problem(3), "prompt": "another"}, "{answer}")


def answering(table):
    """A stand-in for respond.sampled: table(problem, number of the response) is the text of each response."""

    def sampled(engine, policy, tokenizer, problems, samples, config, generator):
        for part in (problems[:3], problems[3:]):
            rows = [graded(p, i, table(p, i), 2, False) for p in part for i in range(samples)]
            nats = torch.full((len(rows), 2), -0.5)
            yield rows, Rollouts([[5]] * len(part), samples, nats.long(), nats < 0, nats, nats[:, 0] > 0)

    return sampled


def expert_config(folder, **settings):
    training = SupervisedConfig(0, steps=2, batch_size=4, device="cpu", optimizer=OptimizerConfig(learning_rate=1.0e-2))
    sampling = RejectionConfig(0, prompts=8, responses=4, max_per_prompt=2, device="cpu")
    return ExpertIterationConfig(sampling, training, **settings)


def table(p, i):
    """Problems 0 to 3 are solved in 3 ways of which the cap leaves 2, 4 and 5 with a hint, 6 and 7 never."""
    number, right = int(p["id"].split("/")[1]), p["answer"].splitlines()[-1]
    if number < 4:
        return f"way {max(i, 1)}\n{right}"  # the first two say the same
    if number < 6 and "told" in p["prompt"]:
        return right
    return "#### 99"


def test_a_round_keeps_different_correct_answers_and_hints_leave_no_trace(monkeypatch, folder):
    monkeypatch.setattr(expert_iteration, "sampled", answering(table))
    problems = list(map(problem, range(8)))
    rows, metrics = expert_iteration.collect(
        None, None, None, problems, expert_config(folder, hint=" told {answer}"), None
    )
    assert len(rows) == 4 * 2 + 2 and metrics["hinted_share"] == 0.2
    assert [row["answer"] for row in rows[:2]] == ["way 1\n#### 0", "way 2\n#### 0"]
    assert [(row["id"], row["hinted"]) for row in rows[8:]] == [("train/4", True), ("train/5", True)]
    assert all(row["prompt"] == problem(int(row["id"][6:]))["prompt"] for row in rows)
    assert metrics["acceptance_rate"] == 0.5 and metrics["unique_per_prompt"] == 4 * 3 / 8
    assert metrics["prompts_solved"] == 0.5 and metrics["solved"] == {f"train/{i}" for i in range(4)}
    assert metrics["entropy"] == 0.5 and metrics["round_responses"] == 8 * 4 + 4 * 4
    rows, metrics = expert_iteration.collect(None, None, None, problems, expert_config(folder), None)
    assert (
        metrics["round_cut_off"] == 0
        and len(rows) == 8
        and metrics["hinted_share"] == 0
        and metrics["round_tokens"] == 8 * 4 * 2
    )


def test_restarting_trains_the_starting_model_in_every_round(monkeypatch, folder):
    """Every round accepts the same here: after a restart two rounds are one, without it they are not."""
    monkeypatch.setattr(expert_iteration, "sampled", answering(table))
    weights = {}
    for name, settings in {
        "one": {"rounds": 1},
        "restart": {"rounds": 2, "restart": True},
        "continue": {"rounds": 2, "restart": False},
    }.items():
        out = folder / name
        config = expert_config(folder, **settings)
        expert_iteration.train(config, str(folder / "student"), str(folder / "train.jsonl"), str(out))
        weights[name] = (out / "checkpoint" / "model.safetensors").read_bytes()
        lines, record = read_jsonl(out / "metrics.jsonl"), json.loads((out / "run.json").read_text())
        assert [line["step"] for line in lines] == list(range(settings["rounds"]))
        assert record["generated_responses"] == 32 * settings["rounds"] and record["kind"] == "expert_iteration"
        assert lines[-1]["prompts_never_solved"] == 0.5 and lines[-1]["generated_tokens"] == record["generated_tokens"]
        assert len(read_jsonl(out / "accepted.jsonl")) == 8 * settings["rounds"]
    assert weights["one"] == weights["restart"] != weights["continue"]


def test_there_is_one_policy_in_memory_at_a_time(monkeypatch, folder):
    """Round 0 trains the very policy that it sampled; a later one loads the starting model once the last is gone."""
    loaded, alive = [], []

    def load(*args):
        alive.append(sum(policy() is not None for policy in loaded))
        policy = load_policy(*args)
        loaded.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(expert_iteration, "sampled", answering(table))
    monkeypatch.setattr(expert_iteration, "load_policy", load)
    config = expert_config(folder, rounds=3)
    expert_iteration.train(config, str(folder / "student"), str(folder / "train.jsonl"), str(folder / "out"))
    assert alive == [0, 0, 0]


def test_a_round_without_anything_correct_stops(monkeypatch, folder):
    monkeypatch.setattr(expert_iteration, "sampled", answering(lambda p, i: "no"))
    with pytest.raises(SettingsError, match=r"round 0: none of the 32 sampled responses is correct and complete \(0%"):
        expert_iteration.train(
            expert_config(folder), str(folder / "student"), str(folder / "train.jsonl"), str(folder / "out")
        )


def test_expert_iteration_really_samples(folder):
    """Without a stand-in: an untrained model finds no answer, but its responses are drawn, graded and counted."""
    problems = list(map(problem, range(8)))
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(TOKENIZER, 0, torch.float32)
    groups, counts = expert_iteration.answers(
        TransformersEngine(TOKENIZER), model, TOKENIZER, problems, expert_config(folder).sampling, generator
    )
    assert [len(group) for group in groups] == [4] * 8 and counts["responses"] == 32
    assert [group[0]["problem"] for group in groups] == [p["id"] for p in problems]
    assert 0 < counts["nats"] / counts["tokens"] < math.log(len(TOKENIZER))
