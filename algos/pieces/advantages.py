"""Baselines, scales and credit: from rewards to advantages. Advantages carry no gradient.

An advantage is built in three steps, each with a choice: subtract a baseline from the response's reward, divide by a
scale, and spread the result over the response's tokens. Each function names its sources.
"""

from typing import Literal

import torch
from torch import Tensor

from algos.pieces.kl import SAMPLED, kl_k1
from algos.pieces.masked import masked_sum, masked_whiten
from algos.pieces.types import Batch

Baseline = Literal[
    "none", "batch_mean", "group_mean", "leave_one_out", "best_of_others", "length_weighted", "greedy", "critic"
]
Scale = Literal["none", "group_std", "leave_one_out_std", "group_mean", "batch_std", "whiten", "whiten_minibatch"]
GROUP_BASELINES = ("group_mean", "leave_one_out", "best_of_others", "length_weighted")
GROUP_SCALES = ("group_std", "leave_one_out_std", "group_mean")


def center(rewards: Tensor, baseline: str, lengths: Tensor | None = None, greedy: Tensor | None = None) -> Tensor:
    """rewards (P, G) minus their baseline: -> (P, G).

    none             nothing (Williams 1992)
    batch_mean       mean over all P x G rewards
    group_mean       mean of the group, own response included: bias factor (G - 1) / G (arXiv:2503.20783)
    leave_one_out    mean of the group's other responses: G / (G - 1) times group_mean's result (arXiv:2402.14740)
    best_of_others   the largest of the group's other rewards, for the best response; 0 is left of all others: what each
                     response adds to the best reward of its group (pass@k, arXiv:2503.19595)
    length_weighted  sum of T r / sum of T over the group, lengths (P, G) (OPO, arXiv:2505.23585)
    greedy           reward of the greedy response, (P,) (ReMax, arXiv:2310.10505)
    """
    if baseline in GROUP_BASELINES and rewards.shape[1] < 2:
        raise ValueError(f"baseline {baseline} needs groups of at least 2 responses, got {tuple(rewards.shape)}")
    if baseline == "none":
        return rewards.clone()
    if baseline == "greedy":
        if greedy is None:
            raise ValueError("baseline greedy needs the rewards of the greedy responses, got None")
        return rewards - greedy[:, None]
    if baseline == "batch_mean":
        return _exact_zero(rewards - rewards.mean(), rewards, whole_batch=True)
    if baseline == "length_weighted":
        if lengths is None:
            raise ValueError("baseline length_weighted needs the lengths of the responses, got None")
        weights = lengths / lengths.sum(dim=1, keepdim=True).clamp(min=1)
        return _exact_zero(rewards - (weights * rewards).sum(dim=1, keepdim=True), rewards)
    if baseline == "best_of_others":
        best, second = rewards.topk(2, dim=1).values.split(1, dim=1)
        return torch.where(rewards == best, best - second, torch.zeros_like(rewards))
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":
        group = rewards.shape[1]
        centered = centered * group / (group - 1)
    return _exact_zero(centered, rewards)


def _exact_zero(centered: Tensor, rewards: Tensor, whole_batch: bool = False) -> Tensor:
    """Exactly 0 where all rewards of the group are equal: the mean of equal floats may be off by an ulp."""
    if whole_batch:
        equal = rewards.max() == rewards.min()
    else:
        equal = rewards.max(dim=1, keepdim=True).values == rewards.min(dim=1, keepdim=True).values
    return torch.where(equal, torch.zeros_like(centered), centered)


