"""A stage's command whose file or checkpoint does not exist: one sentence that names it, no traceback."""

import json
import sys
from importlib import import_module

import pytest
import torch
from lean import TOKENIZER, folder_of
from tiny import tiny_model

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.tokens import load_tokenizer
from algos.training.stage.record import Record
from evaluation.tasks.files import write_jsonl

PROBLEMS = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
SAMPLING = {"seed": 0, "prompts": 4, "device": "cpu"}
RL = {
    **{"algorithm": "ppo", "seed": 0, "prompts_per_step": 2, "group_size": 2, "minibatches": 1, "device": "cpu"},
    **{"rewards": {"reward_model": 1.0}, "settings": {"kl_coef": 0.1}},
}
START = {"--from": "policy", "--prompts": "train.jsonl"}
COMMANDS = {  # settings, and the options that name files or folders
    "algos.training.train": (
        RL,
        {**START, "--reward-model": "reward_model", "--reference": "other", "--critic": "other"},
    ),
    "algos.training.supervised.sft": ({"seed": 0, "device": "cpu"}, {"--from": "policy", "--data": "train.jsonl"}),
    "algos.training.supervised.rejection_sampling": (SAMPLING, START),
    "algos.training.supervised.expert_iteration": (
        {"sampling": SAMPLING, "training": {"seed": 0, "device": "cpu"}},
        START,
    ),
    "algos.training.supervised.distillation": (
        {"seed": 0, "prompts_per_step": 2, "on_policy_share": 0.5, "device": "cpu"},
        {**START, "--teacher": "other", "--data": "train.jsonl"},
    ),
    "algos.training.rewards.preferences": (SAMPLING, START),
    "algos.training.rewards.reward_model": ({"seed": 0, "device": "cpu"}, {"--from": "policy", "--data": "."}),
    "algos.training.models.build": ({}, {"--texts": "train.jsonl", "--tokenizer": "policy"}),
}
CASES = [(module, option) for module, (_, options) in COMMANDS.items() for option in options]
CASES.remove(("algos.training.models.build", "--texts"))  # not read where there is a tokenizer


@pytest.fixture
def folder(tmp_path):
    save_policy(tiny_model(TOKENIZER, 9, torch.float32), TOKENIZER, tmp_path / "other")
    for split in ("train", "held_out"):
        write_jsonl(tmp_path / f"{split}.jsonl", PROBLEMS)
    return folder_of(tmp_path)


def run(monkeypatch, folder, module: str, settings: dict, options: dict[str, str]) -> str:
    """What a stage's command says in place of its results."""
    words = [word for option, name in options.items() for word in (option, str(folder / name))]
    words += ["--settings", json.dumps(settings), "--out", str(folder / "out"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SettingsError) as found:
        import_module(module).main()
    Record.unfinished.clear()  # as the end of the process does
    return str(found.value)


@pytest.mark.parametrize("module, option", CASES)
def test_what_does_not_exist_is_named(monkeypatch, folder, module, option):
    settings, options = COMMANDS[module]
    message = run(monkeypatch, folder, module, settings, {**options, option: "gone"})
    assert str(folder / "gone") in message and message.endswith(".") and "\n" not in message


def test_pairs_that_do_not_exist_are_named(monkeypatch, folder):
    message = run(monkeypatch, folder, "algos.training.rewards.preferences", {"seed": 0}, {"--pairs": "gone"})
    assert message == f"{folder / 'gone'}: no such file."


@pytest.mark.parametrize(
    "module, name, who",
    [
        ("algos.training.train", "policy", "model"),
        ("algos.training.train", "reward_model", "reward_model"),
        ("algos.training.train", "other", "reference"),
        ("algos.training.supervised.distillation", "policy", "student"),
        ("algos.training.supervised.distillation", "other", "teacher"),
        ("algos.training.rewards.reward_model", "policy", "model"),
    ],
)
def test_texts_longer_than_the_positions_of_a_model_are_refused(monkeypatch, folder, module, name, who):
    settings, options = COMMANDS[module]
    config = json.loads((folder / name / "config.json").read_text())
    (folder / name / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 6}))
    if module != "algos.training.rewards.reward_model":
        settings = {**settings, "max_response_tokens": 4}  # of prompts of four: neither alone is too long
    rows = [{**row, "responses": ["#### 12345678", "#### 5"], "pairs": [[0, 1]], "correct": [0, 1]} for row in PROBLEMS]
    for split in ("train", "held_out"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    if who == "reference":
        options = {**options, "--critic": "policy"}
    message = run(monkeypatch, folder, module, settings, options)
    assert f"but the {who} counts 6 positions; make them shorter." in message


def test_a_checkpoint_without_its_tokenizer_or_its_weights_is_refused(folder):
    (folder / "policy" / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"^model '.*policy' cannot be read: .* It must be a folder with config"):
        load_policy(folder / "policy", torch.device("cpu"))
    for path in (folder / "other").glob("*token*"):
        path.unlink()
    with pytest.raises(SettingsError, match=r"^the tokenizer of '.*other' cannot be read: .* with tokenizer\.json"):
        load_tokenizer(folder / "other")
