"""Settings of preference sampling and of the reward model."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from algos.pieces.settings import DType, Share, settings
from algos.training.sampling.config import EngineName, VllmConfig, check_engine
from algos.training.stage.config import OptimizerConfig


@settings
class PreferenceConfig:
    """Several responses per prompt, ranked by the gold answer and by a rater who errs."""

    seed: int
    prompts: PositiveInt = 800  # train prompts that responses are sampled for
    responses: Annotated[int, Field(ge=2)] = 8  # per prompt: a preference needs a pair
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.25  # of the prompts, kept to measure the reward model
    flip_share: Share = 0.1  # probability that the rater prefers the wrong response of a pair
    max_response_tokens: PositiveInt = 48
    temperature: PositiveFloat = 1.0
    engine: EngineName = "transformers"
    vllm: VllmConfig = field(default_factory=VllmConfig)
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self):
        check_engine(self.engine, self.temperature)


@settings
class RewardModelConfig:
    """Bradley-Terry reward model on the backbone of a policy."""

    seed: int
    head: Literal["linear", "mlp"] = "linear"
    epochs: PositiveInt = 2
    prompts_per_batch: PositiveInt = 8  # all pairs of a prompt stay in one batch
    freeze_backbone: bool = False  # train the head alone; a run with a KL then loads and runs one backbone for both
    centering: NonNegativeFloat = 0.01  # weight of (score_chosen + score_rejected)^2, which fixes the free offset
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3.0e-4, schedule="linear", warmup_steps=10, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: DType = "float32"
