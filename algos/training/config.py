"""Settings of one training stage. Each default stands here and nowhere else; the study file overrides it."""

import importlib.util
from dataclasses import asdict, field
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from algos import ALGORITHMS, check_name
from algos.describe import with_length
from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.settings import DType, SettingsError, from_dict, one_of, settings
from algos.training.rewards.own import check_labels, function_of, is_own
from algos.training.rewards.rules import RULES, RewardSettings
from algos.training.sampling.config import EngineName, VllmConfig, check_engine
from algos.training.stage.config import OptimizerConfig, Trainer

REWARDS = {*RULES, "reward_model"}
LOGITS_AT_ONCE = 2**26  # 256 MiB in float32
Offload = Literal["optimizer", "critic", "reference", "reward_model", "behavior"]


@settings
class LoraSettings:
    """Low-rank adapters (arXiv:2106.09685): W + alpha / rank * B A, of which A and B are trained."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0  # alpha / rank scales the change
    targets: tuple[str, ...] = ()  # linear layers (q_proj), fused experts (gate_up_proj); empty: all below the head

    def __post_init__(self):
        if importlib.util.find_spec("peft") is None:
            raise SettingsError("lora needs peft; pip install 'peft>=0.19'.")


@settings
class RunConfig:
    """One reinforcement-learning run. All runs of a study share these, but for what is compared."""

    algorithm: str
    seed: int
    settings: dict = field(default_factory=dict)  # the algorithm's own hyperparameters
    trainer: Trainer = "own"
    steps: PositiveInt = 30  # rollout batches
    budget_tokens: PositiveInt | None = None  # generated tokens after which a run ends, its batch whole; null: steps
    prompts_per_step: PositiveInt = 32  # P
    group_size: PositiveInt = 8  # G, responses per prompt
    minibatches: PositiveInt = 4  # optimizer steps per rollout batch and epoch
    # Prompts, each with all its responses, have the same expected gradient, other noise, and are computed once.
    minibatch_of: Literal["responses", "prompts"] = "responses"  # what is shuffled into minibatches
    epochs: PositiveInt = 1  # passes over a rollout batch
    micro_batch_size: PositiveInt = 32  # responses per forward and backward pass; memory only, not the estimator
    micro_batch_tokens: PositiveInt | None = None  # tokens of one, padding included; null: micro_batch_size responses
    share_prompts: bool = True  # a prompt is computed once for its responses in a micro-batch; no effect but speed
    logits_at_once: PositiveInt | None = LOGITS_AT_ONCE  # elements of tokens x vocabulary in one piece; null: all
    # Of whose weights the old log-probabilities are, by which ratios are divided: of those that sampled, or of the
    # policy's at the start of the update. The two differ where sync_every is above 1, and else by rounding alone.
    old_logprobs: Literal["sampler", "recomputed"] = "sampler"
    sync_every: PositiveInt = 1  # k: sampled with the policy's weights before steps 0, k, 2k: up to k - 1 batches old
    max_prompt_tokens: PositiveInt = 512  # a longer prompt is refused
    max_response_tokens: PositiveInt = 48  # T; a response without end-of-sequence by then is truncated
    temperature: PositiveFloat = 1.0  # of sampling and of all log-probabilities
    engine: EngineName = "transformers"  # samples with the trainer's own model, or with a copy
    vllm: VllmConfig = field(default_factory=VllmConfig)
    rewards: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})  # name -> weight
    reward_combination: Literal["sum", "gate", "normalize_each"] = "sum"  # see rewards.combine
    reward_settings: RewardSettings = field(default_factory=RewardSettings)
    reward_scale_running: bool = False  # learned reward only: divided by the standard deviation of its scores so far
    reward_clip: PositiveFloat | None = None  # learned reward only: its normalized score is clipped to +- this
    missing_end_penalty: NonNegativeFloat = 0.0  # subtracted from a truncated response's reward (arXiv:2403.17031)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic_learning_rate: PositiveFloat | None = None  # null: the policy's
    device: str = "auto"  # auto: CUDA where there is one
    dtype: DType = "float32"  # of weights and activations; bfloat16: with float32 masters, gradients and moments

    # What makes a run smaller or faster. Figures: the default study's model and micro-batches, on one CPU core.

    gradient_checkpointing: bool = False  # policy, critic keep a layer's input alone: 1/13 of the bytes
    compile: bool = False  # torch.compile of all passes but sampling: 10 % off each, after minutes of compiling
    lora: LoraSettings | None = None  # train adapters alone, without a second model as reference; null: all weights
    offload: tuple[Offload, ...] = ()  # to the CPU while not needed; CUDA only
    sample_every: PositiveInt = 10  # steps between kept sample completions
    dev_every: PositiveInt | None = None  # steps between measurements of the accuracy on dev problems; null: none
    dev_problems: PositiveInt = 100  # of the dev split, the same in every run; one response to each

    def __post_init__(self):
        check_name(self.algorithm, "algorithm")
        self._check_engine()
        for key in self.settings:
            self._refuse_setting_of_others(key)
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
            if is_own(name):
                function_of(name)
            elif ".py" in name:
                raise ValueError(
                    f"rewards: {name!r} must name a file and a function in it, as in my_rewards.py:brevity"
                )
            else:
                one_of(name, REWARDS, "rewards")
        check_labels(self.rewards)
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
        self._check_stale()

    def _check_stale(self) -> None:
        """Which old log-probabilities stale samples need, and that dev problems are not answered by old weights."""
        if self.sync_every > 1 and self.engine == "vllm" and self.dev_every is not None:
            raise SettingsError(
                f"dev_every: {self.dev_every} with sync_every: {self.sync_every} and engine vllm would measure the "
                "weights that vLLM holds, which are older than the policy's; write dev_every: null, or another engine."
            )
        if self.sync_every == 1 or self.old_logprobs == "recomputed":
            return
        if self.algorithm_entry.update is not None:
            raise SettingsError(
                f"sync_every: {self.sync_every} with old_logprobs sampler gives {self.algorithm} ratios against other "
                "weights than those that its KL bound is around; write old_logprobs: recomputed."
            )
        if self.hparams.correction != "none" and self.engine == "transformers":
            raise SettingsError(
                f"sync_every: {self.sync_every} with old_logprobs sampler leaves correction {self.hparams.correction} "
                "nothing to correct: its weights are old over sampler, and both are of the weights that sampled; "
                "write old_logprobs: recomputed."
            )

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
        if self.engine != "vllm":
            return
        if self.trainer == "trl":
            raise SettingsError(
                "engine: vllm belongs to trainer: own; TRL's trainer would sample, weigh and synchronize in its own "
                "way. Write engine: transformers."
            )
        check_engine(self.engine, self.temperature)

    def _refuse_setting_of_others(self, key: str) -> None:
        """A setting that only other algorithms have: name them, instead of a similar-looking one."""
        owners = [name for name, entry in ALGORITHMS.items() if hasattr(entry.defaults, key)]
        if owners and not hasattr(self.algorithm_entry.defaults, key):
            because = ", which has no critic" if hasattr(WithCritic, key) else ""
            raise SettingsError(
                f"settings: {key} is no setting of {self.algorithm}{because}; {', '.join(owners)} have it."
            )

    def _check_rewards(self) -> None:
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
        against_sampler = self.sync_every > 1 and self.old_logprobs == "sampler" and self.hparams.ratio != "none"
        # against older weights the ratios leave 1 on the first optimizer step
        found = self.hparams.warnings(max(2, self.updates_per_step) if against_sampler else self.updates_per_step)
        if self.sync_every > 1 and not against_sampler and self.hparams.correction == "none":
            found.append(
                f"samples are up to {self.sync_every - 1} rollout batches old, and neither ratio nor correction "
                "accounts for it."
            )
        below = [name for name in self.rewards if name in ("overlong", "repetition", "reward_model")]
        below += ["missing_end_penalty"] if self.missing_end_penalty else []
        if self.hparams.scale == "group_mean" and below:
            found.append(
                f"scale group_mean divides by the group's mean reward, which {below[0]} can bring near 0 or below: "
                "advantages then have no bound, or the group is left out."
            )
        return found

    def resolved(self) -> dict:
        """All settings, the algorithm's defaults filled in, for the record."""
        return {**asdict(self), "settings": asdict(self.hparams)}
