"""On-policy distillation: the stage around the divergences of algos/distillation.py."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import distillation
from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.models.checkpoints import save_policy
from algos.training.models.logprobs import token_logits
from algos.training.models.tokens import train_tokenizer
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import Phases
from algos.training.supervised import distillation as distill
from algos.training.supervised.config import (
    DistillationConfig,
)
from evaluation.tasks.files import read_jsonl, write_jsonl

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]


@pytest.mark.parametrize("settings", [{"beta": 0.3}, {"objective": "policy_gradient", "on_policy_share": 1.0}])
def test_micro_batches_do_not_change_the_gradient_or_the_metrics(settings):
    """And the loss is that of the file, over the step's tokens and at the sampling temperature."""
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    batch = make_batch(rollouts, torch.zeros(8), TOKENIZER.pad_token_id)
    student, teacher, results = tiny_model(TOKENIZER), tiny_model(TOKENIZER, 1), []
    for size in (1, 3, 8):
        model, phases = copy.deepcopy(student), Phases()
        config = DistillationConfig(0, micro_batch_size=size, temperature=0.8, **settings)
        metrics = distill.accumulate_gradients(batch, model, teacher, config, phases)
        results.append((metrics, gradients(model)))
        assert all(parameter.grad is None for parameter in teacher.parameters())
    mask, own, theirs = batch.response_mask, token_logits(student, batch) / 0.8, token_logits(teacher, batch) / 0.8
    if "beta" in settings:
        expected = distillation.divergence(theirs, own, mask, 0.3)[mask].mean()
    else:
        own, theirs = (
            torch.log_softmax(logits, dim=-1).gather(-1, batch.response_ids[..., None]).squeeze(-1)[mask]
            for logits in (own, theirs)
        )
        expected = -((theirs - own) * own).mean()
    assert results[0][0]["loss"] == pytest.approx(expected.item(), rel=1e-6)
    for metrics, found in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-5)
        for name, expected in results[0][1].items():
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in results[0][1].values()) > 1e-3


def test_steps_are_a_function_of_the_seed_and_follow_the_share():
    texts = distill.Texts([[5]] * 10, [([5], [6])] * 24)
    config = DistillationConfig(0, steps=200, prompts_per_step=5, responses=4, on_policy_share=0.3)
    steps = distill.schedule(config, texts)
    assert (
        steps == distill.schedule(replace(config, beta=1.0), texts) != distill.schedule(replace(config, seed=1), texts)
    )
    assert 0.2 < sum(step.on_policy for step in steps) / 200 < 0.4
    asked = [row for step in steps if step.on_policy for row in step.rows]
    given = [row for step in steps if not step.on_policy for row in step.rows]
    assert sorted(asked[:10]) == list(range(10)) and sorted(given[:24]) == list(range(24))
    assert {len(step.rows) for step in steps if step.on_policy} == {5}
    assert {len(step.rows) for step in steps if not step.on_policy} == {20}
    for share in (0.0, 1.0):
        assert {step.on_policy for step in distill.schedule(replace(config, on_policy_share=share), texts)} == {
            share == 1
        }


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="on_policy_share must be 1 for the policy gradient"):
        DistillationConfig(0, objective="policy_gradient", on_policy_share=0.5)
    with pytest.raises(ValueError, match="beta must be at least 0"):
        DistillationConfig(0, beta=-0.1)
    with pytest.raises(ValueError, match=r"optimizer\.schedule must be constant, got cosine"):
        DistillationConfig(0, budget_tokens=1000)
    with pytest.raises(ValueError, match="budget_tokens must be above 0"):
        DistillationConfig(0, budget_tokens=0)
    with pytest.raises(ValueError, match="counts generated tokens, so on_policy_share must be above 0"):
        DistillationConfig(0, budget_tokens=9, on_policy_share=0.0, optimizer=OptimizerConfig())


def test_models_of_different_vocabularies_are_refused():
    model = tiny_model(TOKENIZER)
    distill.check_same_vocabulary(model, tiny_model(TOKENIZER, 1), TOKENIZER, tiny_tokenizer())
    other = train_tokenizer(["some other text"] * 3, 90)
    with pytest.raises(SettingsError, match=r"must share a tokenizer, but \d+ of their tokens differ"):
        distill.check_same_vocabulary(model, tiny_model(other), TOKENIZER, other)
    wider = tiny_model(TOKENIZER)
    wider.resize_token_embeddings(len(TOKENIZER) + 8)
    with pytest.raises(SettingsError, match="output heads of"):
        distill.check_same_vocabulary(model, wider, TOKENIZER, TOKENIZER)


def problem(i: int) -> dict:
    question = f"Mia has {i} apples."
    prompt = f"Question: {question}\nAnswer:\n"
    return {"id": f"train/{i}", "prompt": prompt, "question": question, "answer": f"{i}\n#### {i}"}


