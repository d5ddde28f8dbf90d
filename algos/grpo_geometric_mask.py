"""GRPO without responses that the sampler and the trainer disagree on, measured by the geometric mean of token ratios.

    J as in GRPO, over i with low <= exp(mean_t (log pi_old(y_it) - log mu(y_it))) <= high,   mu: the sampler

Source: Liu, Li et al. 2025, "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference
Mismatch"; range from SkyRL's defaults (geo_mask_low, geo_mask_high), whose guide names it as the correction to try
first. The product of a long response's ratios leaves any range; the geometric mean has one scale for all lengths. A
rejected response still counts in the divisor. Weights are 1 or 0: what is kept is not corrected further.

With an exact sampler, hence a geometric mean of 1, nothing is rejected.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(correction="geometric_mask", correction_low=0.99, correction_high=1.01),
    idea="GRPO without responses whose geometric mean of trainer over sampler leaves a narrow range",
    source='Liu, Li et al. 2025, "When Speed Kills Stability"; range of SkyRL\'s off_policy_correction, docs of 2026',
    relative="grpo",
)
