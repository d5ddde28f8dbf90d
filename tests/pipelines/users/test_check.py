"""python -m pipelines.check finds what would go wrong later, in one sentence each."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import save_policy
from algos.training.models.tokens import load_tokenizer
from pipelines.check import rehearse
from pipelines.study import load

REWARDS = """
def kind(prompts, responses, answers, rows):
    return [float("please" in response) for response in responses]

def same(prompts, responses, answers, rows):
    return [1.0 for _ in responses]

def broken(prompts, responses, answers, rows):
    return [float(row["bonus"]) for row in rows]

def silent(prompts, responses, answers, rows):
    return [float(not response) for response in responses]

def none(prompts, responses, answers, rows):
    return [None for response in responses]

def short(prompts, responses, answers, rows):
    return [1.0]
"""
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


class Place:
    """A user's folder: rows, a model, a reward, and a study of them that a test may spoil."""

    def __init__(self, folder):
        self.folder, self.model = folder, folder / "model"
        rows = [{"problem": f"Ana has {i} stamps. Ana finds {i} more.", "solution": f"{i}+{i}={2 * i}\n#### {2 * i}"}
                for i in range(30)]  # fmt: skip
        self.write_rows("train", rows[:20])
        self.write_rows("test", rows[20:])
        (folder / "rewards.py").write_text(REWARDS)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        save_policy(tiny_model(tokenizer, dtype=torch.float32), tokenizer, self.model)
        rl = {"kind": "rl", "from": "start", "algorithm": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 4}
        self.study = {
            "study": "mine", "seeds": [0], "results": str(folder / "results"),
            "task": {"name": "rows", "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"),
                     "question": "problem", "answer": "solution"},
            "sampling": {"max_response_tokens": 24},
            "models": {"start": {"path": str(self.model)}},
            "stages": {"mine": {**rl, "max_prompt_tokens": 64, "micro_batch_tokens": 256}},
            "evaluation": {"samples": 2},
        }  # fmt: skip

    def write_rows(self, split: str, rows: list[dict]) -> None:
        (self.folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, split: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / f"{split}.jsonl").read_text().splitlines()]

    def set(self, **values) -> None:
        """Values of the study's only stage."""
        self.study["stages"]["mine"].update(values)

    def edit(self, name: str, **values) -> None:
        path = self.model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def weights(self, change) -> None:
        weights = load_file(self.model / "model.safetensors")
        change(weights)
        save_file(weights, self.model / "model.safetensors", metadata={"format": "pt"})

    def problems(self) -> list[str]:
        """Of the study file, else of the rehearsal."""
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(self.study, sort_keys=False))
        try:
            return rehearse(load(path), lambda _: None)
        except SettingsError as error:
            return [str(error)]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_a_sound_study_has_no_problem_and_shows_a_sample_of_each(place, capsys):
    assert place.problems() == []
    rehearse(load(place.folder / "study.yaml"))
    said = capsys.readouterr().out
    for line in ("prompt: 'Question: Ana has", "gold answer: ", "a response ends with '<|end|>'", "it answers (greedy",
                 "its worked solution: 1, another one's: 0", "GB predicted", "No problem found."):  # fmt: skip
        assert line in said


def _extra_tokens(place):
    tokenizer = load_tokenizer(place.model)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(9)])
    tokenizer.save_pretrained(place.model)


def _repeated(place):
    place.write_rows(
        "test", [*place.rows("test"), {"problem": "ANA has 3 stamps; Ana finds 3 more", "solution": "#### 6"}]
    )