def rescale(centered: Tensor, rewards: Tensor, scale: str, ddof: int = 1, epsilon: float = 1.0e-6) -> Tensor:
    """centered (P, G) divided by a standard deviation or a mean of rewards (P, G): -> (P, G).

    group_std          of the group (GRPO, arXiv:2402.03300)
    leave_one_out_std  of the group's other responses (NeMo RL)
    group_mean         the group's mean reward; 0 for a group whose mean is not above 0 (MaxRL, arXiv:2602.02710)
    batch_std          of all P x G rewards (Lite PPO, arXiv:2508.08221)
    """
    if scale in GROUP_SCALES and rewards.shape[1] < 2:
        raise ValueError(f"scale {scale} needs groups of at least 2 responses, got {tuple(rewards.shape)}")
    if scale == "group_std":
        return _divided(centered, rewards.std(dim=1, correction=ddof, keepdim=True) + epsilon)
    if scale == "leave_one_out_std":
        std = leave_one_out_std(rewards, ddof)
        return torch.where(
            std > 0, centered / (std + epsilon), centered
        )  # with a single different reward, the others of its group have no spread
    if scale == "group_mean":
        mean = rewards.mean(dim=1, keepdim=True)
        return torch.where(mean > 0, centered / (mean + epsilon), torch.zeros_like(centered))
    if scale == "batch_std":
        return _divided(centered, rewards.std(correction=ddof) + epsilon)
    return centered


def _divided(centered: Tensor, divisor: Tensor) -> Tensor:
    """0 stays 0, whatever the divisor is: equal rewards have standard deviation 0, and epsilon may be 0."""
    return torch.where(centered == 0, centered, centered / divisor)


def leave_one_out_std(rewards: Tensor, ddof: int = 1) -> Tensor:
    """For each response the standard deviation of the group's other rewards, (P, G); 0 if not more than ddof others."""
    group = rewards.shape[1]
    own = torch.eye(group, dtype=torch.bool, device=rewards.device)
    others = rewards[:, None, :].expand(-1, group, -1)[:, ~own].view(-1, group, group - 1)  # (P, G, G - 1)
    if group - 1 <= ddof:
        return torch.zeros_like(rewards)
    return others.std(dim=-1, correction=ddof)  # along a dimension: exactly 0 where all are equal


def group_advantages(rewards: Tensor, std_epsilon: float = 1.0e-6, std_ddof: int = 1) -> Tensor:
    """(reward - mean) / (std + std_epsilon) within each group; (P, G) -> (P, G). GRPO, arXiv:2402.03300, eq. 3-4.

    A group of equal rewards gets exactly 0. Raises ValueError for groups of one: they have no spread.
    """
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (P, G) with groups of at least 2 responses, got {tuple(rewards.shape)}")
    return rescale(center(rewards, "group_mean"), rewards, "group_std", std_ddof, std_epsilon)


def process_advantages(step_rewards: Tensor, std_epsilon: float = 1.0e-6, std_ddof: int = 1) -> Tensor:
    """Process supervision: step rewards (G, S) of one group, normalized jointly, summed from each step to the last.

    For tasks with step rewards; the suite has no such task yet. Source: DeepSeekMath, arXiv:2402.03300, section 4.1.3.
    """
    normalized = (step_rewards - step_rewards.mean()) / (step_rewards.std(correction=std_ddof) + std_epsilon)
    return reward_to_go(normalized, torch.ones_like(normalized, dtype=torch.bool))


def kl_penalties(batch: Batch, hparams) -> Tensor:
    """KL to the reference per token (B, T), for use in the reward: computed once, at rollout time."""
    mask, full_kl = batch.response_mask, batch.full_kl
    if hparams.kl_estimator == "full":
        if full_kl is None:
            raise ValueError("kl_estimator full in the reward needs the full-vocabulary KL of the batch, got None")
        return torch.where(mask, full_kl, torch.zeros_like(full_kl))
    if batch.ref_logprobs is None:
        raise ValueError(f"kl_coef {hparams.kl_coef} needs the reference's log-probabilities, got None")
    assert batch.old_logprobs is not None  # the trainer knows them before it asks for advantages
    return SAMPLED[hparams.kl_estimator](batch.old_logprobs, batch.ref_logprobs, mask)


