"""The examples of supervised training and of distillation, and their order: the same for our trainer and for TRL's."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from algos.pieces.types import Batch, Rollouts, make_batch
from algos.training.models.tokens import encode_prompt, encode_response
from algos.training.supervised.config import DistillationConfig, SupervisedConfig

Example = tuple[list[int], list[int]]  # token ids of a prompt and of its response
LENGTH_POOL = 8  # batches whose examples are sorted by length together, to save padding


def example_batches(lengths: list[int], steps: int, batch_size: int, seed: int):
    """Example indices of each optimizer step: shuffled passes over all, examples of similar length together."""
    rng = random.Random(seed)
    pending: list[list[int]] = []
    order: list[int] = []
    for _ in range(steps):
        if not pending:
            while len(order) < LENGTH_POOL * batch_size:
                epoch = list(range(len(lengths)))
                rng.shuffle(epoch)
                order += epoch
            pool, order = order[: LENGTH_POOL * batch_size], order[LENGTH_POOL * batch_size :]
            pool.sort(key=lambda i: lengths[i])
            pending = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
            rng.shuffle(pending)
        yield pending.pop()


def encode_examples(tokenizer, rows: list[dict]) -> list[Example]:
    """Rows with prompt and answer as token ids, each response with its end-of-sequence."""
    return [(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["answer"])) for row in rows]


def ordered_batches(examples: list[Example], config: SupervisedConfig) -> list[list[Example]]:
    """The examples of each optimizer step: what both trainers train on, in this order."""
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    chosen = example_batches(lengths, config.steps, config.batch_size, config.seed)
    return [[examples[i] for i in step] for step in chosen]


def as_batch(examples: list[Example], pad_id: int, device) -> Batch:
    """(prompt, response) token ids as a batch; rewards and sampler log-probabilities are not used."""
    width = max(len(response) for _, response in examples)
    ids = torch.full((len(examples), width), pad_id)
    for row, (_, response) in enumerate(examples):
        ids[row, : len(response)] = torch.tensor(response)
    mask = torch.arange(width) < torch.tensor([len(response) for _, response in examples])[:, None]
    rollouts = Rollouts(
        [prompt for prompt, _ in examples],
        1,
        ids.to(device),
        mask.to(device),
        torch.zeros_like(ids, dtype=torch.float32, device=device),
        torch.zeros(len(examples), dtype=torch.bool, device=device),
    )
    number: dict[tuple[int, ...], int] = {}
    groups = [number.setdefault(tuple(prompt), len(number)) for prompt, _ in examples]
    return replace(make_batch(rollouts, torch.zeros(len(examples)), pad_id), groups=torch.tensor(groups, device=device))


@dataclass(frozen=True)
class Step:
    """Where one optimizer step's text comes from."""

    on_policy: bool
    rows: list[int]  # of the prompts if on_policy, else of the given examples


@dataclass(frozen=True)
class Texts:
    """What the steps draw from: prompts for the student, and given examples."""

    prompts: list[list[int]]  # token ids
    examples: list[Example]


def schedule(config: DistillationConfig, texts: Texts) -> list[Step]:
    """Every step's source and rows, a function of the seed alone: a coin a step, shuffled passes over either source."""
    coins = random.Random(config.seed)
    prompts, examples = (_passes(len(rows), config.seed) for rows in (texts.prompts, texts.examples))
    steps = []
    for _ in range(config.steps):
        on_policy = coins.random() < config.on_policy_share
        source, count = (prompts, config.prompts_per_step) if on_policy else (examples, config.responses_per_step)
        steps.append(Step(on_policy, [next(source) for _ in range(count)]))
    return steps


def _passes(rows: int, seed: int) -> Iterator[int]:
    """Row numbers without end, in shuffled passes over all rows."""
    rng, order = random.Random(seed), list(range(rows))
    while order:
        rng.shuffle(order)
        yield from order
