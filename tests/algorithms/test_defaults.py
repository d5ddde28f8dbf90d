"""The numbers that an algorithm starts from, each with where it comes from: a changed default is another algorithm."""

from dataclasses import MISSING, fields

import pytest

from algos import ALGORITHMS
from algos.pieces.estimator import Estimator

HUANG = "arXiv:2403.17031, the hyperparameters of PPO"
TRPO = "arXiv:1502.05477, section 8"
COMMON_PRACTICE = "TRPO implementations (Spinning Up, ikostrikov's)"
TRL_DPPO = "TRL 0423cdb, dppo_config.py: 0.15 for TV, 0.05 for KL, as recommended by arXiv:2602.04879"
OURS = "chosen here"
PUBLISHED = [  # algorithm, setting, value, source
    ("ppo", "clip_low", 0.2, "arXiv:1707.06347, section 6.1"),
    ("ppo", "clip_high", 0.2, "arXiv:1707.06347, section 6.1"),
    ("ppo", "gamma", 1.0, HUANG),
    ("ppo", "gae_lambda", 0.95, HUANG),
    ("ppo", "gae_lambda_critic", None, "arXiv:1506.02438: one lambda; two are VC-PPO's, arXiv:2503.01491"),
    ("ppo", "value_clip", 0.2, HUANG),
    ("ppo", "value_coef", 1.0, OURS + ": without effect on a separate critic under Adam"),
    ("ppo", "whiten_rewards", False, "TRL"),
    ("ppo", "critic_detach", False, OURS),
    ("ppo", "value_warmup", 0, OURS),
    ("ppo", "kl_coef", 0.0, OURS + ": the study's rewards are verifiable"),
    ("ppo_mc", "gae_lambda", 1.0, "arXiv:2503.24290, section 2"),
    ("ppo_shared", "value_coef", 0.1, HUANG),
    ("ppo_shared_mlp", "critic_detach", True, "arXiv:2006.05990, section 3.2"),
    ("ppo_penalty", "penalty_coef", 1.0, "arXiv:1707.06347, section 6.1: beta starts at 1"),
    ("ppo_penalty", "penalty_target", 0.001, OURS + ": the paper's targets are for continuous control"),
    ("trpo", "max_kl", 0.01, TRPO),
    ("trpo", "cg_iterations", 10, "arXiv:1502.05477, appendix C"),
    ("trpo", "cg_damping", 0.1, COMMON_PRACTICE),
    ("trpo", "line_search_steps", 10, COMMON_PRACTICE),
    ("trpo", "fisher_responses", 32, OURS),
    ("grpo", "clip_low", 0.2, "arXiv:1707.06347, section 6.1"),
    ("grpo", "clip_high", 0.2, "arXiv:1707.06347, section 6.1"),
    ("grpo", "kl_coef", 0.0, "arXiv:2503.14476, section 2.3; DeepSeekMath's is 0.04"),
    ("dapo", "clip_low", 0.2, "arXiv:2503.14476, section 4.1"),
    ("dapo", "clip_high", 0.28, "arXiv:2503.14476, section 4.1"),
    ("dapo", "dynamic_sampling", True, "arXiv:2503.14476, section 3.2"),
    ("top_entropy", "clip_low", 0.2, "arXiv:2506.01939v2, section 5: DAPO's"),
    ("top_entropy", "clip_high", 0.28, "arXiv:2506.01939v2, section 5: DAPO's"),
    ("top_entropy", "dynamic_sampling", True, "arXiv:2506.01939v2, section 5: DAPO's"),
    ("top_entropy", "entropy_share", 0.2, "arXiv:2506.01939v2, section 5"),
    ("grpo_off_policy_mask", "off_policy_threshold", 0.5, "TRL 1.12's documentation; arXiv:2512.02556 has no number"),
    ("grpo_geometric_mask", "correction_low", 0.99, "SkyRL, geo_mask_low"),
    ("grpo_geometric_mask", "correction_high", 1.01, "SkyRL, geo_mask_high"),
    ("decoupled_ppo", "kl_coef", 0.0, "AReaL 00d07c0, gsm8k_grpo.yaml"),
    ("decoupled_ppo", "correction_low", 0.0, "AReaL 00d07c0, gsm8k_grpo.yaml: a cap alone"),
    ("decoupled_ppo", "correction_high", 5.0, "AReaL 00d07c0, gsm8k_grpo.yaml"),
    ("gpg", "dynamic_sampling", True, "arXiv:2504.02546, section 3: alpha leaves groups of equal rewards out"),
    ("gpg", "max_rounds", 1, "arXiv:2504.02546, section 3: none are sampled in their place"),
    ("gspo", "clip_low", 3.0e-4, "arXiv:2507.18071, section 5.1"),
    ("gspo", "clip_high", 4.0e-4, "arXiv:2507.18071, section 5.1"),
    ("gspo_token", "clip_low", 3.0e-4, "arXiv:2507.18071, section 5.1"),
    ("gspo_token", "clip_high", 4.0e-4, "arXiv:2507.18071, section 5.1"),
    ("luspo", "clip_low", 2.0e-3, "arXiv:2602.05261, section 5.1"),
    ("luspo", "clip_high", 2.5e-3, "arXiv:2602.05261, section 5.1"),
    ("cispo", "is_max", 5.0, "ScaleRL, arXiv:2510.13786"),
    ("gmpo", "clip_log", 0.4, "arXiv:2507.20673: the range (e^-0.4, e^0.4)"),
    ("sapo", "tau_pos", 1.0, "arXiv:2511.20347"),
    ("sapo", "tau_neg", 1.05, "arXiv:2511.20347"),
    ("dppo", "limit_low", 0.15, TRL_DPPO),
    ("dppo", "limit_high", 0.15, TRL_DPPO),
    ("dppo", "drift_coef", 0.0, "arXiv:2602.04879v3 has none"),
    ("dppo_kl", "limit_low", 0.05, TRL_DPPO),
    ("dppo_kl", "limit_high", 0.05, TRL_DPPO),
    ("dppo_kl", "drift_coef", 0.0, "arXiv:2602.04879v3 has none"),
    ("dro", "drift_coef", 0.1, OURS + ": arXiv:2501.12599 does not publish its tau"),
    ("m2po", "second_moment", 0.04, "arXiv:2510.01161v2, section 5.2"),
    ("clip_cov", "clip_low", 0.2, "verl 018f23b, ppo_trainer.yaml; the paper's equation 13 has no such clip"),
    ("clip_cov", "clip_high", 0.2, "verl 018f23b, ppo_trainer.yaml; the paper's equation 13 has no such clip"),
    ("clip_cov", "cov_share", 2.0e-4, "arXiv:2505.22617v1, section 4.3"),
    ("clip_cov", "cov_low", 1.0, "arXiv:2505.22617v1, section 4.3"),
    ("clip_cov", "cov_high", 5.0, "arXiv:2505.22617v1, section 4.3"),
    ("kl_cov", "cov_share", 2.0e-3, "arXiv:2505.22617v1, section 4.3, for 7 B; 2e-4 for 32 B"),
    ("kl_cov", "cov_penalty", 1.0, "arXiv:2505.22617v1, section 4.3; verl's default is 0.1"),
    ("vespo", "power_pos", 2.0, "arXiv:2602.10693v3, section 4.1"),
    ("vespo", "decay_pos", 3.0, "arXiv:2602.10693v3, section 4.1"),
    ("vespo", "power_neg", 3.0, "arXiv:2602.10693v3, section 4.1"),
    ("vespo", "decay_neg", 2.0, "arXiv:2602.10693v3, section 4.1"),
    ("rloo", "kl_coef", 0.03, "arXiv:2402.14740, appendix C"),
    ("reinforce", "kl_coef", 0.0, "Williams 1992"),
    ("reinforce_pp", "kl_coef", 0.01, "OpenRLHF's default, the implementation of arXiv:2501.03262"),
    ("ppo_adaptive_kl", "kl_coef", 0.05, HUANG),
    ("ppo_adaptive_kl", "kl_target", 2.0, OURS),
]
SHARED = [  # of every algorithm that has the setting and no line for it above
    ("std_ddof", 1, "TRL, verl and oat"),
    ("std_epsilon", 1.0e-6, "verl"),
    ("kl_importance_weighted", False, OURS),
    ("kl_horizon", 10_000, "lm-human-preferences, the code of arXiv:1909.08593"),
    ("kl_target", None, OURS),
    ("entropy_coef", 0.0, OURS),
    ("target_kl", None, OURS),
    ("dynamic_sampling", False, OURS),
    ("max_rounds", 4, OURS),
    ("mask_truncated", False, OURS),
    ("correction_low", 0.5, "arXiv:2510.18855 (IcePop)"),
    ("correction_high", 2.0, "Yao et al. 2025"),
    ("dual_clip", None, "arXiv:1707.06347 has none"),
    ("off_policy_threshold", None, "DeepSeek-V3.2's, arXiv:2512.02556; GRPO has none"),
    ("ratio_cap", None, "arXiv:1707.06347 has none"),
]


