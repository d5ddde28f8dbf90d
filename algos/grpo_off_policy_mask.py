"""GRPO with DeepSeek-V3.2's off-policy mask: wrong responses that the policy has left behind do not count.

    J as in GRPO, over i with A_i >= 0 or mean_t (log pi_old(y_it) - log pi(y_it)) <= threshold

Source: DeepSeek-AI 2025, arXiv:2512.02556, section 3.1, equation 9. A test holds loss and gradient to those of TRL 1.12
(off_policy_mask_threshold). Pushing down what the policy hardly samples any more teaches little and may do harm, right
responses do not. The mask is a setting of every clipped algorithm. A masked response still counts in the divisor.

The paper does not publish its threshold; 0.5 is the value that TRL's documentation names. Measured against the sampler,
the mask sees stale weights and another engine, too: old_logprobs decides.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(off_policy_threshold=0.5),
    idea="GRPO without wrong responses that the policy has moved away from",
    source="arXiv:2512.02556, section 3.1; TRL 1.12, off_policy_mask_threshold",
    relative="grpo",
)
