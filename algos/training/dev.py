"""Accuracy on dev problems during a run: a learning curve whose course is not the order of the training prompts.

The code that samples and grades is that of the evaluation (respond.py). Measuring leaves the run as it is: it has a
random generator of its own, and gives every module back in the mode in which it was.

A policy is measured by one response to each of `dev_problems` problems, at the run's temperature. Of a given number of
responses, those to as many different problems have the least variance; and their mean estimates mean@k, by which the
study judges, which greedy responses do not. Problems are the same in all runs. The random numbers are the same at every
measurement of a run, so that two measurements differ less by chance, and others in a run with another seed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from algos.training.sampling.engine import Engine
from algos.training.sampling.engines import ROWS_AT_ONCE
from algos.training.sampling.respond import draw_problems, sampled
from algos.training.stage.record import Phases, Record

CHOICE = 0  # the seed by which problems are drawn from the dev split


@dataclass(frozen=True)
class DevAccuracy:
    """Measures a policy during its training. Each measurement is a line of metrics, and a phase of its own."""

    config: RunConfig
    problems: list[dict]  # empty: nothing is measured
    policy: Any
    tokenizer: Any
    engine: Engine  # holds the policy's weights
    record: Record
    phases: Phases

    def measure(self, steps: int, tokens: int, last: bool = False) -> None:
        """Measure if it is time: before the first step, every dev_every steps, and after the last.

        steps, tokens: how many the run has done and generated so far. last: there is no other step.
        """
        every = self.config.dev_every
        if every is None or (steps % every and not last):
            return
        with self.phases("dev"):
            accuracy = self.accuracy()
        seconds = self.phases.step.pop("dev")  # the time of no step
        self.record.log(steps, {"dev_accuracy": accuracy, "dev_seconds": seconds, "generated_tokens": tokens})

    def accuracy(self) -> float:
        """The share of correct responses of the policy as it is now."""
        generator = torch.Generator(self.policy.device).manual_seed(self.config.seed)
        with as_evaluated(self.policy):
            parts = sampled(
                self.engine, self.policy, self.tokenizer, self.problems, 1, Asked.like(self.config), generator
            )
            correct = [row["correct"] for rows, _ in parts for row in rows]
        return sum(correct) / len(correct)


@dataclass(frozen=True)
class Asked:
    """How responses are sampled: as for training, and no more of them side by side: the peak of memory stays."""

    temperature: float
    max_response_tokens: int
    rows_at_once: int

    @classmethod
    def like(cls, config: RunConfig) -> "Asked":
        rows = min(config.responses_per_step, ROWS_AT_ONCE)
        return cls(config.temperature, config.max_response_tokens, rows)


@contextmanager
def as_evaluated(model) -> Iterator[None]:
    """While it is open the model is in evaluation mode; then each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def read_dev(path: str | None, config: RunConfig) -> list[dict]:
    """The dev problems of a run; none where dev_every is null. Raises SettingsError if only one of the two is given."""
    if config.dev_every is None:
        if path is not None:
            raise SettingsError("--dev is given, but dev_every is null, so that nothing is measured; set dev_every.")
        return []
    if path is None:
        raise SettingsError(f"dev_every is {config.dev_every}, but no dev problems are given (--dev FILE).")
    return draw_problems(path, config.dev_problems, CHOICE, "dev_problems")
