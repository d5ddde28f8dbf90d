"""GSPO: the clipped objective with one importance ratio per response.

    J = 1 / B  sum_i  min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i)
    s_i = exp(1 / T_i  sum_t  log pi(y_it) - log pi_old(y_it)),   A_i as in GRPO

Source: Zheng et al. 2025, arXiv:2507.18071, section 4.1; clip range from section 5.1. Differs from grpo.py in one
place: the ratio is the geometric mean over a response's tokens, so clipping keeps or drops whole responses.

The paper's clip range belongs to its models and learning rates: a length-normalized ratio stays near 1, and how near
depends on how far an optimizer step moves the policy. Watch clip_fraction before trusting a comparison. Several
frameworks ship GSPO with GRPO's 0.2, with which it practically never clips.

GSPO-token (section 4.3) gives every token the response's ratio as value and its own gradient. With one advantage per
response it is the same; it permits an advantage per token.
"""

from dataclasses import replace

from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import Clipped, clipped_objective, describe_clipped
from algos.pieces.settings import settings


@settings
class GSPOConfig(Clipped):
    baseline = "group_mean"
    scale = "group_std"
    ratio = "sequence"
    aggregation = "seq-mean-token-mean"
    clip_low = 3.0e-4  # far below PPO's 0.2: averaging over tokens keeps the ratio near 1
    clip_high = 4.0e-4


ALGORITHM = Algorithm(
    GSPOConfig(),
    clipped_objective,
    describe_clipped,
    "GRPO with one length-normalized ratio per response, clipped as a whole",
    "arXiv:2507.18071, section 4.1",
    relative="grpo",
)
TOKEN = replace(
    ALGORITHM,
    defaults=GSPOConfig(ratio="sequence_token"),
    idea="GSPO's ratio as value, each token's own gradient: permits an advantage per token",
    source="arXiv:2507.18071, section 4.3",
    relative="gspo",
)