@pytest.fixture
def folder(tmp_path):
    """Two models, train problems and demonstrations on disk."""
    for name, seed in (("student", 0), ("teacher", 1)):
        save_policy(tiny_model(TOKENIZER, seed, torch.float32), TOKENIZER, tmp_path / name)
    write_jsonl(tmp_path / "train.jsonl", map(problem, range(8)))
    return tmp_path


def run_distillation(folder, **settings):
    config = DistillationConfig(
        0,
        prompts_per_step=4,
        responses=4,
        micro_batch_size=5,
        max_response_tokens=6,
        optimizer=OptimizerConfig(learning_rate=1.0e-2),
        device="cpu",
        **settings,
    )
    student, teacher, problems, out = (str(folder / name) for name in ("student", "teacher", "train.jsonl", "out"))
    distill.train(config, student, teacher, problems, problems if config.on_policy_share < 1 else None, out)
    return json.loads((folder / "out" / "run.json").read_text()), read_jsonl(folder / "out" / "metrics.jsonl")


@pytest.mark.parametrize(
    "settings", [{"beta": 0.0}, {"beta": 1.0}, {"objective": "policy_gradient"}], ids=["forward", "reverse", "policy"]
)
def test_the_student_comes_to_write_what_the_teacher_finds_likely(folder, settings):
    record, lines = run_distillation(folder, steps=25, **settings)
    assert all(line["on_policy"] == 1 for line in lines)
    for metric in ("reverse_kl", "forward_kl"):
        first, last = ([line[metric] for line in part] for part in (lines[:5], lines[-5:]))
        assert sum(last) < 0.8 * sum(first), metric
    assert record["kind"] == "distillation" and record["generated_responses"] == 25 * 16
    assert lines[-1]["generated_tokens"] == record["generated_tokens"] < record["teacher_tokens"]
    assert set(record["memory"]) == {"policy", "teacher"} and record["memory"]["teacher"]["gradients"] == 0
    assert set(record["phase_seconds"]) == {"generate", "teacher", "update"}
    samples = read_jsonl(folder / "out" / "samples.jsonl")
    assert {row["source"] for row in samples} == {"student"} and {row["step"] for row in samples} == {0, 10, 20, 24}


def test_given_text_is_trained_on_at_the_other_steps(folder):
    record, lines = run_distillation(folder, steps=6, on_policy_share=0.5)
    assert {line["on_policy"] for line in lines} == {0, 1}
    assert all(("accuracy" in line) == line["on_policy"] for line in lines)
    assert record["generated_responses"] == 16 * sum(line["on_policy"] for line in lines)
    again = (folder / "out" / "checkpoint" / "model.safetensors").read_bytes()
    run_distillation(folder, steps=6, on_policy_share=0.5)
    assert (folder / "out" / "checkpoint" / "model.safetensors").read_bytes() == again


def test_given_responses_belong_to_a_share_below_one(folder):
    student, teacher, rows = (str(folder / name) for name in ("student", "teacher", "train.jsonl"))
    for share, data, message in (
        (0.5, None, r"on_policy_share is 0\.5: the other steps need given responses \(--data\)"),
        (1.0, rows, r"on_policy_share is 1: given responses \(--data .*train\.jsonl\) are without effect"),
    ):
        config = DistillationConfig(0, prompts_per_step=4, on_policy_share=share)
        with pytest.raises(SettingsError, match=message):
            distill.train(config, student, teacher, rows, data, str(folder / "out"))
    assert not (folder / "out").exists()


def test_a_path_without_a_model_is_refused_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(distill, "load_policy", None)
    good, rows, out = str(folder / "student"), str(folder / "train.jsonl"), str(folder / "out")
    for student, teacher in ((str(folder / "gone"), good), (good, str(folder / "gone"))):
        with pytest.raises(SettingsError, match=r"model '.*gone' cannot be read: .*must be a folder"):
            distill.train(DistillationConfig(0, prompts_per_step=4), student, teacher, rows, None, out)


def test_a_budget_of_generated_tokens_ends_the_run_after_the_step_that_reaches_it(folder, capsys):
    record, lines = run_distillation(folder, steps=100, budget_tokens=300, log_every=3, sample_every=50)
    steps = record["optimizer_steps"]
    assert 300 <= record["generated_tokens"] < 300 + 16 * 6 and lines[-1]["step"] == steps - 1
    assert record["generated_responses"] == 16 * steps and lines[-1]["generated_tokens"] == record["generated_tokens"]
    assert read_jsonl(folder / "out" / "samples.jsonl")[-1]["step"] == steps - 1
    weights = (folder / "out" / "checkpoint" / "model.safetensors").read_bytes()
    run_distillation(folder, steps=steps)
    assert (folder / "out" / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert "warning" not in capsys.readouterr().out
    run_distillation(folder, steps=1, budget_tokens=10_000)
    assert "of budget_tokens = 10000 tokens; raise steps" in capsys.readouterr().out
