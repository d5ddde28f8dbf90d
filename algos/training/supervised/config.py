"""Settings of supervised training, rejection sampling, expert iteration and distillation."""

from dataclasses import field
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from algos.pieces.settings import DType, Share, settings
from algos.training.sampling.config import EngineName, VllmConfig, check_engine
from algos.training.stage.config import OptimizerConfig, Trainer


@settings
class SupervisedConfig:
    """Next-token training on worked solutions: cold start, rejection-sampling fine-tuning, distillation."""

    seed: int
    trainer: Trainer = "own"
    steps: PositiveInt = 600
    batch_size: PositiveInt = 64  # examples per optimizer step
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=3.0e-3, schedule="cosine", warmup_steps=30, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: DType = "float32"
    log_every: PositiveInt = 10  # optimizer steps between lines of metrics.jsonl


@settings
class RejectionConfig:
    """Sampling from a trained policy and keeping what is correct."""

    seed: int
    prompts: PositiveInt = 4000  # train prompts
    responses: PositiveInt = 4  # sampled per prompt
    max_per_prompt: PositiveInt = 2  # different correct responses kept per prompt
    budget_tokens: PositiveInt | None = None  # the batch of prompts that reaches so many is the last; null: all prompts
    max_response_tokens: PositiveInt = 48
    temperature: PositiveFloat = 1.0
    engine: EngineName = "transformers"
    vllm: VllmConfig = field(default_factory=VllmConfig)
    device: str = "auto"
    dtype: DType = "float32"

    def __post_init__(self):
        check_engine(self.engine, self.temperature)


@settings
class ExpertIterationConfig:
    """Rounds of sampling from the current policy, keeping what is correct, and fine-tuning on it."""

    sampling: RejectionConfig  # of every round; the same prompts in each
    training: SupervisedConfig  # of every round
    rounds: PositiveInt = 3
    restart: bool = True  # every round trains the starting model; false: what the previous round left
    hint: str | None = None  # put behind the question where every response was wrong, with {answer}; null: no retry

    def __post_init__(self):
        if self.hint is not None and self.hint.count("{answer}") != 1:
            raise ValueError(f"hint must contain {{answer}} once, or be null, got {self.hint!r}")
        if self.training.trainer != "own":
            raise ValueError(
                f"training.trainer must be own: TRL has no expert iteration, got {self.training.trainer!r}"
            )
        if self.sampling.budget_tokens is not None:
            raise ValueError(
                f"sampling.budget_tokens must be null: every round has the same prompts, got "
                f"{self.sampling.budget_tokens}"
            )
        for name in ("device", "dtype"):
            if getattr(self.sampling, name) != getattr(self.training, name):
                raise ValueError(
                    f"sampling.{name} and training.{name} must be the same, as one model is sampled and trained, got "
                    f"{getattr(self.sampling, name)!r} and {getattr(self.training, name)!r}"
                )


@settings
class DistillationConfig:
    """On-policy distillation: the student is trained toward the teacher, on its own text or also on given text."""

    seed: int
    trainer: Trainer = "own"
    # policy_gradient: with log P - log Q of each sampled token as its advantage
    objective: Literal["divergence", "policy_gradient"] = "divergence"
    beta: Share = 0.5  # of the divergence: 0 forward KL, 1 reverse KL, else the generalized JSD
    on_policy_share: Share = 1.0  # GKD's lambda: probability that a step trains on the student's own text
    steps: PositiveInt = 100  # optimizer steps
    budget_tokens: PositiveInt | None = (
        None  # the step that reaches so many generated tokens is the last; null: no limit
    )
    prompts_per_step: PositiveInt = 16
    responses: PositiveInt = 4  # per prompt; a step on given text takes prompts_per_step x responses examples
    micro_batch_size: PositiveInt = 32  # responses per forward and backward pass; memory only, not the estimator
    max_response_tokens: PositiveInt = 48
    temperature: PositiveFloat = 1.0  # of sampling and of both distributions
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=5.0e-4, schedule="cosine", warmup_steps=10, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: DType = "float32"
    log_every: PositiveInt = 1  # optimizer steps between lines of metrics.jsonl
    sample_every: PositiveInt = 10  # optimizer steps between kept sample responses

    def __post_init__(self):
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
