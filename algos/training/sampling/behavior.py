"""The behavior policy: the weights that sample, where they may be older than the policy's (sync_every above 1).

With sync_every k the sampler takes over the policy's weights before steps 0, k, 2k and so on. Step s samples from the
weights that the policy had before step s - (s mod k): they are s mod k rollout batches old, which is the staleness of
the step. Everything stays in one process and in one order, so that such a run can be repeated bit by bit. It stands for
asynchronous training, where the age of the samples depends on the machines.
"""

import copy

import torch
from torch import Tensor, nn

from algos.training.sampling.engine import StaleWeights
from algos.training.sampling.fingerprint import differing, fingerprint


def frozen_copy(policy: nn.Module) -> nn.Module:
    """The policy as it is now, without gradients. What the policy does not train, such as the weights below adapters,
    is shared with it and not copied."""
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, shared).requires_grad_(False)


def own_tensors(behavior: nn.Module | None, policy: nn.Module) -> list[Tensor]:
    """The parameters and buffers of the behavior policy that are not the policy's; none of None."""
    if behavior is None:
        return []
    shared = {id(p) for p in policy.parameters()}
    return [t for t in (*behavior.parameters(), *behavior.buffers()) if id(t) not in shared]


@torch.no_grad()
def take_over(behavior: nn.Module, policy: nn.Module) -> None:
    """Copy what the policy trains."""
    for held, now in zip(behavior.parameters(), policy.parameters(), strict=True):
        if held is not now:
            held.copy_(now)


def check_held(behavior: nn.Module, policy: nn.Module, held: dict[str, int] | None) -> dict[str, int]:
    """The fingerprint of the behavior policy, which must be `held`, or the policy's if that is None.

    Raises StaleWeights, with the layers that differ.
    """
    ours = fingerprint(behavior.named_parameters())
    wanted = fingerprint(policy.named_parameters()) if held is None else held
    if differences := differing(wanted, ours):
        whose = "the policy's" if held is None else "those of the last synchronization"
        raise StaleWeights(f"the sampler's weights are not {whose}: {', '.join(differences)}")
    return ours
