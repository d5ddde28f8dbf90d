"""Prompts -> scored rollouts: plain sampling, DAPO's dynamic sampling, ReMax's greedy responses.

All generated tokens count in the budget, those of responses that are thrown away too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from algos.pieces.types import Rollouts
from algos.training.config import RunConfig
from algos.training.rewards.rewards import Scored
from algos.training.sampling.engine import Engine, Sampling
from algos.training.sampling.engines import TransformersEngine
from algos.training.sampling.sampler import decode
from algos.training.stage.record import Phases

Group = tuple[int, int]  # (round, index within the round)


class PromptOrder:
    """Indices of problems without end: shuffled passes over all of them, a function of the seed alone.

    `drawn` indices have been taken; with it, the number of problems and the seed, the order goes on where it was.
    """

    def __init__(self, problems: int, seed: int):
        self.problems, self.seed, self.drawn = problems, seed, 0
        self._stream = self._shuffled()

    def take(self, count: int) -> list[int]:
        self.drawn += count
        return list(islice(self._stream, count))

    def saved(self) -> dict:
        return {"drawn": self.drawn}

    def restore(self, saved: dict) -> None:
        self.drawn, self._stream = 0, self._shuffled()
        self.take(saved["drawn"])

    def _shuffled(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.problems, generator=generator).tolist()


def prompt_schedule(problems: int, config: RunConfig) -> list[list[int]]:
    """Indices of the P problems of each step, as PromptOrder deals them out."""
    order = PromptOrder(problems, config.seed)
    return [order.take(config.prompts_per_step) for _ in range(config.steps)]


@dataclass(frozen=True)
class Experience:
    """P groups of scored responses, and the cost of sampling them."""

    rollouts: Rollouts
    texts: list[str]  # (B)
    problems: list[int]  # (P) indices of the prompts' problems
    rewards: Tensor  # (B,)
    components: dict[str, Tensor]  # (B,) each
    generated_tokens: int
    generated_responses: int
    greedy_rewards: Tensor | None  # (P,)
    rounds: int  # of sampling
    mixed_share: float  # of all sampled groups those with right and wrong answers


class Sampler:
    """Draws prompts, samples the policy and scores, as a run's settings say."""

    def __init__(
        self,
        config: RunConfig,
        problems: list[dict],
        prompts: list[list[int]],
        tokenizer,
        score: Callable[[Rollouts, list[str], list[dict]], Scored],
        engine: Engine | None = None,  # None: the policy itself
        order: PromptOrder | None = None,  # None: from the start
    ):
        self.config, self.hparams, self.engine = config, config.hparams, engine or TransformersEngine(tokenizer)
        self.problems, self.prompts, self.tokenizer, self.score = problems, prompts, tokenizer, score
        self.order = order or PromptOrder(len(problems), config.seed)
        self.latest: tuple[list[int], list[str]] = [], []  # problems (P) and texts (B) that were sampled last

    def __call__(self, policy, generator: torch.Generator, phases: Phases) -> Experience:
        """One rollout batch of P groups."""
        wanted, tokens, responses = self.config.prompts_per_step, 0, 0
        rounds: list[tuple] = []
        mixed: list[Group] = []
        other: list[Group] = []
        limit = self.hparams.max_rounds if self.hparams.dynamic_sampling else 1
        while len(mixed) < wanted and len(rounds) < limit:
            chosen = self.order.take(wanted)
            rollouts, texts, scored = self._sampled(policy, chosen, generator, phases)
            for group, right in enumerate(scored.components["correctness"].view(wanted, -1).mean(dim=1).tolist()):
                (mixed if 0 < right < 1 else other).append((len(rounds), group))
            rounds.append((chosen, rollouts, texts, scored))
            tokens, responses = tokens + rollouts.response_tokens, responses + len(texts)
        sampled = len(mixed) + len(other)
        kept = sorted((mixed + other)[:wanted]) if limit > 1 else [(0, group) for group in range(wanted)]
        experience = self._joined(rounds, kept)
        greedy = None
        if self.hparams.baseline == "greedy":
            greedy, spent = self._greedy(policy, experience[2], generator, phases)
            tokens, responses = tokens + spent, responses + wanted
        return Experience(*experience, tokens, responses, greedy, len(rounds), len(mixed) / sampled)

    def _sampled(self, policy, chosen: list[int], generator, phases: Phases, greedy: bool = False):
        with phases("generate"):
            sampling = Sampling(
                group_size=1 if greedy else self.config.group_size,
                max_response_tokens=self.config.max_response_tokens,
                temperature=0.0 if greedy else self.config.temperature,
            )
            rollouts = self.engine.sample(policy, [self.prompts[i] for i in chosen], sampling, generator)
        with phases("reward"):
            texts = decode(self.tokenizer, rollouts)
            self.latest = chosen, texts
            scored = self.score(rollouts, texts, [self.problems[i] for i in chosen])
            rollouts = replace(rollouts, ref_logprobs=scored.ref_logprobs)
        return rollouts, texts, scored

    def _greedy(self, policy, chosen: list[int], generator, phases: Phases) -> tuple[Tensor, int]:
        """Rewards (P,) of the greedy responses, and their tokens."""
        rollouts, _, scored = self._sampled(policy, chosen, generator, phases, greedy=True)
        return scored.rewards.to(rollouts.response_ids.device), rollouts.response_tokens

    def _joined(
        self, rounds: list[tuple], kept: list[Group]
    ) -> tuple[Rollouts, list[str], list[int], Tensor, dict[str, Tensor]]:
        """The kept groups of all rounds as rollouts, texts, problems, rewards, components."""
        size, parts, texts, problems, rows = self.config.group_size, [], [], [], []
        offset = 0
        for number, (chosen, rollouts, round_texts, *_) in enumerate(rounds):
            groups = [group for round_, group in kept if round_ == number]
            parts += [rollouts.select_groups(groups)] if len(groups) < len(chosen) else [rollouts]
            problems += [chosen[group] for group in groups]
            inside = [group * size + i for group in groups for i in range(size)]
            texts += [round_texts[row] for row in inside]
            rows += [offset + row for row in inside]
            offset += len(round_texts)
        chosen_rows = torch.tensor(rows)
        scores = [scored for *_, scored in rounds]
        rewards = torch.cat([scored.rewards for scored in scores])[chosen_rows]
        components = {
            name: torch.cat([scored.components[name] for scored in scores])[chosen_rows]
            for name in scores[0].components
        }
        parts = [part for part in parts if part.prompts]
        return Rollouts.join(parts, self.tokenizer.pad_token_id), texts, problems, rewards, components
