"""Decoupled PPO: the clip is around the trainer's policy, the importance weight is against the sampler's.

    J = 1 / sum_i T_i  sum_it w_it min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i)
    rho_it = pi(y_it) / pi_old(y_it),   w_it = pi_old(y_it) / mu(y_it), 0 above the cap,   mu: the sampler

Source: Fu et al. 2025 (AReaL), arXiv:2505.24298, section 5.2, after Hilton et al. 2021, arXiv:2110.00641; cap as in
AReaL's recipe (gsm8k_grpo.yaml at 00d07c0, behav_imp_weight_cap); compared with areal/utils/functional at 2274616. When
samples are stale, a clip around the policy that sampled them holds the update back to that old policy. The trainer's
policy at the start of the update, pi_old here, takes its place; the weight corrects for the sampler. AReaL trains
without a critic, with discount and lambda 1, and normalizes advantages over the batch, as reinforce_pp does.

With a sampler that is exact and not stale, w is 1, and this is REINFORCE++ without a KL.
"""

from dataclasses import replace

from algos import reinforce_pp

ALGORITHM = replace(
    reinforce_pp.ALGORITHM,
    defaults=reinforce_pp.ReinforcePPConfig(
        kl_coef=0.0, correction="token_mask", correction_low=0.0, correction_high=5.0
    ),
    idea="the clip around the trainer's own old policy, times the importance weight of that policy over the sampler",
    source="arXiv:2505.24298, section 5.2; AReaL 2274616",
    relative="reinforce_pp",
)