def _pairs(place):
    (place.folder / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    place.study["stages"]["pairs"] = {"kind": "preferences", "path": str(place.folder / "pairs.jsonl")}
    place.study["stages"]["judge"] = {"kind": "reward_model", "from": "start", "data": "pairs"}
    place.set(rewards={"reward_model": 1.0}, reward_model="judge")


def test_rules_beside_a_learned_reward_are_tried_without_it(place):
    _pairs(place)
    pairs = [{"prompt": f"a{i}", "chosen": "b", "rejected": "c"} for i in range(20)]
    (place.folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    place.set(rewards={"reward_model": 1.0, "correctness": 1.0})
    assert place.problems() == []
    (place.folder / "pairs.jsonl").write_text("")
    assert any("pairs.jsonl has 0 different prompts" in problem for problem in place.problems())


def _no_eos(place):
    place.edit("tokenizer_config.json", eos_token=None)


FAULTS = {
    "the gold answer is no number": (
        lambda p: p.write_rows("test", [{"problem": "Who?", "solution": "Ana"}]), "row 1: the answer has no"),
    "a field has another name": (lambda p: p.study["task"].update(answer="answer"), "no field 'answer'"),
    "the answers stand elsewhere": (
        lambda p: (p.write_rows("train", [{"problem": f"{i}?", "solution": f"so {i}"} for i in range(9)])),
        "the answer has no"),
    "a test question is in train": (_repeated, "are in test too"),
    "another task's question is in train": (
        lambda p: p.study["evaluation"].update(other_task=p.study["task"] | {
            "train": p.study["task"]["test"], "test": p.study["task"]["train"]}),
        "18 of 20 questions of evaluation.other_task are trained on: 'Ana has"),
    "rows in another encoding": (
        lambda p: (p.folder / "train.jsonl").write_bytes(b'{"problem": "caf\xe9", "solution": "1"}\n'),
        "line 1: byte 0xe9 is not utf-8"),
    "a prompt is too long": (lambda p: p.set(max_prompt_tokens=8), "more than max_prompt_tokens = 8"),
    "responses are too short for the worked solutions": (
        lambda p: p.study["sampling"].update(max_response_tokens=4), "longer than sampling.max_response_tokens = 4"),
    "prompt and response exceed the positions": (
        lambda p: p.edit("config.json", max_position_embeddings=32), "are more than its 32 positions"),
    "chat without a template": (
        lambda p: ((p.model / "chat_template.jinja").unlink(), p.study.update(prompt={"chat": True})),
        "no chat template"),
    "a tokenizer of another model": (_extra_tokens, "but its embedding"),
    "no end of sequence": (_no_eos, "no end-of-sequence token"),
    "weights with NaN": (
        lambda p: p.weights(lambda w: w["model.norm.weight"].fill_(float("nan"))), "holds NaN or infinity"),
    "a weight is missing": (lambda p: p.weights(lambda w: w.pop("model.norm.weight")), "lack model.norm.weight"),
    "the weights are cut off": (
        lambda p: (p.model / "model.safetensors").write_bytes(b"\x10\x00"), "cannot be read"),
    "weights as a pickle": (
        lambda p: (p.model / "model.safetensors").rename(p.model / "pytorch_model.bin"), "cannot be read"),
    "logits are soft-capped": (lambda p: p.edit("config.json", final_logit_softcapping=30.0), "soft-capped"),
    "a reward's file is missing": (lambda p: p.set(rewards={"gone.py:kind": 1.0}), "there is no file 'gone.py'"),
    "a reward fails": (
        lambda p: p.set(rewards={f"{p.folder}/rewards.py:broken": 1.0}), "broken fails on row 'train/0'"),
    "a reward returns too little": (
        lambda p: p.set(rewards={f"{p.folder}/rewards.py:short": 1.0}), "must return a list of 3 numbers"),
    "a reward does not tell right from wrong": (
        lambda p: p.set(rewards={f"{p.folder}/rewards.py:same": 1.0}), "a wrong response earns 1, not less than"),
    "an empty response pays best": (
        lambda p: p.set(rewards={f"{p.folder}/rewards.py:silent": 1.0}), "an empty response earns 1, not less than"),
    "a reward returns no number": (
        lambda p: p.set(rewards={f"{p.folder}/rewards.py:none": 1.0}), "must return finite numbers, got None"),
    "more prompts a step than rows": (
        lambda p: p.set(prompts_per_step=400), "prompts_per_step is 400, but task.train is 18; at most that many"),
    "more dev problems than rows": (
        lambda p: p.set(dev_every=1, dev_problems=50), "dev_problems is 50, but task.dev is 2; at most that many"),
    "an algorithm's file is missing": (lambda p: p.set(algorithm="gone.py"), "there is no file 'gone.py'"),
    "pairs without a rejected response": (_pairs, "pairs.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(place, name):
    spoil, message = FAULTS[name]
    spoil(place)
    found = place.problems()
    assert any(message in problem for problem in found), found
    assert all("\n" not in problem for problem in found)


def test_a_run_that_does_not_fit_into_memory_is_found(place, monkeypatch):
    monkeypatch.setattr("pipelines.check.available_bytes", lambda _: 100_000)
    (problem,) = place.problems()
    assert "its predicted peak of" in problem and "python -m pipelines memory" in problem


def test_the_command_exits_with_1_for_problems_and_2_for_a_wrong_study(place):
    place.set(max_prompt_tokens=8)
    place.problems()
    command = [sys.executable, "-m", "pipelines.check", str(place.folder / "study.yaml")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1 and "PROBLEM: its longest prompt has" in found.stdout, found.stderr
    place.set(algorithm="gprpo")
    place.problems()
    assert subprocess.run(command, capture_output=True).returncode == 2
