"""A second implementation: TRL's GRPO and RLOO, given the same model and tokens, agree in loss and gradient.

The comparison is end to end: TRL computes its log-probabilities from left-padded prompts with attention masks, the
suite from right-padded sequences without them. The gradients compared are those of every model parameter.
"""

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from agreement import close
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos.pieces.types import Rollouts, Totals, make_batch
from algos.reinforce import reinforce_objective
from algos.training.config import RunConfig
from algos.training.models.logprobs import policy_outputs, token_logprobs
from algos.training.trl.check import check
from algos.training.trl.options import grpo_arguments, rloo_arguments
from algos.training.trl.trainers import loss_type, trainer_of
from algos.training.update.update import kept

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]
REWARDS = [1.0, 0, 0, 1, 0, 0, 0.5, 1]

# algorithm, its settings, loss_type (rloo: RLOOTrainer), the metric of its clip, which has to be active, and how far
# old and new log-probabilities are apart
CASES = {
    "grpo": ("grpo", {"clip_high": 0.28}, "grpo", "clip_fraction", 0.3),
    "grpo_kl": ("grpo", {"clip_low": 0.1, "clip_high": 0.1, "kl_coef": 0.04}, "grpo", "clip_fraction", 0.3),
    "grpo_kl_ratio": ("grpo", {"kl_coef": 0.5, "kl_importance_weighted": True}, "grpo", "clip_fraction", 0.3),
    "grpo_two_sided": ("grpo", {"ratio_cap": 1.25}, "grpo", "clip_fraction", 0.6),
    "grpo_off_policy_mask": (
        "grpo_off_policy_mask",
        {"off_policy_threshold": 0.05},
        "grpo",
        "off_policy_fraction",
        0.3,
    ),
    "gspo_off_policy_mask": (
        "gspo",
        {"off_policy_threshold": 0.05, "clip_low": 1.0},
        "grpo",
        "off_policy_fraction",
        0.3,
    ),
    "grpo_token_sum": ("grpo", {"aggregation": "seq-mean-token-sum"}, "luspo", "clip_fraction", 0.3),
    "gspo": ("gspo", {"clip_low": 0.03, "clip_high": 0.04, "kl_coef": 0.04}, "grpo", "clip_fraction", 0.05),
    "gspo_paper_clip": ("gspo", {}, "grpo", "clip_fraction", 0.002),
    "gspo_token": ("gspo_token", {"clip_low": 0.03, "clip_high": 0.04}, "grpo", "clip_fraction", 0.05),
    "luspo": ("luspo", {"clip_low": 0.03, "clip_high": 0.04, "kl_coef": 0.04}, "luspo", "clip_fraction", 0.05),
    "luspo_paper_clip": ("luspo", {}, "luspo", "clip_fraction", 0.01),
    "dr_grpo": ("dr_grpo", {}, "dr_grpo", "clip_fraction", 0.3),
    "dapo": ("dapo", {"dynamic_sampling": False, "mask_truncated": True}, "dapo", "clip_fraction", 0.3),
    "dapo_entropy": ("dapo", {"dynamic_sampling": False, "entropy_coef": 0.5}, "dapo", "clip_fraction", 0.3),
    "top_entropy": ("top_entropy", {"dynamic_sampling": False, "kl_coef": 0.04}, "dapo", "clip_fraction", 0.3),
    "lite_ppo": ("lite_ppo", {}, "bnpo", "clip_fraction", 0.3),
    "cispo": ("cispo", {"is_max": 1.2, "kl_coef": 0.04}, "cispo", "clip_fraction", 0.3),
    "vespo": ("vespo", {"kl_coef": 0.04}, "vespo", "response_weight_below_half", 0.3),
    "vespo_scaled": (
        "vespo",
        {"scale": "group_std", "power_pos": 1.0, "decay_pos": 0.5, "power_neg": 2.0, "decay_neg": 1.5},
        "vespo",
        "response_weight_below_half",
        0.5,
    ),
    "sapo": ("sapo", {"tau_pos": 5.0, "tau_neg": 8.0, "kl_coef": 0.04}, "sapo", "gate_below_half", 0.6),
    "sapo_sequence": ("sapo", {"ratio": "sequence", "tau_neg": 9.0}, "sapo", None, 0.3),
    "reinforce_group": ("reinforce_group", {}, "luspo", None, 0.0),
    "rloo": ("rloo", {"kl_coef": 0.2}, "rloo", None, 0.0),
    "rloo_clipped": (
        "grpo",
        {"baseline": "leave_one_out", "scale": "none", "ratio": "product", "clip_high": 0.3, "kl_in": "reward"}
        | {"kl_estimator": "k1", "kl_coef": 0.2},
        "rloo",
        "clip_fraction",
        0.2,
    ),
}


