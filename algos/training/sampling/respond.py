"""Graded responses of a checkpoint to problems: what preferences, rejection sampling and evaluation share."""

import random
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy, resolve_device
from algos.training.models.tokens import encode_prompts, load_tokenizer
from algos.training.sampling.engine import Engine, Sampling
from algos.training.sampling.engines import ROWS_AT_ONCE, make_engine
from algos.training.sampling.sampler import decode
from algos.training.stage.saves import Saves
from evaluation.tasks import check_prompts, check_rows
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.grader import grader_of

GREEDY = -1  # the `sample` number of the greedy response


def draw_problems(path: str, count: int, seed: int, where: str) -> list[dict]:
    """`count` problems of a JSONL file, chosen by the seed. Raises SettingsError if there are fewer."""
    problems = read_jsonl(path)
    check_rows(problems, path)
    check_prompts(problems, path)
    if count > len(problems):
        raise SettingsError(f"{where} is {count}, but {path} has {len(problems)} problems.")
    return random.Random(seed).sample(problems, count)


@dataclass
class State:
    """All that a batch of problems changes."""

    generator: torch.Generator
    rows: list[dict] = field(default_factory=list)  # the responses so far


def respond(
    checkpoint: str,
    problems: list[dict],
    samples: int,
    config,
    progress=None,
    budget_tokens: int | None = None,
    saves: Saves | None = None,
) -> list[dict]:
    """`samples` graded responses to every problem, sampled from the checkpoint; samples 0: one greedy response.

    config has seed, temperature, max_response_tokens, engine, vllm, device and dtype. Rows are in the order of the
    problems. With budget_tokens, the batch of problems that reaches so many tokens is the last. saves: of the stage.
    """
    device = resolve_device(config.device)
    tokenizer, policy = load_tokenizer(checkpoint), load_policy(checkpoint, device, config.dtype)
    state = State(torch.Generator(device).manual_seed(config.seed))
    if saves is not None:
        saves.hold(state)
    rows, group = state.rows, max(samples, 1)

    def enough() -> bool:
        return budget_tokens is not None and sum(row["tokens"] for row in rows) >= budget_tokens

    with closing(opened(config, policy, tokenizer, checkpoint, problems)) as engine:
        left = [] if enough() else problems[len(rows) // group :]
        for part, _ in sampled(engine, policy, tokenizer, left, samples, config, state.generator):
            rows += part
            if progress is not None:
                progress.update(len(rows) // group, accuracy=float(np.mean([r["correct"] for r in rows])))
            if saves is not None:
                saves.after_step()
            if enough():
                break
    return rows


def opened(config, policy, tokenizer, checkpoint: str, problems: list[dict]) -> Engine:
    """The engine of a stage's settings, with the policy's weights, which are those of the checkpoint."""
    return make_engine(
        config, tokenizer, policy, checkpoint, encode_prompts(tokenizer, [p["prompt"] for p in problems])
    )


def sampled(engine: Engine, policy, tokenizer, problems: list[dict], samples: int, config, generator):
    """Yields the graded rows of some of the problems, in their order, and the rollouts that they come from."""

    group, temperature = max(samples, 1), config.temperature if samples else 0.0
    sampling = Sampling(group, config.max_response_tokens, temperature)
    chunk = max(getattr(config, "rows_at_once", ROWS_AT_ONCE) // group, 1)
    for start in range(0, len(problems), chunk):
        part = problems[start : start + chunk]
        prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in part])
        rollouts = engine.sample(policy, prompts, sampling, generator)
        lengths, truncated = rollouts.response_mask.sum(dim=1).tolist(), rollouts.truncated.tolist()
        numbers = range(samples) if samples else (GREEDY,)
        yield (
            [
                graded(part[i // group], numbers[i % group], text, lengths[i], truncated[i])
                for i, text in enumerate(decode(tokenizer, rollouts))
            ],
            rollouts,
        )


def graded(problem: dict, number: int, response: str, tokens: int, truncated: bool) -> dict:
    """One response's row: what it said, what was understood, and whether that is right."""
    grader = grader_of(problem)
    gold, strict, flexible = grader.gold(problem), grader.strict(response), grader.flexible(response)
    return {
        "problem": problem["id"],
        "sample": number,
        "response": response,
        "tokens": tokens,
        "truncated": truncated,
        "format": grader.has_format(response),
        "strict": strict,
        "flexible": flexible,
        "gold": " | ".join(gold),
        "correct": grader.correct(strict, gold),
        "correct_flexible": grader.correct(flexible, gold),
    }
