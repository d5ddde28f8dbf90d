"""A second implementation: TRL, given the same model and tokens, agrees in loss and gradient.

The comparison is end to end: TRL computes its log-probabilities from left-padded prompts with attention masks, ours
come from right-padded sequences without; the gradients compared are those of every model parameter.
"""

import copy
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts, Totals, make_batch
from algos.reinforce import reinforce_objective
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.logprobs import policy_outputs, token_logprobs, token_values
from algos.training.models.packing import Layout, shares_prompts
from algos.training.rewards.reward_model import bradley_terry_loss, score_examples
from algos.training.stage.config import OptimizerConfig
from algos.training.trl import options as trl_settings
from algos.training.trl.options import (
    TRL_STD_EPSILON,
    check,
    grpo_arguments,
    loss_type,
    ppo_arguments,
    rloo_arguments,
    twin_of,
)
from algos.training.update.update import kept, with_advantages

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
SEED = 1
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]


def close(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys() and got
    for name in got:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(g.abs().max()) for g in got.values()) > 1e-4


REWARDS = [1.0, 0, 0, 1, 0, 0, 0.5, 1]

# algorithm, its settings, loss_type (rloo: RLOOTrainer), the metric that says that its clip acts, how far old and new
# log-probabilities are apart
CASES = {
    "grpo": ("grpo", {"clip_high": 0.28}, "grpo", "clip_fraction", 0.3),
    "grpo_kl": ("grpo", {"clip_low": 0.1, "clip_high": 0.1, "kl_coef": 0.04}, "grpo", "clip_fraction", 0.3),
    "grpo_kl_ratio": ("grpo", {"kl_coef": 0.5, "kl_importance_weighted": True}, "grpo", "clip_fraction", 0.3),
    "grpo_two_sided": ("grpo", {"ratio_cap": 1.25}, "grpo", "clip_fraction", 0.6),
    "grpo_token_sum": ("grpo", {"aggregation": "seq-mean-token-sum"}, "luspo", "clip_fraction", 0.3),
    "gspo": ("gspo", {"clip_low": 0.03, "clip_high": 0.04, "kl_coef": 0.04}, "grpo", "clip_fraction", 0.05),
    "gspo_paper_clip": ("gspo", {}, "grpo", "clip_fraction", 0.002),
    "gspo_token": ("gspo_token", {"clip_low": 0.03, "clip_high": 0.04}, "grpo", "clip_fraction", 0.05),
    "dr_grpo": ("dr_grpo", {}, "dr_grpo", "clip_fraction", 0.3),
    "dapo": ("dapo", {"keep": "all", "mask_truncated": True}, "dapo", "clip_fraction", 0.3),
    "dapo_entropy": ("dapo", {"keep": "all", "entropy_coef": 0.5}, "dapo", "clip_fraction", 0.3),
    "lite_ppo": ("lite_ppo", {}, "bnpo", "clip_fraction", 0.3),
    "cispo": ("cispo", {"is_max": 1.2, "kl_coef": 0.04}, "cispo", "clip_fraction", 0.3),
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
    """TRL's trainer for a run, and its rewards' functions: the given numbers."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    check(config)
    if twin_of(config).kind == "grpo":
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
    """What TRL makes of the rollouts: its padding, masks, log-probabilities and advantages."""
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
    outputs = policy_outputs(model, batch, 1.0, entropy=run.entropy_coef > 0)
    loss, metrics = entry.loss(
        outputs.logprobs,
        old,
        advantages,
        batch.loss_mask,
        run,
        Totals.of(batch.loss_mask),
        batch.ref_logprobs,
        entropies=outputs.entropies,
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
    config = RunConfig("dapo", 0, {"keep": "all", "std_epsilon": 1.0e-4}, "trl", 1, None, 2, 4, minibatches=1)
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


def run_of(algorithm: str, settings: dict | None = None, **options) -> RunConfig:
    return RunConfig(algorithm, 0, settings or {}, trainer="trl", **options)


GRPO = {"std_epsilon": 1.0e-4}
PPO = {"gae_lambda": 1.0}
RLOO = {**GRPO, "baseline": "leave_one_out", "scale": "none", "ratio": "product"}


@pytest.mark.parametrize(
    "algorithm, settings, options, message",
    [
        ("grpo", {}, {}, "std_epsilon is fixed, got 1e-06; set settings.std_epsilon to 0.0001"),
        ("grpo", {**GRPO, "std_ddof": 0}, {}, "the sample standard deviation, got 0; set settings.std_ddof to 1"),
        ("grpo", {**GRPO, "baseline": "batch_mean"}, {}, "baseline to group_mean"),
        ("opo", {}, {"minibatches": 1}, "baseline to group_mean"),
        ("remax", {}, {"minibatches": 1}, "got greedy"),
        ("grpo", {**GRPO, "scale": "leave_one_out_std"}, {}, "scale to group_std or batch_std or none"),
        ("reinforce_pp_baseline", {}, {}, "no such scale, got whiten"),
        ("grpo_as_openrlhf", GRPO, {}, "credit to response"),
        ("grpo", {**GRPO, "ratio": "product"}, {}, r"no such ratio \(its RLOO: product\), got product"),
        ("grpo", {**GRPO, "kl_coef": 0.1, "kl_estimator": "k2"}, {}, "got k2; set settings.kl_estimator to k3"),
        ("grpo", {**GRPO, "kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k1"}, {}, "kl_in to loss"),
        ("gspo", {**GRPO, "kl_coef": 0.1, "kl_importance_weighted": True}, {}, "kl_importance_weighted to false"),
        ("ppo_adaptive_kl", PPO, {}, "got 2; set settings.kl_target to null"),
        ("grpo", {**GRPO, "target_kl": 0.1}, {}, "target_kl to null"),
        ("dapo", GRPO, {}, "got mixed_groups; set settings.keep to all"),
        ("grpo", {**GRPO, "keep": "correct"}, {}, "keep to all"),
        ("grpo", {**GRPO, "correction": "token_mask"}, {}, "correction to none"),
        ("grpo_as_verl", GRPO, {}, "no dual clip, got 3"),
        ("grpo", {**GRPO, "mask_truncated": True}, {}, "set settings.aggregation to token-mean, or mask_truncated"),
        ("grpo", {**GRPO, "entropy_coef": 0.1}, {}, "set settings.aggregation to token-mean, or entropy_coef to 0"),
        ("sapo", {**GRPO, "aggregation": "token-mean"}, {}, "got token-mean; set .*aggregation to seq-mean-token-mean"),
        ("cispo", {**GRPO, "aggregation": "seq-mean-token-mean"}, {}, "set settings.aggregation to token-mean"),
        ("cispo", GRPO, {}, "got minibatches 4; set minibatches to 1"),
        ("dr_grpo", {"aggregation_length": 7}, {}, "length limit, got 7; set settings.aggregation_length to null"),
        ("gmpo", GRPO, {}, "there is no TRL twin of 'gmpo'"),
        ("raft", {}, {"minibatches": 1}, "there is no TRL twin of 'raft'"),
        ("trpo", {}, {"minibatches": 1}, "there is no TRL twin of 'trpo'"),
        ("ppo_penalty", PPO, {}, "there is no TRL twin of 'ppo_penalty'"),
        ("reinforce_group", {}, {}, "epochs x minibatches = 4; set both to 1 for reinforce_group"),
        ("rloo", {}, {"epochs": 2, "minibatches": 1}, "epochs x minibatches = 2; set both to 1 for rloo"),
        ("rloo", {"aggregation": "token-mean"}, {"minibatches": 1}, "aggregation to seq-mean-token-sum"),
        ("rloo", {"kl_estimator": "k3"}, {"minibatches": 1}, "its KL by k1, got k3"),
        ("rloo", {"mask_truncated": True}, {"minibatches": 1}, "mask_truncated to false"),
        ("grpo", {**RLOO, "ratio": "token"}, {}, "got token; set settings.ratio to product"),
        ("grpo", {**RLOO, "ratio_cap": 2.0}, {}, "ratio_cap to null"),
        ("grpo_as_nemo", {}, {}, "got leave_one_out_std; set settings.scale to none"),
        ("ppo", {}, {}, "only with gae_lambda 1 and gamma 1, got 0.95"),
        ("ppo", {**PPO, "gamma": 0.9}, {}, "only with gae_lambda 1 and gamma 1, got 0.9"),
        ("ppo", {**PPO, "gae_lambda_critic": 0.5}, {}, "gae_lambda_critic to null or 1"),
        ("ppo", {**PPO, "clip_high": 0.3}, {}, "one clip range"),
        ("ppo", {**PPO, "scale": "none"}, {}, "always whitens its advantages, got none"),
        ("ppo", {**PPO, "whiten_rewards": True}, {}, "whiten_rewards to false"),
        ("ppo", {**PPO, "aggregation": "seq-mean-token-mean"}, {}, "aggregation to token-mean"),
        ("ppo", {**PPO, "critic_init": "fresh"}, {}, "critic_init to policy"),
        ("ppo", {**PPO, "value_warmup": 2}, {}, "value_warmup to 0"),
        ("ppo", {**PPO, "entropy_coef": 0.1}, {}, "entropy_coef to 0"),
        ("ppo", {**PPO, "kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3"}, {}, "kl_in to reward"),
        ("ppo_shared", PPO, {}, "got shared; set settings.critic to separate"),
        ("ppo", {**PPO, "critic_layers": 1}, {}, "got 1; set settings.critic_layers to null"),
        ("ppo", PPO, {"dtype": "bfloat16"}, "its ratios do not start at 1, got dtype bfloat16; set dtype to float32"),
        ("ppo", PPO, {"gradient_checkpointing": True}, "got gradient_checkpointing true; set it to false"),
        ("grpo", GRPO, {"lora": LoraSettings()}, "lora is not handed to TRL; set it to null for the run that the twin"),
        ("grpo", GRPO, {"compile": True}, "compile is not handed to TRL; set it to false"),
        ("grpo", GRPO, {"offload": ("critic",)}, r"offload is not handed to TRL; set it to \[\]"),
        ("grpo", GRPO, {"budget_tokens": 1000}, "counts steps, not tokens, got budget_tokens 1000; use steps alone"),
    ],
)
def test_what_trl_cannot_do_is_refused_by_name(algorithm, settings, options, message):
    with pytest.raises(SettingsError, match=message):
        check(run_of(algorithm, settings, **options))


ONE_STEP = {"epochs": 1, "minibatches": 1}
WITH_TWIN = {  # every algorithm that has one, with what it takes
    "reinforce_group": ({}, ONE_STEP, "luspo"),
    "rloo": ({}, ONE_STEP, "rloo"),
    "grpo": (GRPO, {}, "grpo"),
    "dr_grpo": ({}, {}, "dr_grpo"),
    "dapo": ({**GRPO, "keep": "all"}, {}, "bnpo"),
    "lite_ppo": (GRPO, {}, "bnpo"),
    "gspo": (GRPO, {}, "grpo"),
    "gspo_token": (GRPO, {}, "grpo"),
    "cispo": (GRPO, ONE_STEP, "cispo"),
    "sapo": (GRPO, {}, "sapo"),
    "grpo_as_trl": ({}, ONE_STEP, "dapo"),
    "grpo_as_verl": ({**GRPO, "dual_clip": None}, {}, "bnpo"),
    "grpo_as_openrlhf": ({**GRPO, "credit": "response", "kl_in": "loss", "kl_estimator": "k3"}, {}, "bnpo"),
    "grpo_as_open_instruct": ({"correction": "none"}, {}, "bnpo"),
    "grpo_as_nemo": ({**GRPO, "baseline": "group_mean", "scale": "group_std", "std_ddof": 1}, {}, "bnpo"),
    "gspo_as_paper": (GRPO, {}, "grpo"),
    "gspo_unclipped": (GRPO, {}, "grpo"),
    "ppo": (PPO, {}, "ppo"),
    "ppo_mc": ({}, {}, "ppo"),
    "ppo_shared": ({**PPO, "critic": "separate"}, {}, "ppo"),
    "ppo_adaptive_kl": ({**PPO, "kl_target": None}, {}, "ppo"),
    "ppo_as_trl": (PPO, {}, "ppo"),
    "ppo_as_verl": ({"dual_clip": None}, {}, "ppo"),
    "ppo_as_openrlhf": ({}, {}, "ppo"),
}


@pytest.mark.parametrize("algorithm", WITH_TWIN)
def test_these_algorithms_have_a_twin(algorithm):
    settings, options, expected = WITH_TWIN[algorithm]
    config = run_of(algorithm, settings, **options)
    check(config)
    kind = twin_of(config).kind
    assert expected == (loss_type(config) if kind == "grpo" else kind)


def test_a_setting_that_is_in_no_table_is_refused(monkeypatch):
    """So that a new one cannot be dropped in silence, whatever its value."""
    check(run_of("grpo", {**GRPO, "kl_coef": 0.1}))
    monkeypatch.delitem(trl_settings.GROUP, "kl_importance_weighted")
    with pytest.raises(SettingsError, match="GRPOTrainer has no kl_importance_weighted; train grpo without it"):
        check(run_of("grpo", {**GRPO, "kl_coef": 0.1}))


def test_the_presets_as_trl_are_trls_defaults(tmp_path):
    """Field by field against the installed version: what the twin of the preset is given is what TRL gives itself."""
    from trl import GRPOConfig
    from trl.experimental.ppo import PPOConfig

    preset = ALGORITHMS["grpo_as_trl"]
    given = grpo_arguments(run_of("grpo_as_trl", **preset.run), str(tmp_path), CPU)
    theirs = GRPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False)
    assert theirs.epsilon_high is None  # the same as epsilon
    assert given.pop("epsilon_high") == theirs.epsilon
    names = ["loss_type", "epsilon", "delta", "beta", "scale_rewards", "num_iterations", "importance_sampling_level"]
    names += ["multi_objective_aggregation", "mask_truncated_completions", "entropy_coef", "use_adaptive_entropy"]
    names += ["top_entropy_quantile", "off_policy_mask_threshold", "temperature", "top_p", "top_k", "min_p"]
    names += ["repetition_penalty", "num_generations", "sync_ref_model"]
    names += ["use_bias_correction_kl"] if theirs.beta else []  # else without effect
    assert {name: given[name] for name in names} == {name: getattr(theirs, name) for name in names}
    assert given["steps_per_generation"] == given["gradient_accumulation_steps"]  # one step per rollout batch, as TRL's
    assert theirs.steps_per_generation == theirs.gradient_accumulation_steps
    assert preset.defaults.std_epsilon == TRL_STD_EPSILON and theirs.learning_rate == 1e-6
    assert any("learning rate 1e-6" in note for note in preset.notes)

    preset = ALGORITHMS["ppo_as_trl"]
    given = ppo_arguments(run_of("ppo_as_trl", **preset.run), str(tmp_path), CPU)
    theirs = PPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False)
    names = ["kl_coef", "kl_estimator", "cliprange", "vf_coef", "cliprange_value", "gamma", "lam", "whiten_rewards"]
    names += ["num_ppo_epochs", "num_mini_batches", "missing_eos_penalty"]
    assert {name: given[name] for name in names} == {name: getattr(theirs, name) for name in names}
    assert preset.defaults.clip_low == preset.defaults.clip_high and theirs.learning_rate == 3e-6
    assert any("learning rate 3e-6" in note for note in preset.notes)


def test_standard_deviations_epsilon_is_in_trls_source():
    import inspect

    from trl import GRPOTrainer

    assert "advantages / (std_rewards + 1e-4)" in inspect.getsource(GRPOTrainer) and TRL_STD_EPSILON == 1e-4


@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_loss_and_gradient_of_the_reward_model(centering, tmp_path):
    """TRL's RewardTrainer on the same pairs; its classification head on the same backbone is our linear head."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = tiny_tokenizer()
    policy = tiny_model(tokenizer)
    policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=1, dtype=torch.float64, pad_token_id=tokenizer.pad_token_id
    )
    model = ScalarModel(policy.base_model, "linear", 0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.score.weight.copy_(model.score.weight)
        model.score.bias.zero_()  # TRL's head has none
    chosen = [[*PROMPTS[0], *range(20, 20 + n), tokenizer.eos_token_id] for n in (3, 6, 1)]
    rejected = [[*PROMPTS[0], *range(30, 30 + n), tokenizer.eos_token_id] for n in (5, 2, 4)]
    pairs = [{"chosen_ids": c, "rejected_ids": r} for c, r in zip(chosen, rejected, strict=True)]
    trainer = RewardTrainer(
        model=theirs,
        args=RewardConfig(
            output_dir=str(tmp_path / "out"),
            center_rewards_coefficient=centering or None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
    )
    inputs = trainer.data_collator(pairs)
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    assert shares_prompts(model.backbone)
    examples = [(ids[:2], ids[2:]) for ids in chosen + rejected]
    scores = score_examples(model, examples, tokenizer.pad_token_id, CPU, Layout(share_prompts=True))
    loss = bradley_terry_loss(*scores.chunk(2), centering=centering)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(bradley_terry_loss(*scores.chunk(2)).item() - loss.item()) > 1e-3 or not centering
    got = {name.replace("backbone.", "model."): gradient for name, gradient in gradients(model).items()}
    assert got.pop("score.bias").abs() >= 0
    close(got, gradients(theirs))


@pytest.mark.parametrize("kl", [{}, {"kl_coef": 0.1}, {"kl_coef": 0.1, "kl_estimator": "k3"}])
def test_four_ppo_steps_have_trls_losses_and_gradients(kl, tmp_path):
    """TRL's PPO trains 4 epochs on one rollout batch with plain gradient descent; ours replays its tokens.

    The ratios leave 1 from the second step on, and the rate is such that clips become active. TRL averages the value
    loss over the position behind the last token too: there, and only there, our mask is widened to compare.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    policy = tiny_model(tokenizer)
    generator = torch.Generator().manual_seed(0)
    critic = ScalarModel(tiny_model(tokenizer, 1).base_model, "linear", 0.3, generator)
    reference = tiny_model(tokenizer, 2)
    ours, our_critic = copy.deepcopy(policy), copy.deepcopy(critic)
    rate, steps = 0.5, 4
    settings = {"clip_low": 0.05, "clip_high": 0.05, "gae_lambda": 1.0, "value_clip": 0.05, "value_coef": 0.7, **kl}
    config = RunConfig(
        "ppo",
        SEED,  # with this one no response begins with the padding token
        settings,
        steps=1,
        prompts_per_step=2,
        group_size=24,
        minibatches=1,
        epochs=steps,
        max_response_tokens=24,
        optimizer=OptimizerConfig(max_grad_norm=None),
    )
    captured = {}

    class Reward(torch.nn.Module):
        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.score = torch.nn.Identity()
            self.backbone = self.Backbone()

        class Backbone(torch.nn.Module):
            def forward(self, input_ids, attention_mask, **_):
                from types import SimpleNamespace

                scores = (input_ids * attention_mask).sum(1).to(torch.float64).remainder(3)  # some rewards 0, 1, 2
                captured["rewards"] = scores
                return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1).clone()])

    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=rate)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append((gradients(policy), gradients(critic))))
    rows = [{"input_ids": p} for p in PROMPTS for _ in range(24)]
    trainer = PPOTrainer(
        args=PPOConfig(**ppo_arguments(config, str(tmp_path), CPU)),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=Reward(),
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )

    def generate(model, queries, *args):
        captured["queries"] = queries
        sequences, logits = original(model, queries, *args)
        # a random policy samples the padding token too, which TRL takes for the end: let the response end there
        responses = sequences[:, queries.shape[1] :]
        ended = (responses == tokenizer.pad_token_id).cumsum(1) > 0
        sequences[:, queries.shape[1] :] = torch.where(ended, tokenizer.pad_token_id, responses)
        captured["responses"] = sequences
        return sequences, logits

    original = ppo_trainer.batch_generation
    with (
        patch.object(ppo_trainer, "batch_generation", generate),
        patch.object(np.random, "permutation", lambda n: np.arange(n)),
    ):
        trainer.train()
    assert len(seen) == steps

    batch = as_our_batch(captured, tokenizer)
    run, entry = config.hparams, config.algorithm_entry
    with torch.no_grad():
        batch = replace(
            batch,
            old_logprobs=token_logprobs(ours, batch, 1.0)[0],
            ref_logprobs=token_logprobs(reference, batch, 1.0)[0],
            values=token_values(our_critic, batch),
        )
    batch = with_advantages(batch, entry, run)
    wide = widened(batch, tokenizer)
    returns = torch.nn.functional.pad(batch.returns, (0, wide.response_mask.shape[1] - batch.returns.shape[1]))
    behind = wide.response_mask & (torch.arange(wide.response_mask.shape[1]) == batch.response_mask.sum(1)[:, None])
    with torch.no_grad():  # no KL behind the last token: the return there is the reward
        returns = torch.where(behind, wide.rewards[:, None].to(returns.dtype), returns)
        wide = replace(wide, values=token_values(our_critic, wide), returns=returns)
    clipped = []
    for policy_gradient, critic_gradient in seen:
        ours.zero_grad()
        our_critic.zero_grad()
        logprobs, _ = token_logprobs(ours, batch, 1.0)
        loss, metrics = entry.loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.response_mask, run, Totals.of(batch.response_mask)
        )
        loss.backward()
        entry.value_loss(
            token_values(our_critic, wide),
            wide.values,
            wide.returns,
            wide.response_mask,
            run,
            Totals.of(wide.response_mask),
        )[0].backward()
        clipped.append(float(metrics["clip_fraction"]))
        # TRL divides its logits by temperature + 1e-7, which is where the tolerance comes from
        for got, expected in ((gradients(ours), policy_gradient), (gradients(our_critic), critic_gradient)):
            assert got.keys() == expected.keys()
            for name in got:
                torch.testing.assert_close(
                    got[name],
                    expected[name],
                    atol=1e-5,
                    rtol=1e-4,
                    check_dtype=False,
                    msg=lambda m, n=name: f"{n}: {m}",
                )
        with torch.no_grad():
            for parameter in [*ours.parameters(), *our_critic.parameters()]:
                parameter -= rate * parameter.grad
    assert clipped[0] == 0 and max(clipped) > 0


def as_our_batch(captured: dict, tokenizer):
    """TRL's left-padded queries and its responses as our batch."""
    queries, responses = captured["queries"], captured["responses"][:, captured["queries"].shape[1] :]
    mask = responses != tokenizer.pad_token_id
    assert mask[:, 0].all()
    assert (~mask).any() and mask.sum() > len(mask)  # some responses end early: padding is there
    prompts = [row[row != tokenizer.pad_token_id].tolist() for row in queries]
    rollouts = Rollouts(
        prompts,
        1,
        torch.where(mask, responses, tokenizer.pad_token_id),
        mask,
        torch.zeros(mask.shape),
        torch.zeros(len(mask), dtype=torch.bool),
    )
    return make_batch(rollouts, captured["rewards"], tokenizer.pad_token_id)


def widened(batch, tokenizer):
    """The batch with one more position behind each response that ended before the limit, as in TRL's value loss."""
    lengths = batch.response_mask.sum(1)
    mask = torch.arange(batch.response_mask.shape[1]) < (lengths + 1)[:, None]
    prompts = [batch.sequence_ids[i, : int(batch.prompt_lengths[i])].tolist() for i in range(len(batch))]
    rollouts = Rollouts(
        prompts, 1, batch.response_ids, mask, batch.sampler_logprobs, torch.zeros(len(batch), dtype=torch.bool)
    )
    return make_batch(rollouts, batch.rewards, tokenizer.pad_token_id)
