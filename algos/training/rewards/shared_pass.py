"""One pass over the rollouts for two: the scores of a reward model and the reference's log-probabilities.

A reward model whose backbone was frozen while it was trained (RewardModelConfig.freeze_backbone) is a head on the
policy that runs start from and compare with. Its own backbone is then dropped.
"""

import torch
from torch import Tensor

from algos.pieces.types import Batch
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.head import token_statistics
from algos.training.models.logprobs import scatter
from algos.training.models.packing import forward, plain


def drop_equal_backbone(reward_model: ScalarModel, policy) -> bool:
    """Whether the reward model's backbone equals the policy's, tensor by tensor; if so, drop the reward model's.

    The policy must be as it was loaded, since the reference is the policy as loaded.
    """
    ours, theirs = reward_model.backbone.state_dict(), policy.base_model.state_dict()
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if equal:
        reward_model.backbone = None
    return equal


@torch.no_grad()
def scores_and_logprobs(
    reward_model: ScalarModel, reference, batch: Batch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Scores (B,) at the last token, not normalized, and log-probabilities (B, T) of the response tokens, in nats."""
    packed = batch.packed or plain(batch)
    states = forward(reference.base_model, packed)  # (R, L, H)
    head = reference.get_output_embeddings()
    logprobs, _ = token_statistics(
        head, states.flatten(0, 1)[packed.source], batch.response_ids[batch.response_mask], temperature, False
    )
    return reward_model.scores(states, packed), scatter(logprobs, batch.response_mask)
