"""A second implementation: TRL's SFTTrainer and GKDTrainer agree with sft.py and distillation.py, step by step."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from agreement import close
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import distillation
from algos.pieces.masked import masked_sum
from algos.pieces.settings import SettingsError
from algos.pieces.types import Totals, make_batch
from algos.training.models.checkpoints import save_policy
from algos.training.models.logprobs import token_logits, token_logprobs
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import Phases
from algos.training.supervised import distillation as distill
from algos.training.supervised import sft
from algos.training.supervised.config import DistillationConfig, SupervisedConfig
from algos.training.supervised.examples import as_batch
from algos.training.trl.check import check_supervised
from algos.training.trl.supervised import collate, fit_distillation, gkd_arguments, sft_arguments, sft_row
from algos.training.update.optimize import make_optimizer
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]
END = TOKENIZER.eos_token_id
EXAMPLES = [(PROMPTS[i % 2], [*range(20 + i, 20 + i + length), END]) for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_divergence_and_gradient_are_those_of_trls_generalized_jsd(beta, temperature):
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 3, 5, 11, dtype=torch.float64, generator=generator).mul(3).unbind(0)
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    labels = torch.where(mask, torch.randint(0, 11, mask.shape, generator=generator), -100)
    ours, theirs = (student.clone().requires_grad_(True) for _ in range(2))
    loss = distillation.loss(teacher, ours, mask, beta, temperature, Totals.of(mask))
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, labels, beta, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and loss.item() > 0.01
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    assert ours.grad.abs().max() > 1e-3


def test_loss_and_gradient_of_supervised_training(tmp_path):
    """TRL's own collator, labels and loss on one batch of its data format; the suite's from right-padded responses."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, theirs = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    trainer = SFTTrainer(
        model=theirs,
        args=SFTConfig(**sft_arguments(SupervisedConfig(0, steps=1), len(EXAMPLES), str(tmp_path), CPU)),
        processing_class=TOKENIZER,
        train_dataset=Dataset.from_list([sft_row(*example) for example in EXAMPLES]),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    items = trainer._get_num_items_in_batch([inputs], CPU)
    expected = trainer.compute_loss(theirs, inputs, num_items_in_batch=items)
    expected.backward()
    batch = as_batch(EXAMPLES, TOKENIZER.pad_token_id, CPU)
    totals = Totals.of(batch.response_mask)
    assert items == totals.response_tokens == sum(LENGTHS) + len(LENGTHS)
    loss = -masked_sum(token_logprobs(model, batch, 1.0)[0], batch.response_mask) / totals.response_tokens
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    close(gradients(model), gradients(theirs))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_and_gradient_of_distillation_through_the_models(beta, tmp_path):
    """TRL's compute_loss on [padding | prompt | response | padding]; the suite's loss without padding on the left."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    model, theirs, teacher = tiny_model(TOKENIZER), tiny_model(TOKENIZER), tiny_model(TOKENIZER, 1)
    config = DistillationConfig(0, steps=1, prompts_per_step=2, responses=4, beta=beta, on_policy_share=0.5)
    trainer = GKDTrainer(
        model=theirs,
        teacher_model=teacher,
        args=GKDConfig(**gkd_arguments(config, str(tmp_path), CPU)),
        processing_class=TOKENIZER,
        train_dataset=Dataset.from_list([{"prompt_ids": [5], "response_ids": [6]}]),
    )
    assert (trainer.lmbda, trainer.beta, trainer.temperature, trainer.seq_kd) == (0.5, beta, 1.0, False)
    assert trainer.generation_config.max_new_tokens == config.max_response_tokens
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    batch = make_batch(rollouts, torch.zeros(8), TOKENIZER.pad_token_id)
    rows = [
        {"prompt_ids": PROMPTS[i // 4], "response_ids": batch.response_ids[i, :length].tolist()}
        for i, length in enumerate(LENGTHS)
    ]
    expected = trainer.compute_loss(theirs, collate(rows, TOKENIZER.pad_token_id))
    expected.backward()
    teacher_logits, student_logits = token_logits(teacher, batch).detach(), token_logits(model, batch)
    totals = Totals.of(batch.response_mask)
    loss = distillation.loss(teacher_logits, student_logits, batch.response_mask, beta, 1.0, totals)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    close(gradients(model), gradients(theirs))


@pytest.fixture
def folder(tmp_path):
    """Two models, problems and worked solutions of different lengths on disk."""
    for name, seed in (("student", 0), ("teacher", 1)):
        save_policy(tiny_model(TOKENIZER, seed, torch.float32), TOKENIZER, tmp_path / name)
    rows = [
        {"id": f"train/{i}", "prompt": f"{i}+5=", "question": f"{i}+5=", "answer": f"{'1' * i}\n#### {i + 5}"}
        for i in range(9)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    return tmp_path


def run(folder, stage, config, trainer):
    out = folder / trainer
    student, teacher, rows = (str(folder / name) for name in ("student", "teacher", "train.jsonl"))
    if stage is sft:
        sft.train(config, student, rows, str(out))
    else:
        distill.train(config, student, teacher, rows, rows, str(out))
    weights = tiny_model(TOKENIZER, 0, torch.float32).from_pretrained(out / "checkpoint").state_dict()
    return read_jsonl(out / "metrics.jsonl"), json.loads((out / "run.json").read_text()), weights


SHARED = {
    "seed": 3,
    "steps": 7,
    "log_every": 1,
    "device": "cpu",
    "optimizer": OptimizerConfig(
        learning_rate=3.0e-3, schedule="cosine", warmup_steps=2, max_grad_norm=0.5, weight_decay=0.1
    ),
}


def settings_of(stage, trainer):
    if stage is sft:
        return SupervisedConfig(**SHARED, batch_size=4, trainer=trainer)
    sizes = {"prompts_per_step": 2, "responses": 2, "max_response_tokens": 6}
    return DistillationConfig(**SHARED, **sizes, micro_batch_size=3, on_policy_share=0.0, trainer=trainer)


@pytest.mark.parametrize("stage", [sft, distill], ids=["sft", "distillation"])
def test_both_trainers_take_the_same_steps_and_end_with_the_same_weights(stage, folder):
    """Same examples in the same order, optimizer, schedule, clipping: 7 steps, from the command's functions down."""
    (own, record, weights), (trl, trl_record, trl_weights) = (
        run(folder, stage, settings_of(stage, trainer), trainer) for trainer in ("own", "trl")
    )
    assert len(own) == len(trl) == 7
    for ours, theirs in zip(own, trl, strict=True):
        for metric in ("loss", "grad_norm", "learning_rate"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=2e-4), metric
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, trl_weights[name], atol=2e-5, rtol=0)
    start = tiny_model(TOKENIZER, 0, torch.float32).state_dict()
    assert max(float((weights[name] - start[name]).abs().max()) for name in weights) > 5e-3
    assert (record["trainer"], trl_record["trainer"]) == ("own", "trl")
    for fact in ("memory", "optimizer_steps", "trained_tokens", "teacher_tokens"):
        assert record.get(fact) == trl_record.get(fact), fact
    assert set(record["phase_seconds"]) == set(trl_record["phase_seconds"])


