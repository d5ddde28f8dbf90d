"""Settings of one training stage. Each default stands here and nowhere else; the study file overrides it."""

import importlib.util
from dataclasses import asdict, dataclass, field

from algos import ALGORITHMS
from algos.describe import with_length
from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.settings import DTYPES, SettingsError, from_dict, one_of, positive, share
from algos.training.rewards.rules import RULES, RewardSettings

OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")
SCHEDULES = ("constant", "linear", "cosine")
TRAINERS = ("own", "trl")
ENGINES = ("transformers", "vllm")
VLLM_MODES = ("colocated", "server")
VLLM_TEMPERATURES = (0.01, 2.0)  # vLLM refuses or silently changes what is outside
HEADS = ("linear", "mlp")
REWARDS = {*RULES, "reward_model"}
COMBINATIONS = ("sum", "gate", "normalize_each")
MINIBATCH_UNITS = ("responses", "prompts")
OLD_LOGPROBS = ("sampler", "recomputed")
LOGITS_AT_ONCE = 2**26  # 256 MiB in float32
OFFLOAD = ("optimizer", "critic", "reference", "reward_model")
OBJECTIVES = ("divergence", "policy_gradient")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, schedule and gradient clipping, for every stage."""

    name: str = "adamw"  # adamw, adamw_8bit (moments in 8 bits) or adafactor (factored second moment, no first)
    learning_rate: float = 1.0e-4
    schedule: str = "constant"  # after the warm-up: constant, linear or cosine decay to 0
    warmup_steps: int = 0  # optimizer steps of linear increase from 0
    adam_beta1: float = 0.9  # the three adam_ settings have no effect on adafactor
    adam_beta2: float = 0.999
    adam_epsilon: float = 1.0e-5  # deep learning's usual 1e-8 makes the first steps aggressive
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0  # gradient-norm clipping, for policy and critic apart; null: off

    def __post_init__(self):
        positive(self, "learning_rate", "adam_epsilon", "max_grad_norm")
        one_of(self.name, OPTIMIZERS, "name")
        if self.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise SettingsError("name: adamw_8bit needs bitsandbytes; pip install 'bitsandbytes>=0.50'.")
        one_of(self.schedule, SCHEDULES, "schedule")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv:2106.09685): W + alpha / rank * B A, of which A and B are trained."""

    rank: int = 16
    alpha: float = 32.0  # alpha / rank scales the change
    targets: tuple[str, ...] = ()  # linear layers, such as q_proj; empty: all below the output head

    def __post_init__(self):
        positive(self, "rank", "alpha")
        if importlib.util.find_spec("peft") is None:
            raise SettingsError("lora needs peft; pip install 'peft>=0.19'.")


@dataclass(frozen=True)
class VllmConfig:
    """Where vLLM runs; without effect on any other engine."""

    mode: str = (
        "colocated"  # in the trainer's process; server: the process that `algos.training.sampling.vllm_engine` starts
    )
    gpu_memory_utilization: float = 0.3  # colocated on CUDA: share of the GPU for vLLM's weights and key-value cache
    sleep: bool = True  # colocated on CUDA: both leave the GPU while the trainer computes
    server_url: str | None = None  # server: such as http://127.0.0.1:8000
    weights_folder: str | None = None  # server: where the policy is handed over, seen by both; null: a temporary folder

    def __post_init__(self):
        one_of(self.mode, VLLM_MODES, "mode")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}")
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError(
                f"server_url belongs to mode server and to it alone, got {self.mode} and {self.server_url}"
            )
        if self.mode != "server" and self.weights_folder is not None:
            raise ValueError(f"weights_folder belongs to mode server, got {self.weights_folder!r}; remove it")
        if self.server_url is not None and not self.server_url.startswith(("http://", "https://")):
            raise ValueError(f"server_url must begin with http:// or https://, got {self.server_url!r}")