@pytest.mark.parametrize("name, setting, value, source", PUBLISHED, ids=lambda x: x if isinstance(x, str) else str(x))
def test_defaults_are_those_of_the_source(name, setting, value, source):
    assert getattr(ALGORITHMS[name].defaults, setting) == value, source


@pytest.mark.parametrize("setting, value, source", SHARED, ids=lambda x: x if isinstance(x, str) else str(x))
def test_what_no_algorithm_sets_for_itself(setting, value, source):
    own = {name for name, other, _, _ in PUBLISHED if other == setting}
    for name, algorithm in ALGORITHMS.items():
        if hasattr(algorithm.defaults, setting) and not algorithm.preset_of and name not in own:
            assert getattr(algorithm.defaults, setting) == value, (name, source)


def test_every_number_and_switch_has_a_line():
    """A new setting of an algorithm is added to the table, with its source."""
    written = {setting for _, setting, _, _ in PUBLISHED} | {setting for setting, _, _ in SHARED}
    for name, algorithm in ALGORITHMS.items():
        for f in fields(algorithm.defaults):
            number = f.default is not MISSING and isinstance(f.default, int | float)
            assert not number or f.name in written, f"{name}: {f.name}"
    assert {f.name for f in fields(Estimator) if isinstance(f.default, int | float)} <= written


def test_only_the_penalty_pays_for_a_forward_pass_after_the_update():
    assert {name for name, a in ALGORITHMS.items() if a.measures_kl_after_update} == {"ppo_penalty"}
