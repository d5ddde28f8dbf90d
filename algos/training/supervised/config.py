"""Settings of supervised training, rejection sampling, expert iteration and distillation."""

from dataclasses import dataclass, field

from algos.pieces.settings import DTYPES, one_of, positive, share
from algos.training.stage.config import TRAINERS, OptimizerConfig

OBJECTIVES = ("divergence", "policy_gradient")


@dataclass(frozen=True)
class SupervisedConfig:
    """Next-token training on worked solutions: cold start, rejection-sampling fine-tuning, distillation."""

    seed: int
    trainer: str = "own"  # own: this project's loop; trl: the same settings handed to TRL's SFTTrainer
    steps: int = 600
    batch_size: int = 64  # examples per optimizer step
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3.0e-3, schedule="cosine", warmup_steps=30, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: str = "float32"
    log_every: int = 10  # optimizer steps between lines of metrics.jsonl

    def __post_init__(self):
        positive(self, "steps", "batch_size", "log_every")
        one_of(self.trainer, TRAINERS, "trainer")
        one_of(self.dtype, DTYPES, "dtype")


@dataclass(frozen=True)
class RejectionConfig:
    """Sampling from a trained policy and keeping what is correct."""

    seed: int
    prompts: int = 4000  # train prompts
    responses: int = 4  # sampled per prompt
    max_per_prompt: int = 2  # different correct responses kept per prompt
    max_response_tokens: int = 48
    temperature: float = 1.0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "prompts", "responses", "max_per_prompt", "max_response_tokens", "temperature")
        one_of(self.dtype, DTYPES, "dtype")


@dataclass(frozen=True)
class ExpertIterationConfig:
    """Rounds of sampling from the current policy, keeping what is correct, and fine-tuning on it."""

    sampling: RejectionConfig  # of every round; the same prompts in each
    training: SupervisedConfig  # of every round
    rounds: int = 3
    restart: bool = True  # every round trains the starting model; false: what the previous round left
    hint: str | None = None  # put behind the question where every response was wrong, with {answer}; null: no retry

    def __post_init__(self):
        positive(self, "rounds")
        if self.hint is not None and self.hint.count("{answer}") != 1:
            raise ValueError(f"hint must contain {{answer}} once, or be null, got {self.hint!r}")
        if self.training.trainer != "own":
            raise ValueError(
                f"training.trainer must be own: TRL has no expert iteration, got {self.training.trainer!r}"
            )
        for name in ("device", "dtype"):
            if getattr(self.sampling, name) != getattr(self.training, name):
                raise ValueError(
                    f"sampling.{name} and training.{name} must be the same, as one model is sampled and trained, got "
                    f"{getattr(self.sampling, name)!r} and {getattr(self.training, name)!r}"
                )


@dataclass(frozen=True)
class DistillationConfig:
    """On-policy distillation: the student is trained toward the teacher, on its own text or also on given text."""

    seed: int
    trainer: str = "own"  # own: this project's loop; trl: the same settings handed to TRL's GKDTrainer
    objective: str = "divergence"  # or policy_gradient, with log P - log Q of each sampled token as its advantage
    beta: float = 0.5  # of the divergence: 0 forward KL, 1 reverse KL, else the generalized JSD
    on_policy_share: float = 1.0  # GKD's lambda: probability that a step trains on the student's own text
    steps: int = 100  # optimizer steps
    budget_tokens: int | None = None  # end after the step that reaches so many generated tokens; null: steps alone
    prompts_per_step: int = 16
    responses: int = 4  # per prompt; a step on given text takes prompts_per_step x responses examples
    micro_batch_size: int = 32  # responses per forward and backward pass; memory only, not the estimator
    max_response_tokens: int = 48
    temperature: float = 1.0  # of sampling and of both distributions
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=5.0e-4, schedule="cosine", warmup_steps=10, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: str = "float32"
    log_every: int = 1  # optimizer steps between lines of metrics.jsonl
    sample_every: int = 10  # optimizer steps between kept sample responses

    def __post_init__(self):
        positive(
            self,
            "steps",
            "budget_tokens",
            "prompts_per_step",
            "responses",
            "micro_batch_size",
            "max_response_tokens",
            "temperature",
            "log_every",
            "sample_every",
        )
        share(self, "beta", "on_policy_share")
        one_of(self.trainer, TRAINERS, "trainer")
        one_of(self.objective, OBJECTIVES, "objective")
        one_of(self.dtype, DTYPES, "dtype")
        if self.objective == "policy_gradient" and self.on_policy_share != 1:
            raise ValueError(
                "on_policy_share must be 1 for the policy gradient, which is unbiased on the student's own text only, "
                f"got {self.on_policy_share}"
            )
        if self.budget_tokens is not None and self.optimizer.schedule != "constant":
            raise ValueError(
                f"budget_tokens leaves the number of optimizer steps open, so optimizer.schedule must be constant, "
                f"got {self.optimizer.schedule}"
            )
        if self.budget_tokens is not None and self.on_policy_share == 0:
            raise ValueError("budget_tokens counts generated tokens, so on_policy_share must be above 0, got 0")

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.responses
