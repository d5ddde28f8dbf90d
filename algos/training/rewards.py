"""Responses -> rewards: rules and the learned reward model, weighted and added up; each component logged apart.

To add a reward: a function of (response text, gold answer), its line in RULES. Training and evaluation share one
grader, evaluation.answers.
"""

import torch
from torch import Tensor

from algos.training.types import Rollouts, make_batch
from evaluation.answers import extract_strict, gold_answer, has_format, is_correct
from evaluation.settings import SettingsError


def correctness(response: str, gold: str) -> float:
    """1 if the strict answer is the gold one, else 0."""
    return float(is_correct(extract_strict(response), gold))


def format_reward(response: str, gold: str) -> float:
    """1 if the response ends with its only `#### <number>` line, right or wrong, else 0."""
    return float(has_format(response))


MISSING_END_SCORE = -1.0  # a truncated response is partial: the learned score of one is at most this (arXiv:2403.17031)
RULES = {"correctness": correctness, "format": format_reward}
REWARDS = {*RULES, "reward_model"}


class Rewards:
    """Scores responses with the named rewards; weights as in the study file."""

    def __init__(
        self,
        weights: dict[str, float],
        pad_id: int,
        reward_model=None,
        clip: float | None = None,
        micro_batch_size: int = 64,
    ):
        if "reward_model" in weights and reward_model is None:
            raise SettingsError("rewards: reward_model is named, but no reward model was given (--reward-model).")
        self.weights, self.pad_id, self.model, self.clip = weights, pad_id, reward_model, clip
        self.micro_batch_size = micro_batch_size

    def __call__(self, rollouts: Rollouts, texts: list[str], golds: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """texts (B), golds (P): -> reward (B,), and each component (B,) unweighted; correctness always among them."""
        each = [gold for gold in golds for _ in range(rollouts.group_size)]
        components = {}
        for name, rule in RULES.items():
            if name in self.weights or name == "correctness":
                components[name] = torch.tensor([rule(t, g) for t, g in zip(texts, each, strict=True)])
        if "reward_model" in self.weights:
            components["reward_model"] = self.learned(rollouts).cpu()
        total = sum(weight * components[name] for name, weight in self.weights.items())
        return total, components

    @torch.no_grad()
    def learned(self, rollouts: Rollouts) -> Tensor:
        """Normalised scores (B,) of the reward model, in standard deviations of its held-out ones, clipped if asked."""
        batch = make_batch(rollouts, torch.zeros(len(rollouts.response_ids)), self.pad_id)
        scores = torch.empty(len(batch), device=batch.sequence_ids.device)
        for rows in batch.lengths.argsort(stable=True).split(self.micro_batch_size):
            part = batch.select(rows)
            scores[rows] = self.model.sequence_scores(part.sequence_ids, part.lengths)
        scores = (scores - self.model.offset) * self.model.gain
        scores = torch.where(rollouts.truncated, scores.clamp(max=MISSING_END_SCORE), scores)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


def golds_of(problems: list[dict]) -> list[str]:
    """The gold answers of problems as read from the data files."""
    return [gold_answer(problem["answer"]) for problem in problems]
