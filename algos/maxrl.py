"""MaxRL: the group's mean reward as baseline and as scale, so that prompts that are seldom solved weigh more.

    J = 1 / sum_i T_i  sum_it min(rho_it A_i, clip(rho_it) A_i),   A_i = (r_i - mean of the group) / (mean of the group)

Source: Tajwar et al. 2026, arXiv:2602.02710, algorithm 1; compared with the authors' code, tajwarfahim/maxrl 7db6bb9
(p_normalization), which adds 1e-6 to the divisor, too. For rewards 0 and 1 and a prompt that is solved with probability
p, the mean reward's gradient is that of p, the likelihood's is that of log p, larger by the factor 1 / p. Groups of G
responses give the factor 1 + (1 - p) + ... + (1 - p)^(G - 2), which tends to 1 / p as G grows. A group without a right
response teaches nothing.

The published runs take the token mean; the clip range here is GRPO's.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(scale="group_mean", aggregation="token-mean"),
    idea="group mean as baseline and as scale: the likelihood of being right, not its probability",
    source="arXiv:2602.02710, algorithm 1; tajwarfahim/maxrl 7db6bb9",
    relative="lite_ppo",
)
