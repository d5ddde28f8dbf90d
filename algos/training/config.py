"""Settings of one training stage. Each default stands here and nowhere else; the study file overrides it."""

from dataclasses import asdict, dataclass, field

from algos import ALGORITHMS, Algorithm
from algos.training.rewards import REWARDS
from evaluation.settings import SettingsError, from_dict, one_of, positive, share

SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("float32",)  # plain bfloat16 weights lose updates at the rates used here
TRAINERS = ("own", "trl")
HEADS = ("linear", "mlp")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW, for every stage."""

    learning_rate: float = 1.0e-4
    schedule: str = "constant"  # after the warm-up: constant, linear or cosine decay to 0
    warmup_steps: int = 0  # optimiser steps of linear increase from 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1.0e-5  # deep learning's usual 1e-8 makes the first steps aggressive
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0  # gradient-norm clipping, for policy and critic apart; null: off

    def __post_init__(self):
        positive(self, "learning_rate", "adam_epsilon", "max_grad_norm")
        one_of(self.schedule, SCHEDULES, "schedule")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class RunConfig:
    """One reinforcement-learning run. All runs of a study share these, but for what is compared."""

    algorithm: str
    seed: int
    settings: dict = field(default_factory=dict)  # the algorithm's own hyperparameters
    trainer: str = "own"  # own: this project's loop; trl: the same settings handed to TRL's trainer
    steps: int = 30  # rollout batches
    prompts_per_step: int = 32  # P
    group_size: int = 8  # G, responses per prompt
    minibatches: int = 4  # optimiser steps per rollout batch and epoch
    epochs: int = 1  # passes over a rollout batch
    micro_batch_size: int = 32  # responses per forward and backward pass; memory only, not the estimator
    max_prompt_tokens: int = 512  # a longer prompt is refused
    max_response_tokens: int = 48  # T; a response without end-of-sequence by then is truncated
    temperature: float = 1.0  # of sampling and of all log-probabilities
    rewards: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})  # name -> weight, added up
    reward_clip: float | None = None  # learned reward only: its normalised score is clipped to +- this
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    critic_learning_rate: float | None = None  # null: the policy's
    critic_head: str = "linear"  # on the critic's backbone, which starts from the policy
    device: str = "auto"  # auto: CUDA where there is one
    dtype: str = "float32"  # of weights, activations and optimiser state
    sample_every: int = 10  # steps between kept sample completions

    def __post_init__(self):
        one_of(self.algorithm, ALGORITHMS, "algorithm")
        one_of(self.trainer, TRAINERS, "trainer")
        one_of(self.dtype, DTYPES, "dtype")
        one_of(self.critic_head, HEADS, "critic_head")
        positive(
            self,
            "steps",
            "prompts_per_step",
            "group_size",
            "minibatches",
            "epochs",
            "micro_batch_size",
            "max_prompt_tokens",
            "max_response_tokens",
            "temperature",
            "reward_clip",
            "critic_learning_rate",
            "sample_every",
        )
        smallest = ALGORITHMS[self.algorithm].min_group
        if self.group_size < smallest:
            raise ValueError(
                f"group_size must be at least {smallest} for {self.algorithm}, got {self.group_size}: "
                "a response is compared with the others to the same prompt"
            )
        if self.responses_per_step % self.minibatches:
            raise ValueError(
                f"prompts_per_step x group_size = {self.responses_per_step} must be a multiple of "
                f"minibatches, got {self.minibatches}"
            )
        if not self.rewards:
            raise ValueError("rewards must name at least one reward")
        for name in self.rewards:
            one_of(name, REWARDS, "rewards")
        self.algorithm_config  # noqa: B018  checks the algorithm's own settings

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def algorithm_entry(self) -> Algorithm:
        return ALGORITHMS[self.algorithm]

    @property
    def algorithm_config(self):
        return from_dict(self.algorithm_entry.config, self.settings, "settings")

    @property
    def needs_reference(self) -> bool:
        return getattr(self.algorithm_config, "kl_coef", 0.0) > 0

    @property
    def needs_reward_model(self) -> bool:
        return "reward_model" in self.rewards

    def resolved(self) -> dict:
        """All settings, the algorithm's defaults filled in, for the record."""
        return {**asdict(self), "settings": asdict(self.algorithm_config)}


@dataclass(frozen=True)
class ModelConfig:
    """A language model: a path or hub id, or the shape of a new Qwen2-style transformer."""

    path: str | None = None  # folder with a causal LM and its tokenizer, or a hub id; null: build one
    revision: str | None = None  # of a hub id: a commit, so that the same model is loaded next year
    vocab_size: int = 320  # of the BPE tokenizer trained on the task's text
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 352
    max_positions: int = 512
    initializer_range: float | None = (
        None  # std of the initial weights; null: 1 / sqrt(hidden_size). transformers' 0.02
    )
    # suits widths above 1,000: at 128 it halves what the cold start learns in the same time

    def __post_init__(self):
        positive(
            self,
            "vocab_size",
            "hidden_size",
            "layers",
            "heads",
            "intermediate_size",
            "max_positions",
            "initializer_range",
        )
        if self.path is None and self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x heads (rotary embeddings need an even size per "
                f"head), got {self.hidden_size} for {self.heads} heads"
            )


@dataclass(frozen=True)
class SupervisedConfig:
    """Next-token training on worked solutions: cold start, rejection-sampling fine-tuning, distillation."""

    seed: int
    steps: int = 600
    batch_size: int = 64  # examples per optimiser step
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=3.0e-3, schedule="cosine", warmup_steps=30, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: str = "float32"
    log_every: int = 10  # optimiser steps between lines of metrics.jsonl

    def __post_init__(self):
        positive(self, "steps", "batch_size", "log_every")
        one_of(self.dtype, DTYPES, "dtype")


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
        share(self, "held_out_share", "flip_share")
        if self.responses < 2:
            raise ValueError(f"responses must be at least 2, got {self.responses}: a preference needs a pair")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share must leave pairs on both sides, got {self.held_out_share}")


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


@dataclass(frozen=True)
class RewardModelConfig:
    """Bradley-Terry reward model on the cold-start backbone."""

    seed: int
    head: str = "linear"  # linear or mlp
    epochs: int = 2
    prompts_per_batch: int = 8  # all pairs of a prompt stay in one batch
    centring: float = 0.01  # weight of (score_chosen + score_rejected)^2, which fixes the free offset
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=3.0e-4, schedule="linear", warmup_steps=10, adam_epsilon=1.0e-8
        )
    )
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "epochs", "prompts_per_batch")
        one_of(self.head, HEADS, "head")
        if self.centring < 0:
            raise ValueError(f"centring must be at least 0, got {self.centring}")


def parse(cls, values: dict, where: str):
    """from_dict, and any message of __post_init__ prefixed with its place in the study file."""
    try:
        return from_dict(cls, values, where)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None
