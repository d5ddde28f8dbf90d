"""The engines that sample: prompts and a policy -> rollouts with their log-probabilities.

TransformersEngine samples with the trainer's own model, or with the older copy of it that a run with sync_every keeps
(behavior.py). vllm_engine.py samples with a copy of the model, which has to be synchronized after the updates. Two
canaries tell when the copy is not what it should be: the fingerprint of the engine's weights, compared with the
policy's before every batch, and the ratio of trainer to sampler probabilities, 1 on fresh weights.
"""

from typing import Protocol

import torch
from torch import Tensor

from algos.pieces.kl import log_ratio
from algos.pieces.settings import DType, SettingsError
from algos.pieces.types import Rollouts
from algos.training.models.checkpoints import check_response_fits
from algos.training.sampling.config import EngineName, VllmConfig
from algos.training.sampling.engine import Engine, Sampling, StaleWeights
from algos.training.sampling.routing import Routing
from algos.training.sampling.sampler import sample

ROWS_AT_ONCE = 512
RATIO_FACTOR = 5.0  # the canary's limit over the first batch's figure: entropy, and with it rounding, changes in a run
RATIO_FLOOR = 1.0e-4  # and at least this: float32 gives about 1e-6, one update of the default study about 1e-2
RATIO_CEILING = 0.05  # no honest engine begins above this
RATIO_CEILING_BFLOAT16 = 0.08  # SmolLM2-135M has 0.043; sampled at 0.95 of the temperature, 0.090


class Sampled(Protocol):
    """The settings of a stage that samples."""

    @property
    def engine(self) -> EngineName: ...
    @property
    def vllm(self) -> VllmConfig: ...
    @property
    def max_response_tokens(self) -> int: ...


class TransformersEngine(Engine):
    """Samples with the trainer's model itself: there is nothing to synchronize."""

    exact = True

    def __init__(self, tokenizer, rows_at_once: int = ROWS_AT_ONCE):
        self.tokenizer, self.rows_at_once = tokenizer, rows_at_once
        self.routing: Routing | None = None  # of a mixture of experts, for whoever wants to know

    def sample(self, policy, prompts: list[list[int]], sampling: Sampling, generator: torch.Generator) -> Rollouts:
        return sample(
            policy,
            self.tokenizer,
            prompts,
            sampling.group_size,
            sampling.max_response_tokens,
            sampling.temperature,
            generator,
            self.rows_at_once,
            self.routing,
        )

    def synchronize(self, policy) -> None:
        pass

    def close(self) -> None:
        pass


def make_engine(config: Sampled, tokenizer, policy, policy_path: str, prompts: list[list[int]]) -> Engine:
    """The engine of a stage. policy holds the weights of policy_path; prompts are all that the stage can draw from.

    Raises SettingsError for a model, a prompt length or a server that the engine cannot work with.
    """
    longest = max(len(prompt) for prompt in prompts) + config.max_response_tokens
    check_response_fits(policy, longest - config.max_response_tokens, config.max_response_tokens)
    if config.engine == "transformers":
        return TransformersEngine(tokenizer, getattr(config, "rows_at_once", ROWS_AT_ONCE))
    from algos.training.sampling import vllm_engine

    engine = vllm_engine.make(config.vllm, tokenizer, policy, policy_path, longest)
    try:
        engine.synchronize(policy)
    except StaleWeights as error:
        engine.close()
        raise SettingsError(f"engine: vllm does not hold this model as it is ({error}); use transformers.") from None
    return engine


class RatioCanary:
    """Fails a run whose sampler is not the policy that the trainer updates.

    The figure of a batch is the mean over its tokens of |exp(trainer minus sampler log-probability) - 1|, taken before
    its first update. The first batch is sampled from the checkpoint's own weights, so its figure is the noise of the
    engine: the limit of all later figures is RATIO_FACTOR times that, at least RATIO_FLOOR. Where the noise exceeds the
    step that one update makes (bfloat16 at small learning rates), it takes several updates on stale weights to see
    them here; the fingerprint sees the first.
    """

    def __init__(self, dtype: DType = "float32"):
        self.ceiling = RATIO_CEILING_BFLOAT16 if dtype == "bfloat16" else RATIO_CEILING
        self.limit: float | None = None  # not yet calibrated

    def saved(self) -> dict:
        return {"limit": self.limit}

    def restore(self, saved: dict) -> None:
        self.limit = saved["limit"]

    def check(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
        """The figure and its limit, as metrics; three (B, T). Raises StaleWeights above the limit."""
        ratio = log_ratio(old_logprobs, sampler_logprobs, mask).exp()
        figure = float((ratio[mask] - 1).abs().mean())
        first = self.limit is None
        limit = self.ceiling if self.limit is None else self.limit
        if not figure <= limit:  # NaN is above every limit
            raise StaleWeights(
                f"the sampler's probabilities are off from the trainer's by a factor of {figure:.2g} in the mean, "
                f"above {limit:.2g}: "
                + (
                    "the engine samples from another distribution than the policy's"
                    if first
                    else "the engine was not synchronized after an update"
                )
            )
        if first:
            limit = self.limit = max(RATIO_FACTOR * figure, RATIO_FLOOR)
        return {"canary_ratio": figure, "canary_limit": limit}