def place_on_last(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards (B,) on the last valid token of each response, 0 elsewhere: -> (B, T)."""
    placed = torch.zeros(mask.shape, dtype=rewards.dtype, device=rewards.device)
    rows = mask.any(dim=1).nonzero().squeeze(1)  # an empty response has nowhere to put a reward
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).amax(dim=1)[rows]
    placed[rows, last] = rewards[rows]
    return placed


def token_rewards(
    rewards: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor | None, response_mask: Tensor, kl_coef: float = 0.0
) -> Tensor:
    """Per-token rewards (B, T): the k1 penalty on every valid token, the response's reward (B,) on its last one."""
    placed = place_on_last(rewards.to(old_logprobs.dtype), response_mask)
    if not kl_coef:
        return placed
    if ref_logprobs is None:
        raise ValueError(f"kl_coef {kl_coef} needs the reference's log-probabilities, got None")
    return placed - kl_coef * kl_k1(old_logprobs, ref_logprobs, response_mask)


def reward_to_go(token_rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """sum_{k >= t} gamma^(k - t) r_k over valid tokens: (B, T) -> (B, T), 0 on padding."""
    return gae(token_rewards, torch.zeros_like(token_rewards), mask, gamma, 1.0)


def gae(token_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimates, (B, T) like all inputs: values[:, t] is the value of the state before token t.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t+1 is the next *valid* token and
    both V and A are 0 after the last one. Masked positions are skipped, whatever they hold, and get 0.
    Source: arXiv:1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        valid = response_mask[:, t]
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(valid, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, next_advantage, advantages[:, t])
    return advantages


def without_critic(batch: Batch, hparams) -> Tensor:
    """Advantages of a rollout batch from rewards alone: -> (B, 1), or (B, T) with credit `token` or whitening.

    With kl_in `reward` and credit `response`, the KL penalty is subtracted from the response's reward before the
    baseline. With credit `token`, it is added to the advantages token by token, as reward-to-go. Whitening comes last,
    over the tokens of the batch that count in the loss.
    """
    mask, rewards = batch.response_mask, batch.rewards
    penalized = hparams.kl_coef > 0 and hparams.kl_in == "reward"
    if penalized:
        penalties = hparams.kl_coef * kl_penalties(batch, hparams)
        if hparams.credit == "response":
            rewards = rewards - masked_sum(penalties, mask, dim=1).to(rewards.dtype)
    groups = rewards.view(-1, batch.group_size)
    lengths = mask.sum(dim=1).view(-1, batch.group_size).to(rewards.dtype)
    centered = center(groups, hparams.baseline, lengths, batch.greedy_rewards)
    advantages = rescale(centered, groups, hparams.scale, hparams.std_ddof, hparams.std_epsilon).view(-1, 1)
    if hparams.credit == "token":
        advantages = torch.where(mask, advantages, torch.zeros_like(advantages))
        if penalized:
            advantages = advantages - reward_to_go(penalties.to(advantages.dtype), mask)
    if hparams.scale == "whiten":
        advantages = masked_whiten(advantages.expand(mask.shape), batch.loss_mask, ddof=hparams.std_ddof)
    return advantages


def per_minibatch(advantages: Tensor, mask: Tensor, hparams) -> Tensor:
    """Advantages of one minibatch: whitened over its valid tokens if scale is whiten_minibatch, else unchanged."""
    if hparams.scale != "whiten_minibatch":
        return advantages
    return masked_whiten(advantages.expand(mask.shape), mask, ddof=hparams.std_ddof)


def from_critic(batch: Batch, hparams, lam: float) -> Tensor:
    """GAE of a rollout batch with the critic's values at rollout time, not whitened: -> (B, T)."""
    if batch.values is None:
        raise ValueError("baseline critic (GAE) needs the critic's values, got None")
    rewards = place_on_last(batch.rewards.to(batch.values.dtype), batch.response_mask)
    if hparams.kl_coef > 0 and hparams.kl_in == "reward":
        rewards = rewards - hparams.kl_coef * kl_penalties(batch, hparams)
    if hparams.whiten_rewards:
        rewards = masked_whiten(rewards, batch.response_mask, shift_mean=False)
    return gae(rewards, batch.values, batch.response_mask, hparams.gamma, lam)