@pytest.mark.parametrize("stage", [sft, distill], ids=["sft", "distillation"])
def test_both_trainers_take_bfloat16(stage, folder):
    """Masters here, float32 weights under autocast in TRL: the same losses up to bfloat16's 8 bits."""
    (own, _, weights), (trl, _, trl_weights) = (
        run(folder, stage, replace(settings_of(stage, trainer), dtype="bfloat16"), trainer)
        for trainer in ("own", "trl")
    )
    for ours, theirs in zip(own, trl, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.03, abs=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
    assert all(tensor.dtype == trl_weights[name].dtype == torch.float32 for name, tensor in weights.items())


def test_trl_trains_on_the_students_text_at_the_same_steps(folder, monkeypatch):
    """TRL takes the coins of the suite; its responses are counted and kept as the suite's own loop does."""
    from trl.experimental.gkd import gkd_trainer

    monkeypatch.setattr(gkd_trainer, "random", SimpleNamespace(random=lambda: 0.999))
    sizes = {"prompts_per_step": 2, "responses": 3, "max_response_tokens": 6, "on_policy_share": 0.5}
    records = {}
    for trainer in ("own", "trl"):
        lines, record, _ = run(folder, distill, DistillationConfig(**SHARED, **sizes, trainer=trainer), trainer)
        records[trainer] = record
        assert 0 < sum(line["on_policy"] for line in lines) < 7
        assert [line["on_policy"] for line in lines] == [
            step.on_policy
            for step in distill.schedule(DistillationConfig(**SHARED, **sizes), distill.Texts([[5]] * 9, EXAMPLES))
        ]
        tokens = sum(6 * line["response_tokens"] for line in lines if line["on_policy"])
        assert record["generated_tokens"] == pytest.approx(tokens) and record["generated_tokens"] > 0
        assert all(line["response_tokens"] <= 6 for line in lines if line["on_policy"])
        assert all(("accuracy" in line) == line["on_policy"] for line in lines)
        samples = read_jsonl(folder / trainer / "samples.jsonl")
        assert {row["step"]: row["source"] for row in samples} == {
            step: "student" if lines[step]["on_policy"] else "given" for step in (0, 6)
        }
    assert records["own"]["generated_responses"] == records["trl"]["generated_responses"]
    assert set(records["own"]["phase_seconds"]) == set(records["trl"]["phase_seconds"])


def test_trls_step_on_sampled_text_is_the_suites_on_the_same_text():
    """One step of TRL's loop, from its sampling to its gradient norm; the suite replays the sampled responses."""
    config = DistillationConfig(
        0,
        steps=1,
        prompts_per_step=2,
        responses=4,
        micro_batch_size=3,
        max_response_tokens=20,
        on_policy_share=1.0,
        beta=0.3,
    )
    ours, theirs, teacher = tiny_model(TOKENIZER), tiny_model(TOKENIZER), tiny_model(TOKENIZER, 1)
    texts, seen = distill.Texts(PROMPTS, []), []
    optimizer, scheduler = make_optimizer(theirs, config.optimizer, 1)
    torch.manual_seed(0)
    fit_distillation(
        theirs, teacher, TOKENIZER, optimizer, scheduler, texts, config, Phases(CPU), lambda *step: seen.append(step)
    )
    ((number, metrics, responses),) = seen
    assert number == 0 and len({len(ids) for ids in responses}) > 2  # of different lengths: some are padded
    for ids in responses:
        assert END not in ids[:-1] and (ids[-1] == END or len(ids) == 20)
    order = distill.schedule(config, texts)[0].rows
    pairs = [(PROMPTS[order[i // 4]], ids) for i, ids in enumerate(responses)]
    batch = as_batch(pairs, TOKENIZER.pad_token_id, CPU)
    expected = distill.accumulate_gradients(batch, ours, teacher, config, Phases(CPU))
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    norm = torch.cat([g.flatten() for g in gradients(ours).values()]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4) and norm > 1e-2
    assert metrics["scored_tokens"] == int(batch.lengths.sum())


def test_what_trl_cannot_do_is_refused():
    check_supervised(SupervisedConfig(0, trainer="trl"))
    check_supervised(DistillationConfig(0, trainer="trl"))
    with pytest.raises(SettingsError, match=r"compares the distributions at 1; .*got 0\.9"):
        check_supervised(DistillationConfig(0, trainer="trl", temperature=0.9))
    constant = OptimizerConfig()
    with pytest.raises(SettingsError, match="counts steps, not tokens, got budget_tokens 1000"):
        check_supervised(DistillationConfig(0, trainer="trl", budget_tokens=1000, optimizer=constant))
    with pytest.raises(SettingsError, match="objective divergence only, got policy_gradient"):
        check_supervised(DistillationConfig(0, trainer="trl", objective="policy_gradient", on_policy_share=1.0))
