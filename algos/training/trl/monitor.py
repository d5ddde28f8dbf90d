"""Measures a training loop of TRL as the suite measures its own: metrics, samples, progress and time by phase."""

import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from algos.training.config import RunConfig
from algos.training.dev import DevAccuracy
from algos.training.failure import batch_rows
from algos.training.models.tokens import encode_prompt, end_ids
from algos.training.rewards.rewards import Rewards, component_metrics
from algos.training.sampling.sampler import decode_ids
from algos.training.stage.record import Phases, Progress, Record


class Monitor:
    """Writes one line of metrics per rollout batch of TRL's loop, and grades its responses."""

    def __init__(
        self,
        config: RunConfig,
        record: Record,
        name: str,
        tokenizer,
        phases: Phases,
        dev: DevAccuracy,
        after_step: Callable | None = None,
    ):
        """after_step is called with the metrics of each step, outside of the measured time."""
        self.dev, self.after_step = dev, after_step
        self.config, self.record, self.tokenizer = config, record, tokenizer
        self.rewards = Rewards(config, tokenizer)
        self.phases, self.progress = phases, Progress(config.steps, name or f"trl {config.algorithm}")
        self.step, self.generated, self.step_started = 0, 0, time.perf_counter()
        self.latest: list[dict] = []  # the batch that was scored last, as rows
        self.pending: dict[str, Any] | None = None  # metrics of the batch whose step is not done

    def score(self, problems: list[dict], responses: list[list[int]]) -> list[float]:
        """Rewards of one rollout batch, by the grader of the suite's own runs; keeps the metrics of the batch."""
        start = time.perf_counter()
        texts = decode_ids(self.tokenizer, responses)
        truncated = [not set(end_ids(self.tokenizer)) & set(ids) for ids in responses]
        prompts = [encode_prompt(self.tokenizer, problem["prompt"]) for problem in problems]
        seen = self.rewards.responses(texts, [len(ids) for ids in responses], truncated, problems, prompts)
        self.latest = batch_rows(problems, texts, None, {})
        rewards, components = self.rewards.grade(seen, self.config.group_size)
        self.latest = batch_rows(problems, texts, rewards, components)
        lengths = torch.tensor([float(len(ids)) for ids in responses])
        self.generated += int(lengths.sum())
        groups = rewards.view(-1, self.config.group_size)
        self.pending = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(),
            "accuracy": components["correctness"].mean(),
            **component_metrics(components),
            "response_tokens": lengths.mean(),
            "response_tokens_p95": lengths.quantile(0.95),
            "truncation_rate": sum(truncated) / len(truncated),
            "degenerate_groups": ((groups.max(dim=1).values - groups.min(dim=1).values) < 1e-8).float().mean(),
            "generated_tokens": self.generated,
            "batch_tokens": int(lengths.sum()),
        }
        if self.step % self.config.sample_every == 0 or self.step == self.config.steps - 1:
            self._keep_samples(problems, texts, rewards, components["correctness"])
        self.phases.add("reward", time.perf_counter() - start)
        return rewards.tolist()

    def _keep_samples(self, problems: list[dict], texts: list[str], rewards, correct, most: int = 4) -> None:
        for row in range(min(most, len(texts))):
            self.record.sample(
                step=self.step,
                prompt=problems[row]["prompt"],
                response=texts[row],
                reward=rewards[row].item(),
                correct=bool(correct[row]),
            )

    def start(self) -> None:
        """The first step begins here: imports and set-up are no part of it."""
        self.dev.measure(0, 0)
        self.phases.wait()
        self.step_started = time.perf_counter()

    def finish_step(self, logs: dict) -> None:
        """Write the line of the rollout batch; logs holds the metrics of TRL's trainer under the suite's names."""
        if self.pending is None:  # the closing summary of TRL's trainer
            return
        for figure in ("policy_loss", "grad_norm"):
            if not math.isfinite(logs.get(figure, 0.0)):
                raise FloatingPointError(f"the {figure} is {logs[figure]}: training diverged; lower the learning rate")
        self.phases.wait()
        now = time.perf_counter()
        seconds, self.step_started = now - self.step_started, now
        self.phases.add("update", seconds - sum(self.phases.step.values()))  # the time of no other phase
        step, tokens = dict(self.phases.step), self.pending.pop("batch_tokens")
        metrics = {
            **self.pending,
            **logs,
            **self.phases.next_step(),
            "step_seconds": seconds,
            **{f"{k}_tokens_per_second": tokens / v for k, v in step.items() if v > 0},
        }
        self.record.log(self.step, metrics)
        self.progress.update(
            self.step + 1,
            reward=float(self.pending["reward"]),
            accuracy=float(self.pending["accuracy"]),
            **{"tokens/s": tokens / seconds},
        )
        self.step, self.pending = self.step + 1, None
        self.dev.measure(self.step, self.generated, last=self.step == self.config.steps)
        if self.after_step is not None:
            self.after_step(metrics)
        self.step_started = time.perf_counter()

    def timed(self, function, phase, minus: tuple[str, ...] = ()):
        """The function, with its seconds added to a phase, less the seconds of the phases in `minus` inside it.

        phase may be a function of the arguments; where it returns None, the time is not counted.
        """

        @wraps(function)
        def wrapper(*args, **kwargs):
            name = phase(*args, **kwargs) if callable(phase) else phase
            if not name:
                return function(*args, **kwargs)
            inside = sum(self.phases.step.get(other, 0.0) for other in minus)
            self.phases.wait()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.phases.wait()
            nested = sum(self.phases.step.get(other, 0.0) for other in minus) - inside
            self.phases.add(name, time.perf_counter() - start - nested)
            return result

        return wrapper


def scoring_only(*_, **__) -> str | None:
    """The phase of a forward pass: logprobs without a gradient, else the update, which is not timed by itself."""
    return None if torch.is_grad_enabled() else "logprobs"


def step_logs(monitor: Monitor, names: dict[str, str]):
    """A callback that hands the metrics of TRL's trainer to the monitor; names: TRL's name -> the suite's name."""
    from transformers import TrainerCallback

    class Logs(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            monitor.start()

        def on_log(self, args, state, control, logs=None, **kwargs):
            monitor.finish_step({name: logs[known] for known, name in names.items() if known in (logs or {})})

    return Logs()
