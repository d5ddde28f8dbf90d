"""Settings of preference sampling and of the reward model."""

from dataclasses import dataclass, field

from algos.pieces.settings import DTYPES, one_of, positive, share
from algos.training.stage.config import OptimizerConfig

HEADS = ("linear", "mlp")


@dataclass(frozen=True)
class PreferenceConfig:
    """Several responses per prompt, ranked by the gold answer and by a rater who errs."""

    seed: int
    prompts: int = 800  # train prompts that responses are sampled for
    responses: int = 8  # per prompt
    held_out_share: float = 0.25  # share of the prompts whose pairs are kept for measuring the reward model
    flip_share: float = 0.1  # probability that the rater prefers the wrong response of a pair
    max_response_tokens: int = 48
    temperature: float = 1.0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "prompts", "max_response_tokens", "temperature")
        one_of(self.dtype, DTYPES, "dtype")
        share(self, "held_out_share", "flip_share")
        if self.responses < 2:
            raise ValueError(f"responses must be at least 2, got {self.responses}: a preference needs a pair")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share must leave pairs on both sides, got {self.held_out_share}")


@dataclass(frozen=True)
class RewardModelConfig:
    """Bradley-Terry reward model on the cold-start backbone."""

    seed: int
    head: str = "linear"  # linear or mlp
    epochs: int = 2
    prompts_per_batch: int = 8  # all pairs of a prompt stay in one batch
    freeze_backbone: bool = (
        False  # train the head alone; a run with a KL then loads one backbone for both, and runs it once
    )
    centering: float = 0.01  # weight of (score_chosen + score_rejected)^2, which fixes the free offset
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3.0e-4, schedule="linear", warmup_steps=10, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "epochs", "prompts_per_batch")
        one_of(self.dtype, DTYPES, "dtype")
        one_of(self.head, HEADS, "head")
        if self.centering < 0:
            raise ValueError(f"centering must be at least 0, got {self.centering}")
