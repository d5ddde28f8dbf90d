"""The accuracy on dev problems during a run: when it is measured, by what, and that it changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from lean import TOKENIZER
from tiny import tiny_model

from algos.pieces.settings import SettingsError
from algos.training import train as own
from algos.training.config import RunConfig
from algos.training.dev import CHOICE, as_evaluated
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.sampling.respond import draw_problems
from algos.training.stage.config import OptimizerConfig
from algos.training.trl import baseline as trl
from evaluation.config import EvaluationConfig
from evaluation.evaluate import responses
from evaluation.tasks.files import read_jsonl, write_jsonl

# Right is any digit as the last number of a response: the tiny policy, which says tokens at random, is so now and then.
EASY = {"extract": "last_number", "compare": "number", "accepted": [str(digit) for digit in range(10)]}


def problems(split: str, count: int) -> list[dict]:
    return [
        {
            "id": f"{split}/{i}",
            "question": f"{split} {i}",
            "prompt": f"{i % 9}+1=",
            "answer": f"#### {i % 9 + 1}",
            **EASY,
        }
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "policy")
    write_jsonl(tmp_path / "train.jsonl", problems("train", 8))
    write_jsonl(tmp_path / "dev.jsonl", problems("dev", 60))
    return tmp_path


def config_of(algorithm: str = "grpo", settings: dict | None = None, **changes) -> RunConfig:
    shape = {"steps": 5, "prompts_per_step": 4, "group_size": 2, "minibatches": 2}
    changes = {**shape, "optimizer": OptimizerConfig(learning_rate=1e-2), "dev_problems": 40, **changes}
    rewards = {"correctness": 1.0, "edit_similarity": 1.0}
    return RunConfig(algorithm, 0, settings or {}, max_response_tokens=8, device="cpu", rewards=rewards, **changes)


def trained(folder: Path, config: RunConfig, out: str = "out", trainer=own):
    """The record, the lines of steps and those of dev, and the weights."""
    dev = None if config.dev_every is None else str(folder / "dev.jsonl")
    paths = str(folder / "policy"), str(folder / "train.jsonl"), str(folder / out)
    trainer.train(config, *paths, dev_path=dev)
    lines = read_jsonl(folder / out / "metrics.jsonl")
    record = json.loads((folder / out / "run.json").read_text())
    measured = [line for line in lines if "dev_accuracy" in line]
    steps = [line for line in lines if "dev_accuracy" not in line]
    weights = load_policy(folder / out / "checkpoint", torch.device("cpu")).state_dict()
    return record, steps, measured, weights


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k and k != "time"} for line in lines]


def test_dev_is_measured_before_the_first_step_every_few_steps_and_after_the_last(folder):
    record, steps, measured, _ = trained(folder, config_of(dev_every=2))
    assert [line["step"] for line in measured] == [0, 2, 4, 5]
    spent = [0, *(line["generated_tokens"] for line in steps)]
    assert [line["generated_tokens"] for line in measured] == [spent[line["step"]] for line in measured]
    assert set(measured[0]) == {"step", "time", "seconds", "dev_accuracy", "dev_seconds", "generated_tokens"}
    assert len(steps) == 5 and not any("dev_seconds" in line for line in steps)
    phases = record["phase_seconds"]
    assert phases["dev"] == pytest.approx(sum(line["dev_seconds"] for line in measured))
    assert sum(line["step_seconds"] for line in steps) == pytest.approx(sum(phases.values()) - phases["dev"])
    assert record["generated_responses"] == 5 * 8  # none of dev


def test_the_last_measurement_is_made_once(folder):
    _, _, measured, _ = trained(folder, config_of(dev_every=5))
    assert [line["step"] for line in measured] == [0, 5]


WITHOUT_EFFECT = [
    ("ppo", {}, {}),
    ("grpo", {"kl_coef": 0.1}, {"gradient_checkpointing": True}),
    ("dapo", {"max_rounds": 2}, {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize("algorithm, settings, changes", WITHOUT_EFFECT, ids=lambda x: x if isinstance(x, str) else "")
def test_measuring_changes_nothing_of_a_run(folder, algorithm, settings, changes):
    _, plain, none, expected = trained(folder, config_of(algorithm, settings, **changes), "plain")
    _, steps, measured, found = trained(folder, config_of(algorithm, settings, dev_every=1, **changes))
    assert none == [] and len(measured) == 6
    assert without_times(steps) == without_times(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    start = load_policy(folder / "policy", torch.device("cpu")).state_dict()
    assert not all(torch.equal(found[name], tensor) for name, tensor in start.items())


def test_dev_is_measured_by_the_evaluator(folder):
    """One sampled response to each problem, as evaluate.py would sample and grade the checkpoint."""
    _, _, measured, _ = trained(folder, config_of(dev_every=5))
    chosen = draw_problems(str(folder / "dev.jsonl"), 40, CHOICE, "")
    config = EvaluationConfig(seed=0, samples=1, max_response_tokens=8, device="cpu")
    for line, checkpoint in zip(measured, ("policy", "out/checkpoint"), strict=True):
        rows = responses(folder / checkpoint, chosen, config, "").rows
        right = [row["correct"] for row in rows if row["sample"] == 0]
        assert len(right) == 40 and line["dev_accuracy"] == sum(right) / 40
    assert 0 < measured[0]["dev_accuracy"] < 1


TRL = {"grpo": {"std_epsilon": 1e-4}, "rloo": {}, "ppo": {"gae_lambda": 1.0}}


@pytest.mark.parametrize("algorithm", TRL)
def test_trls_trainer_is_measured_alike_and_trains_alike(folder, algorithm):
    more = {"minibatches": 1} if algorithm == "rloo" else {}
    config = [config_of(algorithm, TRL[algorithm], trainer="trl", dev_every=every, **more) for every in (None, 2)]
    _, plain, none, expected = trained(folder, config[0], "plain", trl)
    record, steps, measured, found = trained(folder, config[1], "measured", trl)
    assert none == [] and [line["step"] for line in measured] == [0, 2, 4, 5]
    assert without_times(steps) == without_times(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    spent = [0, *(line["generated_tokens"] for line in steps)]
    assert [line["generated_tokens"] for line in measured] == [spent[line["step"]] for line in measured]
    phases = record["phase_seconds"]
    assert sum(line["step_seconds"] for line in steps) == pytest.approx(sum(phases.values()) - phases["dev"])
    _, _, by_own, _ = trained(folder, config_of(algorithm, TRL[algorithm], steps=1, dev_every=2, **more), "own")
    assert measured[0]["dev_accuracy"] == by_own[0]["dev_accuracy"]  # one checkpoint, problems, random numbers


def test_each_module_keeps_its_mode():
    model = tiny_model(TOKENIZER).train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), as_evaluated(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == before and any(before) and not all(before)


@pytest.mark.parametrize(
    "every, path, count, message",
    [
        (None, "dev.jsonl", 1, "--dev is given, but dev_every is null"),
        (5, None, 1, r"dev_every is 5, but no dev problems are given \(--dev FILE\)"),
        (5, "dev.jsonl", 61, r"dev_problems is 61, but .*dev.jsonl has 60 problems"),
        (5, "none.jsonl", 1, "none.jsonl: no such file"),
    ],
)
@pytest.mark.parametrize("trainer", [own, trl], ids=["own", "trl"])
def test_dev_problems_that_are_missing_or_idle_are_refused_before_anything_is_written(
    folder, every, path, count, message, trainer
):
    config = config_of(settings={"std_epsilon": 1e-4}, dev_every=every, dev_problems=count)
    given = None if path is None else str(folder / path)
    with pytest.raises(SettingsError, match=message):
        trainer.train(config, str(folder / "policy"), str(folder / "train.jsonl"), str(folder / "out"), dev_path=given)
    assert not (folder / "out").exists()


def test_a_dev_prompt_that_is_too_long_is_refused(folder):
    write_jsonl(folder / "dev.jsonl", [{**row, "prompt": "1+" * 30} for row in problems("dev", 60)])
    with pytest.raises(SettingsError, match="a prompt has 60 tokens, more than max_prompt_tokens = 50"):
        trained(folder, config_of(dev_every=5, max_prompt_tokens=50))