def make_trainer(config: RunConfig, model, reference, tokenizer, out):
    """TRL's trainer for a run; its reward function returns the given numbers."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    check(config)
    if trainer_of(config).kind == "grpo":
        kind, arguments = GRPOTrainer, GRPOConfig(**grpo_arguments(config, str(out), CPU))
    else:
        kind, arguments = RLOOTrainer, RLOOConfig(**rloo_arguments(config, str(out), CPU))
    reference.save_pretrained(out / "reference")
    theirs = copy.deepcopy(model)
    theirs.config._name_or_path = str(out / "reference")  # TRL loads its reference from there
    trainer = kind(
        model=theirs,
        args=arguments,
        reward_funcs=lambda completions, **_: REWARDS[: len(completions)],
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "7+5="}] * 2),
    )
    if trainer.ref_model is not None:
        trainer.ref_model.to(torch.float64)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def scored(trainer, rollouts: Rollouts, tokenizer) -> dict:
    """The rollouts as TRL prepares them: its padding, masks, log-probabilities and advantages."""
    ids = [row[mask].tolist() for row, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]
    prompts = [prompt for prompt in rollouts.prompts for _ in range(rollouts.group_size)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    sampled = (prompts, ids, texts) if is_rloo(trainer) else (prompts, ids, None, texts, None, {}, None, [])
    with patch.object(trainer, "_generate", lambda _: sampled):
        return trainer._generate_and_score_completions([{"prompt": "7+5="} for _ in ids])


def is_rloo(trainer) -> bool:
    return type(trainer).__name__ == "RLOOTrainer"


@pytest.mark.parametrize("case", CASES)
def test_advantages_loss_and_gradient(case, tmp_path):
    """From rewards and tokens to the gradient of every parameter, at old log-probabilities that differ."""
    algorithm, settings, expected_loss, clip, distance = CASES[case]
    config = RunConfig(
        algorithm,
        0,
        settings if "std_epsilon" in settings or expected_loss == "rloo" else {**settings, "std_epsilon": 1.0e-4},
        trainer="trl",
        steps=1,
        prompts_per_step=2,
        group_size=4,
        minibatches=2 if expected_loss == "bnpo" else 1,
        max_response_tokens=max(LENGTHS),
    )
    run, entry = config.hparams, config.algorithm_entry
    tokenizer = tiny_tokenizer()
    model, reference = tiny_model(tokenizer), tiny_model(tokenizer, 1)
    trainer = make_trainer(config, model, reference, tokenizer, tmp_path)
    assert expected_loss == ("rloo" if is_rloo(trainer) else trainer.loss_type)

    rollouts = cut_off(random_rollouts(tokenizer, PROMPTS, 4, LENGTHS), row=1)
    batch = make_batch(rollouts, torch.tensor(REWARDS, dtype=torch.float64), tokenizer.pad_token_id)
    with torch.no_grad():
        batch = replace(batch, old_logprobs=token_logprobs(model, batch, 1.0)[0])
        if run.needs_reference:
            batch = replace(batch, ref_logprobs=token_logprobs(reference, batch, 1.0)[0])
    batch = replace(batch, keep=kept(run, rollouts.truncated, torch.ones(8), 4))
    advantages = entry.advantages(batch, run)
    inputs = scored(trainer, rollouts, tokenizer)
    torch.testing.assert_close(advantages.squeeze(1).float(), inputs["advantages"].float(), atol=1e-5, rtol=1e-5)
    assert inputs["advantages"].abs().max() > 0.1

    noise = torch.randn(batch.response_mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    old = batch.old_logprobs + distance * noise * batch.response_mask  # some ratios are clipped, some are not
    outputs = policy_outputs(model, batch, 1.0, entropy=True)
    if entry.select is not None:
        batch = replace(batch, selected=entry.select(replace(batch, entropies=outputs.entropies.detach()), run))
    loss, metrics = entry.loss(
        outputs.logprobs,
        old,
        advantages,
        batch.loss_mask,
        run,
        Totals.of(batch.loss_mask),
        batch.ref_logprobs,
        entropies=outputs.entropies,
        selected=batch.selected,
    )
    loss.backward()
    if clip is not None:
        assert 0 < metrics[clip] < 1
    if run.mask_truncated:
        assert batch.loss_mask.sum() < batch.response_mask.sum()

    if is_rloo(trainer):
        inputs["old_logps"] = (old * batch.response_mask).sum(1)
    else:
        inputs["old_per_token_logps"] = old
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    if entry.objective is not reinforce_objective:  # whose value, A log pi, means nothing
        assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    close(gradients(model), gradients(trainer.model))


def cut_off(rollouts: Rollouts, row: int) -> Rollouts:
    """The rollouts with one response, of full length, that ran into the length limit."""
    assert rollouts.response_mask[row].all()
    ids, truncated = rollouts.response_ids.clone(), rollouts.truncated.clone()
    ids[row, -1], truncated[row] = 17, True
    return replace(rollouts, response_ids=ids, truncated=truncated)


def test_dapo_of_trl_is_a_token_mean_with_one_minibatch_only(tmp_path):
    """With two, TRL divides by half the tokens of the rollout batch, which is why such runs get bnpo."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    config = RunConfig(
        "dapo", 0, {"dynamic_sampling": False, "std_epsilon": 1.0e-4}, "trl", 1, None, 2, 4, minibatches=1
    )
    trainer = make_trainer(config, model, model, tokenizer, tmp_path)
    inputs = scored(trainer, random_rollouts(tokenizer, PROMPTS, 4, LENGTHS), tokenizer)
    rows = {name: value[:4] if value.dim() else value for name, value in inputs.items()}
    whole, half = inputs["num_items_in_batch"], rows["completion_mask"].sum()
    assert (whole, half) == (sum(LENGTHS), sum(LENGTHS[:4]))
    trainer.args.steps_per_generation, trainer.loss_type = 2, "dapo"
    dapo = trainer._compute_loss(trainer.model, rows)
    trainer.loss_type = "bnpo"
    bnpo = trainer._compute_loss(trainer.model, rows)
    assert bnpo.item() != pytest.approx(0) and dapo.item() == pytest.approx((bnpo * half / (whole / 2)).item())
    assert loss_type(config) == "dapo" and loss_type(replace(config, minibatches=2)) == "bnpo"
