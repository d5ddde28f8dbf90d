"""Lite PPO: the group's mean as baseline, the batch's standard deviation as scale, and a token-level loss.

    J = 1 / sum_i T_i  sum_it min(rho_it A_i, clip(rho_it) A_i),   A_i = (r_i - mean of the group) / (std of the batch)

Source: Liu et al. 2025, arXiv:2508.08221. The standard deviation of the batch, unlike the standard deviation of a
group, is not close to 0 where nearly all responses to a prompt are right, or nearly all are wrong.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(scale="batch_std", aggregation="token-mean"),
    idea="group mean, batch standard deviation, token-level loss; no critic",
    source="arXiv:2508.08221",
    relative="grpo",
)
