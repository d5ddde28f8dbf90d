"""Dr. GRPO: GRPO without its two normalizations, by the group's standard deviation and by each response's length.

    J = 1 / B  sum_i  1 / L  sum_t min(rho_it A_i, clip(rho_it) A_i),   A_i = r_i - mean of the group

Source: Liu et al. 2025, arXiv:2503.20783, section 3.2. Dividing by a response's own length punishes the tokens of long
wrong responses too little. Dividing by the group's standard deviation gives too much weight to the easiest and the
hardest prompts. L is a constant, the length limit.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(scale="none", aggregation="seq-mean-token-sum-norm"),
    idea="GRPO without dividing by the group's standard deviation and by the response's length",
    source="arXiv:2503.20783, section 3.2",
    relative="grpo",
)
