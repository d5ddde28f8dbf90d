"""One step of reinforcement learning: prompts -> rollouts -> rewards -> advantages -> loss -> update.

`Run.step` is read from top to bottom. Its parts stand in experience.py (sampling and scoring) and update/ (the rest).
The training loop, the memory predictor and the benchmark all call it. Nothing here knows an algorithm by name.

How a tool looks into a step: every phase runs inside `run.phases(name)`, and `run.phases.around` is a context manager
that a tool may set (stage/record.py). A tool that changes a phase overrides the method of that name.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator, changed
from algos.pieces.types import Batch, make_batch
from algos.training.config import RunConfig
from algos.training.experience import Experience, PromptOrder, Sampler
from algos.training.failure import check_experience
from algos.training.rewards.rewards import Rewards, RunningStd, component_metrics
from algos.training.sampling.behavior import check_held, take_over
from algos.training.sampling.engine import Engine
from algos.training.sampling.engines import RatioCanary, TransformersEngine
from algos.training.sampling.routing import Routing, routers
from algos.training.stage.record import Phases
from algos.training.update.batch_metrics import batch_metrics, combine
from algos.training.update.trust_region import trust_region_update
from algos.training.update.update import Learner, kept, kl_after_update, prepare, update, with_advantages

RATIO_TOLERANCE = 1e-3  # of the ratio on the first optimizer step, where only rounding may move it from 1
# In bfloat16 a logit of 16 to 32 is a multiple of 1/8: rounding moves single tokens far, and all together little.
# Measured between two layouts of SmolLM2-135M's responses: 0.3 in a token's ratio, 0.002 nats in the mean KL; a
# temperature that is 10 % off gives 0.03 nats.
KL_TOLERANCE_BFLOAT16 = 0.02  # nats a token, k3
TOKEN_TOLERANCE_BFLOAT16 = 1.0  # nats of a single token


@dataclass
class State:
    """All that a step changes, hence all that must survive an interruption; a Run keeps nothing else from step to step.

    stage/state.py saves it field by field, and refuses a field that it cannot save.

    A second Run with the same settings and inputs that takes over a State goes on as the first one would have. torch's
    global generator is not among the state: it draws new weights before the first step and nothing after it. An engine
    of its own takes its weights over from the behavior policy where there is one, or from the policy.
    """

    learner: Learner  # policy, critic, their optimizers (float32 masters too) and schedulers; the behavior policy
    generator: torch.Generator  # draws responses and minibatches; on the policy's device
    order: PromptOrder  # which prompts come next
    hparams: Estimator  # as adapted so far, such as the KL coefficient
    canary: RatioCanary  # its limit comes from the first batch
    held: dict[str, int] | None = (
        None  # fingerprint of the behavior policy at its last synchronization, if there is one
    )
    reward_scale: RunningStd = field(default_factory=RunningStd)  # what reward_scale_running divides by
    step: int = 0  # steps done
    generated_tokens: int = 0
    generated_responses: int = 0
    optimizer_steps: int = 0  # of the policy

    @classmethod
    def at_start(cls, config: RunConfig, learner: Learner, generator: torch.Generator, problems: int) -> "State":
        order = PromptOrder(problems, config.seed)
        return cls(learner, generator, order, config.hparams, RatioCanary(config.dtype))


@dataclass(frozen=True)
class Inputs:
    """What a run reads and no step changes."""

    problems: list[dict]
    prompts: list[list[int]]  # token ids, one list per problem
    tokenizer: Any
    models: dict[str, tuple[Any, Any]]  # all models by name, with their optimizers: for measuring them
    reward_model: Any = None  # frozen; without a backbone it is a head on the reference's


class Run:
    """A run, a step at a time. `experience` is the rollout batch of the last step."""

    def __init__(self, config: RunConfig, state: State, inputs: Inputs, engine: Engine, phases: Phases):
        self.config, self.state, self.inputs, self.engine, self.phases = config, state, inputs, engine, phases
        self.algorithm = config.algorithm_entry
        learner, head = state.learner, inputs.reward_model
        reference = learner.reference if head is not None and head.backbone is None else None
        self.score = Rewards(
            config, inputs.tokenizer, head, learner.layout(config), reference, running=state.reward_scale
        )
        self.sampler = Sampler(
            config, inputs.problems, inputs.prompts, inputs.tokenizer, self.score, engine, state.order
        )
        self.experience: Experience | None = None
        self.routing = Routing(self.behavior) if routers(self.behavior) else None
        if isinstance(engine, TransformersEngine):
            engine.routing = self.routing

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the token budget is spent."""
        budget = self.config.budget_tokens
        return self.state.step >= self.config.steps or (budget is not None and self.state.generated_tokens >= budget)

    @property
    def behavior(self) -> Any:
        """The model whose weights sample."""
        learner = self.state.learner
        return learner.policy if learner.behavior is None else learner.behavior

    @property
    def staleness(self) -> int:
        """How many rollout batches old the weights are that sample in this step."""
        return self.state.step % self.config.sync_every

    @property
    def warming_up(self) -> bool:
        """Whether the next update trains the critic alone."""
        hparams = self.state.hparams
        return isinstance(hparams, WithCritic) and self.state.step < hparams.value_warmup

    def step(self) -> dict[str, Any]:
        """One rollout batch and all optimizer steps on it; its metrics, times included."""
        self.experience = experience = self.collect()
        check_experience(experience, self.inputs.problems)
        with self.phases("logprobs"):
            batch, entropies, agreement = self.prepare(experience)
            batch = self.advantages(batch)
        with self.phases("update"):
            learning_rate = self.state.learner.scheduler.get_last_lr()[0]
            diagnostics = self.diagnose(batch, entropies, experience)
            updates = self.update(batch)
            after = self.kl_after_update(batch)
        if self.staleness == 0 or self.config.old_logprobs == "recomputed":
            check_first_ratio(updates[0], self.config.dtype)
        self.renew()
        self.count(experience, updates)
        figures = {**diagnostics, **agreement, **combine(updates), **after, "learning_rate": learning_rate}
        figures |= self.drift(figures, updates[0])
        metrics = {**self.metrics(experience), **figures, "updates": len(updates), **self.times(experience)}
        self.adapt(metrics, len(batch))
        self.state.step += 1
        return metrics

    def collect(self) -> Experience:
        """Sampled and scored responses, in the phases generate and reward."""
        if self.state.learner.behavior is not None:
            with self.phases("generate"):
                self.check_behavior()
        return self.sampler(self.behavior, self.state.generator, self.phases)

    def check_behavior(self) -> None:
        """Raise StaleWeights unless the behavior policy has the weights that it is to sample with, bit by bit."""
        learner, held = self.state.learner, None if self.staleness == 0 else self.state.held
        self.state.held = check_held(learner.behavior, learner.policy, held)

    def prepare(self, experience: Experience) -> tuple[Batch, Tensor, dict[str, float]]:
        """The batch with all log-probabilities and values, entropies (B, T), and how far sampler and trainer agree."""
        rollouts, hparams = experience.rollouts, self.state.hparams
        batch = make_batch(rollouts, experience.rewards, self.inputs.tokenizer.pad_token_id)
        batch, entropies = prepare(batch, self.state.learner, self.config, hparams, rollouts.entropies)
        assert batch.old_logprobs is not None
        agreement = {}
        if self.staleness == 0 or self.config.old_logprobs == "sampler":  # both are of the weights that sampled
            agreement = self.state.canary.check(batch.old_logprobs, batch.sampler_logprobs, batch.response_mask)
        if self.routing is not None:
            layout = self.state.learner.layout(self.config)
            agreement |= self.routing.agreement(self.inputs.tokenizer.pad_token_id, layout)
        keep = kept(hparams, rollouts.truncated, experience.components["correctness"], self.config.group_size)
        return replace(batch, greedy_rewards=experience.greedy_rewards, keep=keep), entropies, agreement

    def advantages(self, batch: Batch) -> Batch:
        return with_advantages(batch, self.algorithm, self.state.hparams)

    def diagnose(self, batch: Batch, entropies: Tensor, experience: Experience) -> dict[str, float]:
        correct = experience.components["correctness"]
        return batch_metrics(batch, experience.rollouts, entropies, correct, self.state.hparams)

    def update(self, batch: Batch) -> list[dict[str, float]]:
        """All optimizer steps on the batch; the metrics of each."""
        run_updates = update if self.algorithm.update is None else trust_region_update
        state = self.state
        return run_updates(batch, state.learner, self.config, state.hparams, state.generator, self.warming_up)

    def kl_after_update(self, batch: Batch) -> dict[str, float]:
        if not self.algorithm.measures_kl_after_update:
            return {}
        return {"kl_after_update": kl_after_update(batch, self.state.learner, self.config)}

    def renew(self) -> None:
        """Let the sampler take over the policy's weights, if the next step is one of 0, k, 2k of sync_every k."""
        learner = self.state.learner
        if (self.state.step + 1) % self.config.sync_every == 0:
            if learner.behavior is not None:
                with self.phases("synchronize"):
                    take_over(learner.behavior, learner.policy)
            self.synchronize()

    def synchronize(self) -> None:
        """Hand the weights that sample to an engine that has weights of its own."""
        if not self.engine.exact:
            with self.phases("synchronize"):
                self.engine.synchronize(self.behavior)

    def drift(self, figures: dict[str, float], first: dict[str, float]) -> dict[str, float]:
        """How old the samples are, and how far the policy has moved since, where that may be more than nothing."""
        if self.config.sync_every == 1:
            return {}
        moved = figures["sampler_kl_k3"] if self.config.old_logprobs == "recomputed" else first.get("approx_kl_k3")
        return {"staleness": self.staleness, **({} if moved is None else {"stale_kl": moved})}

    def count(self, experience: Experience, updates: list) -> None:
        self.state.generated_tokens += experience.generated_tokens
        self.state.generated_responses += experience.generated_responses
        self.state.optimizer_steps += 0 if self.warming_up else len(updates)

    def metrics(self, experience: Experience) -> dict[str, Any]:
        """Rewards, sampling and the hparams that are adapted, as they were in this step."""
        hparams = self.state.hparams
        return {
            "reward": experience.rewards.mean(),
            "reward_std": experience.rewards.std(),
            "accuracy": experience.components["correctness"].mean(),
            **component_metrics(experience.components),
            "sampling_rounds": experience.rounds,
            "mixed_groups": experience.mixed_share,
            "kl_coef": hparams.kl_coef,
            **{name: value for name, (_, value) in changed(hparams, self.config.hparams).items()},
            "generated_tokens": self.state.generated_tokens,
            "batch_tokens": experience.generated_tokens,
        }

    def times(self, experience: Experience) -> dict[str, float]:
        """Seconds by phase and of the step, and tokens per second; the clock then starts the next step."""
        seconds = dict(self.phases.step)
        return {
            **self.phases.next_step(),
            "step_seconds": sum(seconds.values()),
            **{f"{k}_tokens_per_second": experience.generated_tokens / v for k, v in seconds.items()},
        }

    def adapt(self, metrics: dict[str, Any], responses: int) -> None:
        """Hparams that follow what was measured, such as the KL coefficient."""
        if not self.warming_up:
            figures = {name: float(value) for name, value in metrics.items()}
            self.state.hparams = self.algorithm.adapt(self.state.hparams, figures, responses)


def check_first_ratio(metrics: dict, dtype: str = "float32") -> None:
    """Raise RuntimeError unless all ratios are 1 on the first optimizer step: old and new then come from one policy.

    In bfloat16 the mean over tokens is judged, by its KL.
    """
    if "ratio_max" not in metrics:  # the critic's warm-up
        return
    low, high = float(metrics["ratio_min"]), float(metrics["ratio_max"])
    deviation = max(abs(high - 1), abs(low - 1))
    near, said = deviation <= RATIO_TOLERANCE, f"the importance ratio is off by {deviation:.2g}"
    if not near and dtype == "bfloat16":
        apart, limit = float(metrics["approx_kl_k3"]), math.exp(TOKEN_TOLERANCE_BFLOAT16)
        near = apart <= KL_TOLERANCE_BFLOAT16 and 1 / limit <= low and high <= limit
        said += f", {apart:.2g} nats a token in the mean,"
    if not near:
        raise RuntimeError(
            f"{said} on the first step of a rollout batch, where the ratio must be 1: old and new log-probabilities "
            "come from different computations"
        )
