"""Diagnostics of a rollout batch, the same for every algorithm, to look at when a run goes wrong."""

import torch

from algos.pieces.advantages import from_critic
from algos.pieces.correction import gap_metrics
from algos.pieces.critic import explained_variance
from algos.pieces.types import Batch, Rollouts


@torch.no_grad()
def batch_metrics(batch: Batch, rollouts: Rollouts, entropies, correct, hparams) -> dict[str, float]:
    """Lengths, groups, advantages, entropy, sampler gap, KL, critic; entropies (B, T) in nats, correct (B,) 0 or 1."""
    mask, lengths = batch.response_mask, batch.response_mask.sum(dim=1).float()
    tokens = mask.sum()
    assert batch.advantages is not None and batch.old_logprobs is not None  # the update made them
    groups = batch.rewards.view(-1, batch.group_size)
    right = correct.view(-1, batch.group_size)
    spread = groups.max(dim=1).values - groups.min(dim=1).values
    advantages = batch.advantages.expand_as(batch.old_logprobs)[mask]
    is_right = correct.to(lengths.device) == 1
    metrics = {
        "response_tokens": lengths.mean(),
        "response_tokens_p95": lengths.quantile(0.95),
        "response_tokens_right": lengths[is_right].mean(),
        "response_tokens_wrong": lengths[~is_right].mean(),
        "truncation_rate": rollouts.truncated.float().mean(),
        "eos_rate": 1 - rollouts.truncated.float().mean(),
        "degenerate_groups": (spread < 1e-8).float().mean(),
        "groups_all_right": (right.min(dim=1).values == 1).float().mean(),
        "groups_all_wrong": (right.max(dim=1).values == 0).float().mean(),
        "advantage_mean": advantages.mean(),
        "advantage_std": advantages.std(),
        "advantage_low": advantages.min(),
        "advantage_high": advantages.max(),
        "advantage_zero_fraction": (advantages == 0).float().mean(),
        "kept_responses": batch.loss_mask.any(dim=1).float().mean(),
        "entropy": entropies[mask].mean(),
        **gap_metrics(batch.old_logprobs, batch.sampler_logprobs, mask),
    }
    if batch.ref_logprobs is not None:
        kl = torch.where(mask, batch.old_logprobs - batch.ref_logprobs, 0.0)
        metrics |= {
            "kl_to_ref_sequence": kl.sum(dim=1).mean(),
            "kl_to_ref_k1": kl.sum() / tokens,
            "kl_to_ref_k3": torch.where(mask, torch.expm1(-kl) + kl, 0.0).sum() / tokens,
        }
    if batch.full_kl is not None:
        metrics["kl_to_ref_full"] = batch.full_kl[mask].mean()
    if batch.values is not None:
        assert batch.returns is not None  # made together with the advantages
        metrics |= {
            "value_mean": batch.values[mask].mean(),
            "return_mean": batch.returns[mask].mean(),
            "td_error": from_critic(batch, hparams, 0.0)[mask].abs().mean(),
            "explained_variance": explained_variance(batch.values, batch.returns, mask),
        }
    return {name: float(value) for name, value in metrics.items()}


def combine(steps: list[dict]) -> dict[str, float]:
    """Metrics of a rollout batch: means over its optimizer steps, the extremes of _min and _max."""
    return {
        name: reduce(name, [float(step[name]) for step in steps], lambda values: sum(values) / len(values))
        for name in steps[0]
    }


def reduce(name: str, values: list, otherwise):
    """The smallest of a metric whose name ends in _min, the largest of one in _max, else otherwise(values)."""
    if name.endswith("_min"):
        return min(values)
    return max(values) if name.endswith("_max") else otherwise(values)
