"""What a run's settings need: which parts work in which phase, and where the old log-probabilities come from.

Offloading (offload.py), the update and the memory predictor (evaluation/memory) ask these functions.
"""

from typing import get_args

from algos.pieces.estimator import Estimator
from algos.training.config import Offload, RunConfig

PHASES = ("generate", "reward", "logprobs", "update", "synchronize", "dev")
PARTS: tuple[str, ...] = get_args(Offload)  # optimizer, critic, reference, reward_model, behavior


def needed_parts(config: RunConfig, head_on_reference: bool = False) -> dict[str, set[str]]:
    """The parts among PARTS that each of PHASES works with; the policy's weights are always there.

    head_on_reference: the reward model is a head on the reference's backbone. One pass in the reward phase then gives
    scores and reference log-probabilities.
    """
    hparams = config.hparams
    full_in_reward, full_in_loss = full_kl_in(hparams, "reward"), full_kl_in(hparams, "loss")
    behavior = {"behavior"} if config.sync_every > 1 else set()
    return {
        "generate": behavior,
        "reward": {"reward_model"} | ({"reference"} if head_on_reference else set()),
        "logprobs": {"critic"} | behavior | ({"reference"} if full_in_reward or not head_on_reference else set()),
        "update": {"optimizer", "critic"} | ({"reference"} if full_in_loss else set()),
        "synchronize": behavior,
        "dev": set(),
    }


def full_kl_in(hparams: Estimator, place: str) -> bool:
    """Whether the KL over the whole vocabulary is part of the `place`: "reward" or "loss"."""
    return hparams.needs_full_kl and hparams.kl_in == place


def sampler_gives_old_logprobs(config: RunConfig) -> bool:
    """Whether old log-probabilities and entropies are the sampler's, so that the policy is not run again for them.

    This holds where the trainer's own model samples in float32: sampler and trainer then differ by rounding alone. A
    full KL in the reward runs the policy anyway. Elsewhere the trainer computes them again, from the weights that
    old_logprobs names.
    """
    exact = config.engine == "transformers" and config.dtype == "float32"
    return exact and config.old_logprobs == "sampler" and not full_kl_in(config.hparams, "reward")


def ratio_denominator(config: RunConfig) -> dict[str, str]:
    """Whose log-probabilities the ratios and their clipped shares are against, for the record; nothing without one."""
    if config.hparams.ratio == "none":
        return {}
    sampled = config.trainer == "own" and sampler_gives_old_logprobs(config)
    whose = ""
    if config.sync_every > 1:
        old = f"up to {config.sync_every - 1} rollout batches old"
        whose = f", whose weights are {old}" if sampled else ", from the weights before the update"
        if not sampled and config.old_logprobs == "sampler":
            whose = f", from the sampler's weights, {old}"
    return {"ratio_denominator": ("reported by the sampler" if sampled else "recomputed by the trainer") + whose}
