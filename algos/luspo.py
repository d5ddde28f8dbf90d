"""LUSPO: GSPO with every response's term multiplied by the response's length.

    J = 1 / B  sum_i  T_i min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i)

Source: Liu et al. 2026, arXiv:2602.05261, equation 7; clip range from section 5.1. A test holds loss and gradient to
those of TRL 1.12 (loss_type luspo). GSPO's ratio s_i is a mean over tokens, so that its gradient divides by T_i: the
tokens of long responses weigh less. The factor T_i takes that back. Here it is GSPO-token's ratio, which gives every
token the value s_i and the token's own gradient, summed over the tokens.
"""

from dataclasses import replace

from algos import gspo

ALGORITHM = replace(
    gspo.TOKEN,
    defaults=gspo.GSPOConfig(
        ratio="sequence_token", aggregation="seq-mean-token-sum", clip_low=2.0e-3, clip_high=2.5e-3
    ),
    idea="GSPO times the response's length, so that a token's weight does not fall with the length",
    source="arXiv:2602.05261, section 4.3; TRL 1.12, luspo",
    relative="gspo_token",
)
