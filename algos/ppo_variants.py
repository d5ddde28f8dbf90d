"""Variants of PPO: Monte Carlo advantages, a critic on the policy's backbone, and an adaptive KL penalty."""

from dataclasses import replace

from algos import ppo


def _variant(idea: str, source: str, **settings):
    return replace(ppo.ALGORITHM, defaults=ppo.PPOConfig(**settings), idea=idea, source=source, relative="ppo")


MONTE_CARLO = _variant(
    "PPO with lambda = 1: the response's reward minus the value, at every token",
    "arXiv:2503.24290 (Open-Reasoner-Zero), section 2",
    gae_lambda=1.0,
)
SHARED = _variant(
    "PPO with a linear value head on the policy's backbone",
    "arXiv:1707.06347, eq. 9",
    critic="shared",
    value_coef=0.1,
)
SHARED_MLP = _variant(
    "PPO with an MLP value head on the policy's backbone, which the value loss does not reach",
    "arXiv:2006.05990, section 3.2, for heads and sharing",
    critic="shared",
    critic_head="mlp",
    critic_detach=True,
)
ADAPTIVE_KL = _variant(
    "PPO whose KL penalty in the reward is steered to a target",
    "arXiv:1909.08593, section 2.2",
    kl_coef=0.05,
    kl_target=2.0,
)
