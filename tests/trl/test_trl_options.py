"""Which of TRL's trainers a run gets, with which options, and what is refused by name."""

import pytest
import torch

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError
from algos.training.config import LoraSettings, RunConfig
from algos.training.trl import trainers
from algos.training.trl.check import check
from algos.training.trl.options import grpo_arguments, ppo_arguments
from algos.training.trl.trainers import TRL_STD_EPSILON, loss_type, trainer_of

CPU = torch.device("cpu")


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
        ("dapo", GRPO, {}, "got true; set settings.dynamic_sampling to false"),
        ("grpo", {**GRPO, "keep": "correct"}, {}, "keep to all"),
        ("grpo", {**GRPO, "correction": "token_mask"}, {}, "correction to none"),
        ("grpo_as_verl", GRPO, {}, "no dual clip, got 3"),
        ("grpo", {**GRPO, "mask_truncated": True}, {}, "set settings.aggregation to token-mean, or mask_truncated"),
        ("grpo", {**GRPO, "entropy_coef": 0.1}, {}, "set settings.aggregation to token-mean, or entropy_coef to 0"),
        ("top_entropy", {**GRPO, "dynamic_sampling": False, "entropy_coef": 0.1}, {}, "over the selected tokens"),
        ("sapo", {**GRPO, "aggregation": "token-mean"}, {}, "got token-mean; set .*aggregation to seq-mean-token-mean"),
        ("cispo", {**GRPO, "aggregation": "seq-mean-token-mean"}, {}, "set settings.aggregation to token-mean"),
        ("cispo", GRPO, {}, "got minibatches 4; set minibatches to 1"),
        ("vespo", {}, {}, "TRL's vespo divides .* got minibatches 4; set minibatches to 1"),
        ("dr_grpo", {"aggregation_length": 7}, {}, "length limit, got 7; set settings.aggregation_length to null"),
        ("clip_cov", GRPO, {}, "there is no TRL baseline of 'clip_cov'"),
        ("gmpo", GRPO, {}, "there is no TRL baseline of 'gmpo'"),
        ("raft", {}, {"minibatches": 1}, "there is no TRL baseline of 'raft'"),
        ("trpo", {}, {"minibatches": 1}, "there is no TRL baseline of 'trpo'"),
        ("ppo_penalty", PPO, {}, "there is no TRL baseline of 'ppo_penalty'"),
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
        ("grpo", GRPO, {"lora": LoraSettings()}, "lora is not handed to TRL; set it to null for the run that the TRL"),
        ("grpo", GRPO, {"compile": True}, "compile is not handed to TRL; set it to false"),
        ("grpo", GRPO, {"offload": ("critic",)}, r"offload is not handed to TRL; set it to \[\]"),
        ("grpo", GRPO, {"budget_tokens": 1000}, "counts steps, not tokens, got budget_tokens 1000; use steps alone"),
    ],
)
def test_what_trl_cannot_do_is_refused_by_name(algorithm, settings, options, message):
    with pytest.raises(SettingsError, match=message):
        check(run_of(algorithm, settings, **options))


ONE_STEP = {"epochs": 1, "minibatches": 1}
WITH_BASELINE = {  # every algorithm that has a TRL baseline, with the settings it needs
    "reinforce_group": ({}, ONE_STEP, "luspo"),
    "gpg": ({"dynamic_sampling": False}, ONE_STEP, "dapo"),
    "rloo": ({}, ONE_STEP, "rloo"),
    "grpo": (GRPO, {}, "grpo"),
    "grpo_off_policy_mask": (GRPO, {}, "grpo"),
    "dr_grpo": ({}, {}, "dr_grpo"),
    "dapo": ({**GRPO, "dynamic_sampling": False}, {}, "bnpo"),
    "top_entropy": ({**GRPO, "dynamic_sampling": False}, {}, "bnpo"),
    "lite_ppo": (GRPO, {}, "bnpo"),
    "gspo": (GRPO, {}, "grpo"),
    "gspo_token": (GRPO, {}, "grpo"),
    "luspo": (GRPO, {}, "luspo"),
    "cispo": (GRPO, ONE_STEP, "cispo"),
    "vespo": ({}, ONE_STEP, "vespo"),
    "sapo": (GRPO, {}, "sapo"),
    "grpo_as_trl": ({}, ONE_STEP, "dapo"),
    "grpo_as_verl": ({**GRPO, "dual_clip": None}, {}, "bnpo"),
    "grpo_as_openrlhf": ({**GRPO, "credit": "response", "kl_in": "loss", "kl_estimator": "k3"}, {}, "bnpo"),
    "grpo_as_open_instruct": ({"correction": "none"}, {}, "bnpo"),
    "grpo_as_nemo": ({**GRPO, "baseline": "group_mean", "scale": "group_std", "std_ddof": 1}, {}, "bnpo"),
    "grpo_as_skyrl": (GRPO, {}, "bnpo"),
    "grpo_as_slime": (GRPO, {}, "grpo"),
    "grpo_as_areal": ({**GRPO, "correction": "none"}, {}, "bnpo"),
    "grpo_as_torchtitan": ({}, {}, "bnpo"),
    "scalerl": ({**GRPO, "dynamic_sampling": False}, ONE_STEP, "cispo"),
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


@pytest.mark.parametrize("algorithm", WITH_BASELINE)
def test_these_algorithms_have_a_trl_baseline(algorithm):
    settings, options, expected = WITH_BASELINE[algorithm]
    config = run_of(algorithm, settings, **options)
    check(config)
    kind = trainer_of(config).kind
    assert expected == (loss_type(config) if kind == "grpo" else kind)


def test_a_setting_that_is_in_no_table_is_refused(monkeypatch):
    """So that a new setting cannot be dropped in silence, whatever its value."""
    check(run_of("grpo", {**GRPO, "kl_coef": 0.1}))
    monkeypatch.delitem(trainers.GROUP, "kl_importance_weighted")
    with pytest.raises(SettingsError, match="GRPOTrainer has no kl_importance_weighted; train grpo without it"):
        check(run_of("grpo", {**GRPO, "kl_coef": 0.1}))


def test_the_presets_as_trl_are_trls_defaults(tmp_path):
    """Field by field against the installed version: the TRL baseline of the preset gets the defaults of TRL."""
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
