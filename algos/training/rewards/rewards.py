"""Responses -> rewards: rules and the learned reward model, combined; each component logged apart.

The rules stand in rules.py. To add a rule, add a function and its line there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.pieces.advantages import group_advantages
from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts, make_batch
from algos.training.config import RunConfig
from algos.training.models.packing import Layout
from algos.training.rewards.own import is_own, own_reward
from algos.training.rewards.rules import RULES, Response
from algos.training.rewards.shared_pass import scores_and_logprobs

MISSING_END_SCORE = -1.0  # a truncated response is partial: the learned score of one is at most this (arXiv:2403.17031)
STD_EPSILON = 1.0e-4  # of normalize_each, as in TRL
PROMPT_END_TOKENS = 16  # enough for a <think> that the tokenizer spells out


@dataclass
class RunningStd:
    """Sample standard deviation of all numbers seen so far (Welford's recursion, batch by batch)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def update(self, values: Tensor) -> None:
        values = values.double()
        count = self.count + len(values)
        shift = values.mean().item() - self.mean
        self.squares += ((values - values.mean()) ** 2).sum().item() + shift**2 * self.count * len(values) / count
        self.mean += shift * len(values) / count
        self.count = count

    @property
    def std(self) -> float:
        """1 until the numbers vary, so that a division by it has no effect."""
        std = (self.squares / max(self.count - 1, 1)) ** 0.5
        return std if std > 1e-6 else 1.0


@dataclass(frozen=True)
class Scored:
    """The scores of B responses."""

    rewards: Tensor  # (B,)
    components: dict[str, Tensor]  # (B,) each, unweighted; correctness is always among them
    ref_logprobs: Tensor | None = None  # (B, T), where the pass of the reward model gave them too


class Rewards:
    """Scores responses as a run's settings say."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer,
        reward_model=None,
        layout: Layout | None = None,
        reference=None,
        running: RunningStd | None = None,
    ):
        """reference: the model on whose backbone the reward model is a head, if it has no backbone of its own.

        running: the scale of the learned rewards so far, which reward_scale_running divides by and updates.
        """
        if "reward_model" in config.rewards and reward_model is None:
            raise SettingsError("rewards: reward_model is named, but no reward model was given (--reward-model).")
        self.config, self.tokenizer = config, tokenizer
        self.model, self.layout = reward_model, layout or Layout(responses=64)
        self.running, self.reference = running or RunningStd(), reference

    def __call__(self, rollouts: Rollouts, texts: list[str], problems: list[dict]) -> Scored:
        """Scores of B responses: their texts (B) and the problems (P) that they answer."""
        group = rollouts.group_size
        responses = self.responses(
            texts,
            rollouts.response_mask.sum(dim=1).tolist(),
            rollouts.truncated.tolist(),
            [problem for problem in problems for _ in range(group)],
            [prompt for prompt in rollouts.prompts for _ in range(group)],
        )
        learned = ref_logprobs = None
        if "reward_model" in self.config.rewards:
            learned, ref_logprobs = self.learned(rollouts)
            learned = learned.cpu()
        return Scored(*self.grade(responses, group, learned), ref_logprobs)

    def responses(self, texts, tokens, truncated, problems, prompts) -> list[Response]:
        """B responses as the rules see them; problems' rows and prompts' token ids are one per response."""
        ends = self.tokenizer.batch_decode([prompt[-PROMPT_END_TOKENS:] for prompt in prompts])
        return [
            Response(
                text=text,
                tokens=count,
                max_tokens=self.config.max_response_tokens,
                truncated=cut,
                problem=problem,
                prompt_end=end,
            )
            for text, count, cut, problem, end in zip(texts, tokens, truncated, problems, ends, strict=True)
        ]

    def grade(
        self, responses: list[Response], group_size: int, learned: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reward (B,) and components of responses, rows of one group adjacent; learned (B,): the reward model's."""
        components = {
            name: torch.tensor([rule.score(response, self.config.reward_settings) for response in responses])
            for name, rule in RULES.items()
            if name in self.config.rewards or name == "correctness"
        }
        for name in filter(is_own, self.config.rewards):
            components[name] = torch.tensor(own_reward(name, responses, self.config.reward_settings))
        if learned is not None:
            components["reward_model"] = learned
        total = combine(components, self.config.rewards, self.config.reward_combination, group_size)
        truncated = torch.tensor([response.truncated for response in responses])
        return total - self.config.missing_end_penalty * truncated, components

    @torch.no_grad()
    def learned(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """Scores (B,) of the reward model, and reference log-probabilities (B, T) if one pass gives both.

        Scores are in standard deviations: of the held-out scores, or of the run's scores so far. The running one
        divides and does not shift, so that a score's sign stays. Clipping comes last.
        """
        batch = make_batch(rollouts, torch.zeros(len(rollouts.response_ids)), self.tokenizer.pad_token_id)
        scores = torch.empty(len(batch), device=batch.sequence_ids.device)
        ref_logprobs = None
        if self.reference is not None:
            ref_logprobs = torch.zeros(batch.response_mask.shape, device=scores.device)
        for rows, part in self.layout.micro_batches(batch):
            if ref_logprobs is None:
                scores[rows] = self.model.batch_scores(part)
            else:
                scores[rows], logprobs = scores_and_logprobs(self.model, self.reference, part, self.config.temperature)
                ref_logprobs[rows, : logprobs.shape[1]] = logprobs
        scores = (scores - self.model.offset) * self.model.gain
        if self.config.reward_scale_running:
            self.running.update(scores)
            scores = scores / self.running.std
        scores = torch.where(rollouts.truncated, scores.clamp(max=MISSING_END_SCORE), scores)
        clip = self.config.reward_clip
        return (scores if clip is None else scores.clamp(-clip, clip)), ref_logprobs


def combine(components: dict[str, Tensor], weights: dict[str, float], combination: str, group_size: int) -> Tensor:
    """The reward (B,) of B responses, rows of one group adjacent: the weighted components added up.

    sum             as they are
    gate            a component other than correctness adds to the reward only if the response is correct; a
                    component below 0 (a penalty) always counts, so that being wrong never pays
    normalize_each  each over its group first, less the mean, by the sample standard deviation + 1e-4, exactly 0 where
                    all are equal: components of different spread then weigh as their weights say, and different
                    sets of components do not collapse into one advantage (GDPO, arXiv:2601.05242). GDPO's
                    normalization of the sum, over the batch, is left to the algorithm's advantages.
    """
    total = torch.zeros_like(next(iter(components.values())))
    for name, weight in weights.items():
        values = components[name]
        if combination == "normalize_each":
            values = group_advantages(values.view(-1, group_size), STD_EPSILON).flatten()
        added = weight * values
        if combination == "gate":  # no effect on correctness itself, which is 0 or 1
            added = torch.where(added > 0, added * components["correctness"], added)
        total = total + added
    return total


def component_metrics(components: dict[str, Tensor]) -> dict[str, float]:
    """Mean, standard deviation and share at the maximum of each component (B,).

    A rule's maximum is its value for a faultless response. The reward model has no such value, so that the maximum of
    the batch is taken: a share far above 1 / B then says that scores are being clipped.
    """
    metrics: dict[str, float] = {}
    for name, values in components.items():
        label = name.rpartition(":")[2]  # of a reward of the user's own: its function
        maximum = RULES[name].maximum if name in RULES else values.max()
        metrics |= {
            f"reward_{label}": values.mean().item(),
            f"reward_{label}_std": values.std().item(),
            f"reward_{label}_at_max": (values == maximum).float().mean().item(),
        }
    return metrics