@dataclass(frozen=True)
class RunConfig:
    """One reinforcement-learning run. All runs of a study share these, but for what is compared."""

    algorithm: str
    seed: int
    settings: dict = field(default_factory=dict)  # the algorithm's own hyperparameters
    trainer: str = "own"  # own: this project's loop; trl: the same settings handed to TRL's trainer
    steps: int = 30  # rollout batches
    budget_tokens: int | None = None  # end after the rollout batch that reaches this many generated tokens; null: steps
    prompts_per_step: int = 32  # P
    group_size: int = 8  # G, responses per prompt
    minibatches: int = 4  # optimizer steps per rollout batch and epoch
    minibatch_of: str = "responses"  # what is shuffled into minibatches: responses, or prompts with all of theirs (the
    # same expected gradient, other noise), each of which is then computed once instead of once a minibatch
    epochs: int = 1  # passes over a rollout batch
    micro_batch_size: int = 32  # responses per forward and backward pass; memory only, not the estimator
    micro_batch_tokens: int | None = None  # tokens of one instead, padding included; null: micro_batch_size responses
    share_prompts: bool = True  # a prompt is computed once for its responses in a micro-batch; no effect but speed
    logits_at_once: int | None = LOGITS_AT_ONCE  # elements of tokens x vocabulary in one piece; null: all
    old_logprobs: str = "sampler"  # the sampler's where they are the trainer's but for rounding; recomputed: always
    max_prompt_tokens: int = 512  # a longer prompt is refused
    max_response_tokens: int = 48  # T; a response without end-of-sequence by then is truncated
    temperature: float = 1.0  # of sampling and of all log-probabilities
    engine: str = "transformers"  # what samples: transformers, with the trainer's own model, or vllm, with a copy of it
    vllm: VllmConfig = field(default_factory=VllmConfig)
    rewards: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})  # name -> weight
    reward_combination: str = "sum"  # sum, gate or normalize_each: see rewards.combine
    reward_settings: RewardSettings = field(default_factory=RewardSettings)
    reward_scale_running: bool = False  # learned reward only: divided by the standard deviation of its scores so far
    reward_clip: float | None = None  # learned reward only: its normalized score is clipped to +- this
    missing_end_penalty: float = 0.0  # subtracted from a truncated response's reward (arXiv:2403.17031)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic_learning_rate: float | None = None  # null: the policy's
    device: str = "auto"  # auto: CUDA where there is one
    dtype: str = "float32"  # of weights and activations; bfloat16: with float32 masters, gradients and moments
    # What makes a run smaller or faster. Figures: the default study's model and micro-batches, on one CPU core.
    gradient_checkpointing: bool = (
        False  # policy, critic keep a layer's input alone: 1/13 of the bytes, 1.25 x the time
    )
    compile: bool = False  # torch.compile of all passes but sampling: 10 % off each, after minutes of compiling
    lora: LoraSettings | None = None  # train adapters alone, without a second model as reference; null: all weights
    offload: tuple[str, ...] = ()  # to the CPU while not needed: optimizer, critic, reference, reward_model; CUDA only
    sample_every: int = 10  # steps between kept sample completions

    def __post_init__(self):
        one_of(self.algorithm, ALGORITHMS, "algorithm")
        one_of(self.trainer, TRAINERS, "trainer")
        one_of(self.dtype, DTYPES, "dtype")
        one_of(self.old_logprobs, OLD_LOGPROBS, "old_logprobs")
        one_of(self.minibatch_of, MINIBATCH_UNITS, "minibatch_of")
        for name in self.offload:
            one_of(name, OFFLOAD, "offload")
        self._check_engine()
        for key in self.settings:
            self._refuse_setting_of_others(key)
        positive(
            self,
            "steps",
            "budget_tokens",
            "prompts_per_step",
            "group_size",
            "minibatches",
            "epochs",
            "micro_batch_size",
            "micro_batch_tokens",
            "logits_at_once",
            "max_prompt_tokens",
            "max_response_tokens",
            "temperature",
            "reward_clip",
            "critic_learning_rate",
            "sample_every",
        )
        smallest = self.hparams.min_group
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
        if self.minibatch_of == "prompts" and self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"minibatch_of prompts needs prompts_per_step = {self.prompts_per_step} to be a multiple of "
                f"minibatches, got {self.minibatches}"
            )
        if not self.rewards:
            raise ValueError("rewards must name at least one reward")
        for name in self.rewards:
            one_of(name, REWARDS, "rewards")
        if self.budget_tokens is not None and self.optimizer.schedule != "constant":
            raise ValueError(
                f"budget_tokens leaves the number of optimizer steps open, so optimizer.schedule must be constant, "
                f"got {self.optimizer.schedule}"
            )
        if self.algorithm_entry.update is not None and self.updates_per_step != 1:
            raise ValueError(
                f"{self.algorithm} makes one step per rollout batch: epochs and minibatches must be 1, got "
                f"{self.epochs} and {self.minibatches}"
            )
        self._check_rewards()
        self._check_trust_region()

    def _check_trust_region(self) -> None:
        """Its products with the Fisher matrix are second derivatives, solved for by conjugate gradients."""
        if self.algorithm_entry.update is None:
            return
        for name, wanted in (("dtype", "float32"), ("gradient_checkpointing", False), ("compile", False)):
            value = getattr(self, name)
            if value is True or value == "bfloat16":
                shown = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(
                    f"{self.algorithm} needs second derivatives, of full precision: {name} must be "
                    f"{str(wanted).lower() if wanted is False else wanted}, got {shown}"
                )

    def _check_engine(self) -> None:
        one_of(self.engine, ENGINES, "engine")
        if self.engine != "vllm":
            return
        if self.trainer == "trl":
            raise SettingsError(
                "engine: vllm belongs to trainer: own; TRL's trainer would sample, weigh and synchronize in its own "
                "way. Write engine: transformers, as a twin does by itself."
            )
        if importlib.util.find_spec("vllm") is None:
            raise SettingsError("engine: vllm needs vLLM; pip install -e '.[vllm]', or write engine: transformers.")
        low, high = VLLM_TEMPERATURES
        if not low <= self.temperature <= high:
            raise SettingsError(f"engine: vllm samples at temperatures in {low}..{high} only, got {self.temperature}.")

    def _refuse_setting_of_others(self, key: str) -> None:
        """A setting that only other algorithms have: name them, instead of a similar-looking one."""
        owners = [name for name, entry in ALGORITHMS.items() if hasattr(entry.defaults, key)]
        if owners and self.algorithm not in owners:
            because = ", which has no critic" if hasattr(WithCritic, key) else ""
            raise SettingsError(
                f"settings: {key} is no setting of {self.algorithm}{because}; {', '.join(owners)} have it."
            )

    def _check_rewards(self) -> None:
        one_of(self.reward_combination, COMBINATIONS, "reward_combination")
        if self.missing_end_penalty < 0:
            raise ValueError(f"missing_end_penalty must be at least 0, got {self.missing_end_penalty}")
        if self.reward_combination != "sum" and len(self.rewards) < 2:
            named = ", ".join(self.rewards)
            raise ValueError(f"reward_combination {self.reward_combination} needs at least two rewards, got {named}")
        if self.reward_combination == "normalize_each" and self.group_size < 2:
            raise ValueError(f"reward_combination normalize_each needs group_size at least 2, got {self.group_size}")
        if self.reward_combination == "normalize_each" and self.hparams.baseline == "greedy":
            raise ValueError("reward_combination normalize_each leaves the greedy response, a group of one, no reward")
        overlong = self.reward_settings.overlong_tokens
        if "overlong" in self.rewards and overlong is not None and overlong >= self.max_response_tokens:
            raise ValueError(
                "rewards name overlong: reward_settings.overlong_tokens must be below max_response_tokens = "
                f"{self.max_response_tokens}, got {overlong}"
            )

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps per rollout batch."""
        return self.epochs * self.minibatches

    @property
    def algorithm_entry(self) -> Algorithm:
        return ALGORITHMS[self.algorithm]

    @property
    def hparams(self):
        """The algorithm's defaults, the run's settings over them."""
        defaults = self.algorithm_entry.defaults
        config = from_dict(type(defaults), {**asdict(defaults), **self.settings}, "settings")
        return with_length(config, self.max_response_tokens)

    @property
    def needs_reward_model(self) -> bool:
        return "reward_model" in self.rewards or getattr(self.hparams, "critic_init", "") == "reward_model"

    def warnings(self) -> list[str]:
        """What is possible but seldom meant, one sentence each."""
        return self.hparams.warnings(self.updates_per_step)

    def resolved(self) -> dict:
        """All settings, the algorithm's defaults filled in, for the record."""
        return {**asdict(self), "settings": asdict(self.hparams)}


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
    """On-policy distillation: the student is trained toward the teacher, on its own text and on given text."""

    seed: int
    trainer: str = "own"  # own: this project's loop; trl: the same settings handed to TRL's GKDTrainer
    objective: str = "divergence"  # or policy_gradient, with log P - log Q of each sampled token as its advantage
    beta: float = 0.5  # of the divergence: 0 forward KL, 1 reverse KL, else the generalized JSD
    on_policy_share: float = 0.5  # GKD's lambda: probability that a step trains on the student's own text
    steps: int = 100  # optimizer steps
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

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.responses


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


def loaded_dtype(config) -> str:
    """Of the weights as they are loaded: TRL keeps float32 ones and computes in bfloat16 by autocast."""
    return "float32" if config.trainer == "trl" and config.dtype == "bfloat16" else config.dtype


def parse(cls, values: dict, where: str):
    """from_dict, and any message of __post_init__ prefixed with its place in the study file."""
    try:
        return from_dict(cls, values, where)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None
