"""Distillation and expert iteration: the divergences by hand, the two stages around them."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import distillation
from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts, Totals, make_batch
from algos.training.models.checkpoints import save_policy, train_tokenizer
from algos.training.models.logprobs import token_logits
from algos.training.sampling.respond import graded
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import Phases
from algos.training.supervised import distillation as distill
from algos.training.supervised import expert_iteration
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)
from evaluation.tasks.files import read_jsonl, write_jsonl

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]
ONE = torch.tensor([[True]])
P, Q = torch.tensor([[[0.7, 0.3]]], dtype=torch.float64).log(), torch.zeros(1, 1, 2, dtype=torch.float64)  # logits


def value_and_gradient(beta: float, p=P, q=Q, mask=ONE, temperature: float = 1.0):
    leaf = q.clone().requires_grad_(True)
    values = distillation.divergence(p, leaf, mask, beta, temperature)
    values.sum().backward()
    return values.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "beta, expected", [(0, 0.0822829), (1, 0.0871767), (0.5, 0.0210059), (0.1, 0.0074281), (0.9, 0.0077769)]
)
def test_golden_divergences(beta, expected, dtype):  # P = [0.7, 0.3], Q = [0.5, 0.5]
    values, _ = value_and_gradient(beta, P.to(dtype), Q.to(dtype))
    assert values.item() == pytest.approx(expected, abs=2e-7)


def test_golden_gradients_at_the_students_logits():
    """Forward: Q - P. Reverse: Q (log(Q / P) - KL(Q || P)) = 0.5 (log(5 / 7) - 0.0871767) = -0.2118245."""
    for beta, expected in ((0, [-0.2, 0.2]), (1, [-0.2118245, 0.2118245])):
        torch.testing.assert_close(
            value_and_gradient(beta)[1][0, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0
        )


def test_divided_by_beta_the_jsd_tends_to_the_forward_kl_and_by_one_minus_beta_to_the_reverse():
    (forward, forward_gradient), (reverse, reverse_gradient) = value_and_gradient(0), value_and_gradient(1)
    small, small_gradient = value_and_gradient(1e-5)
    large, large_gradient = value_and_gradient(1 - 1e-5)
    for got, expected in (
        (small, forward),
        (small_gradient, forward_gradient),
        (large, reverse),
        (large_gradient, reverse_gradient),
    ):
        torch.testing.assert_close(got / 1e-5, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_gradients_are_those_of_finite_differences_and_the_teacher_has_none(beta):
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=generator).unbind(0)
    p, q, mask = (
        p.requires_grad_(True),
        q.requires_grad_(True),
        torch.tensor([[True, True, True], [True, False, False]]),
    )
    assert torch.autograd.gradcheck(lambda student: distillation.divergence(p, student, mask, beta, 0.7), (q,))
    distillation.divergence(p, q, mask, beta).sum().backward()
    assert p.grad is None and q.grad.abs().max() > 1e-3


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 7.0])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_what_lies_under_the_mask_has_no_effect(beta, padding):
    mask = torch.tensor([[True, False]])
    p, q = (torch.cat([logits, torch.full_like(logits, padding)], dim=1) for logits in (P, Q))
    values, gradient = value_and_gradient(beta, p, q, mask)
    alone, alone_gradient = value_and_gradient(beta)
    assert values.tolist() == [[alone.item(), 0.0]]
    assert torch.equal(gradient[:, :1], alone_gradient) and gradient[:, 1].tolist() == [[0.0, 0.0]]
    ids, totals = torch.zeros(1, 2, dtype=torch.long), Totals.of(mask)
    metrics = distillation.diagnostics(p, q, ids, mask, 1.0, totals)
    assert metrics["forward_kl"].item() == pytest.approx(0.0822829, abs=1e-7)


def test_temperature_divides_both_sides_logits():
    halved = value_and_gradient(0.5, 2 * P, 2 * Q + 3, temperature=2.0)[0]  # a constant on all logits changes nothing
    torch.testing.assert_close(halved, value_and_gradient(0.5)[0])


def test_extreme_logits_stay_finite_in_float32():
    p, q = torch.tensor([[[300.0, 0.0, -300.0]]]), torch.tensor([[[-300.0, 0.0, 300.0]]])
    for beta in (0, 1e-4, 0.5, 1):
        values, gradient = value_and_gradient(beta, p, q)
        assert values.isfinite().all() and gradient.isfinite().all()
    assert value_and_gradient(0.5, p, q)[0].item() == pytest.approx(math.log(2), abs=1e-6)  # the JSD's largest value


def test_bad_betas_and_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"beta must be in 0\.\.1, got 1\.5"):
        distillation.divergence(P, Q, ONE, 1.5)
    with pytest.raises(ValueError, match="one vocabulary"):
        distillation.divergence(P, torch.zeros(1, 1, 3), ONE, 0.5)


def test_golden_advantage_of_on_policy_distillation():  # log(0.4 / 0.25)
    teacher, student = torch.tensor([[0.4, 0.1]]).log(), torch.tensor([[0.25, float("nan")]]).log().requires_grad_()
    mask = torch.tensor([[True, False]])
    advantages = distillation.token_advantages(teacher, student, mask)
    assert advantages[0].tolist() == [pytest.approx(0.4700036, abs=1e-6), 0.0] and not advantages.requires_grad
    loss = distillation.policy_gradient_loss(teacher, student, mask, Totals.of(mask))
    assert loss.item() == pytest.approx(0.6515633, abs=1e-6)  # -0.4700036 log 0.25, over one token
    loss.backward()  # likelier under the teacher: raise its log-probability
    assert student.grad[0].tolist() == [pytest.approx(-0.4700036, abs=1e-6), 0.0]


def test_the_policy_gradient_is_the_reverse_kls_in_expectation():
    """Summed over all tokens of the vocabulary, each weighted with the probability that the student samples it."""
    generator = torch.Generator().manual_seed(1)
    teacher, logits = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=generator).unbind(0)
    student = logits.clone().requires_grad_(True)
    all_logprobs = torch.log_softmax(student, dim=-1)
    for token in range(6):
        own, theirs = all_logprobs[..., token], torch.log_softmax(teacher, dim=-1)[..., token]
        loss = distillation.policy_gradient_loss(theirs, own, ONE, Totals.of(ONE))
        (own.exp().detach() * loss).sum().backward(retain_graph=True)
    torch.testing.assert_close(student.grad, value_and_gradient(1, teacher, logits)[1])


def test_diagnostics_by_hand():
    totals = Totals(1, 2)  # this token is one of the step's two
    metrics = distillation.diagnostics(P, Q, torch.tensor([[1]]), ONE, 1.0, totals)
    expected = {
        "forward_kl": 0.0822829 / 2,
        "reverse_kl": 0.0871767 / 2,
        "entropy": math.log(2) / 2,
        "teacher_entropy": -(0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / 2,
        "student_logprob": math.log(0.5) / 2,
        "teacher_logprob": math.log(0.3) / 2,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


def test_diagnostics_carry_no_gradient():
    metrics = distillation.diagnostics(P, Q.clone().requires_grad_(True), torch.tensor([[1]]), ONE, 1.0, Totals(1, 1))
    assert not any(value.requires_grad for value in metrics.values())


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
        DistillationConfig(0, objective="policy_gradient")
    with pytest.raises(ValueError, match="beta must be at least 0"):
        DistillationConfig(0, beta=-0.1)
    sampling, training = RejectionConfig(0), SupervisedConfig(0)
    with pytest.raises(ValueError, match=r"hint must contain \{answer\} once"):
        ExpertIterationConfig(sampling, training, hint="no place")
    with pytest.raises(ValueError, match=r"training\.trainer must be own"):
        ExpertIterationConfig(sampling, replace(training, trainer="trl"))
    with pytest.raises(ValueError, match=r"sampling\.device and training\.device must be"):
        ExpertIterationConfig(sampling, replace(training, device="cpu"))


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
    paths = [str(folder / name) for name in ("student", "teacher", "train.jsonl", "train.jsonl", "out")]
    distill.train(config, *paths)
    return json.loads((folder / "out" / "run.json").read_text()), read_jsonl(folder / "out" / "metrics.jsonl")


@pytest.mark.parametrize(
    "settings", [{"beta": 0.0}, {"beta": 1.0}, {"objective": "policy_gradient"}], ids=["forward", "reverse", "policy"]
)
def test_the_student_comes_to_write_what_the_teacher_finds_likely(folder, settings):
    record, lines = run_distillation(folder, steps=25, on_policy_share=1.0, **settings)
    assert all(line["on_policy"] == 1 for line in lines)
    for metric in ("reverse_kl", "forward_kl"):
        first, last = ([line[metric] for line in part] for part in (lines[:5], lines[-5:]))
        assert sum(last) < 0.8 * sum(first), metric
    assert record["stage"] == "on_policy_distillation" and record["generated_responses"] == 25 * 16
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
    with pytest.raises(SettingsError, match=r"on_policy_share is 0\.5: .*--data"):
        config, out = DistillationConfig(0, prompts_per_step=4), str(folder / "out")
        distill.train(config, str(folder / "student"), str(folder / "teacher"), str(folder / "train.jsonl"), None, out)


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
    """A stand-in for evaluation.evaluate.sampled: table(problem, number of the response) says each response."""

    def sampled(policy, tokenizer, problems, samples, config, generator):
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
    rows, metrics = expert_iteration.collect(None, None, problems, expert_config(folder, hint=" told {answer}"), None)
    assert len(rows) == 4 * 2 + 2 and metrics["hinted_share"] == 0.2
    assert [row["answer"] for row in rows[:2]] == ["way 1\n#### 0", "way 2\n#### 0"]
    assert [(row["id"], row["hinted"]) for row in rows[8:]] == [("train/4", True), ("train/5", True)]
    assert all(row["prompt"] == problem(int(row["id"][6:]))["prompt"] for row in rows)
    assert metrics["acceptance_rate"] == 0.5 and metrics["unique_per_prompt"] == 4 * 3 / 8
    assert metrics["prompts_solved"] == 0.5 and metrics["solved"] == {f"train/{i}" for i in range(4)}
    assert metrics["entropy"] == 0.5 and metrics["round_responses"] == 8 * 4 + 4 * 4
    rows, metrics = expert_iteration.collect(None, None, problems, expert_config(folder), None)
    assert len(rows) == 8 and metrics["hinted_share"] == 0 and metrics["round_tokens"] == 8 * 4 * 2


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
        assert record["generated_responses"] == 32 * settings["rounds"] and record["stage"] == "expert_iteration"
        assert lines[-1]["prompts_never_solved"] == 0.5 and lines[-1]["generated_tokens"] == record["generated_tokens"]
        assert len(read_jsonl(out / "accepted.jsonl")) == 8 * settings["rounds"]
    assert weights["one"] == weights["restart"] != weights["continue"]


def test_a_round_without_anything_correct_stops(monkeypatch, folder):
    monkeypatch.setattr(expert_iteration, "sampled", answering(lambda p, i: "no"))
    with pytest.raises(SettingsError, match="round 0: none of the 32 sampled responses is correct"):
        expert_iteration.train(
            expert_config(folder), str(folder / "student"), str(folder / "train.jsonl"), str(folder / "out")
        )


def test_expert_iteration_really_samples(folder):
    """Without a stand-in: an untrained model finds no answer, but its responses are drawn, graded and counted."""
    problems = list(map(problem, range(8)))
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(TOKENIZER, 0, torch.float32)
    groups, counts = expert_iteration.answers(model, TOKENIZER, problems, expert_config(folder).sampling, generator)
    assert [len(group) for group in groups] == [4] * 8 and counts["responses"] == 32
    assert [group[0]["problem"] for group in groups] == [p["id"] for p in problems]
    assert 0 < counts["nats"] / counts["tokens"] < math.log(len(TOKENIZER))


def test_diagnostics_are_of_the_tempered_distributions():  # log 4 at temperature 2 is log 2: (2/3, 1/3), 0.6365142 nats
    logits = torch.tensor([[[4.0, 1.0]]], dtype=torch.float64).log()
    flat, mask, ids = torch.zeros_like(logits), torch.tensor([[True]]), torch.tensor([[0]])
    student = distillation.diagnostics(flat, logits, ids, mask, 2.0, Totals.of(mask))
    teacher = distillation.diagnostics(logits, flat, ids, mask, 2.0, Totals.of(mask))
    assert student["entropy"].item() == teacher["teacher_entropy"].item() == pytest.approx(0.6365142, abs=1e-7)
    assert student["student_logprob"].item() == pytest.approx(-0.4054651, abs=1e-7)  # log 2/3
