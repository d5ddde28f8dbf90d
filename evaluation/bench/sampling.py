"""Sampling beside others: our sampler, transformers' generate, and vLLM where it is installed.

generation: the same rows and forced lengths, seconds per token. engines: responses that end by themselves, so that each
engine samples other texts; compared are tokens per second, and the accuracy, which is the same but for chance.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from algos.pieces.settings import from_dict
from algos.training.config import RunConfig
from algos.training.models.checkpoints import load_policy
from algos.training.models.tokens import encode_prompt, encode_prompts, end_ids, load_tokenizer
from algos.training.sampling.respond import graded, opened, sampled
from algos.training.sampling.sampler import decode_ids, sample
from evaluation.bench.measure import timed
from evaluation.bench.output import row
from evaluation.bench.parts import RESPONSE_TOKENS, Bench, ratio_row
from evaluation.bench.work import decode_bytes, generate_flops
from evaluation.config import EvaluationConfig
from evaluation.statistics import Z95, clustered_standard_error
from evaluation.tasks.files import read_jsonl

NATURAL_LIMIT = 48  # the default study's limit
GRADED = ("correct", "correct_flexible", "format")


def generation(bench: Bench) -> Iterator[dict]:
    """Sampling beside transformers.generate: the same policy, prompts, rows and lengths; seconds per token."""
    torch.set_num_threads(bench.threads)
    config: RunConfig = from_dict(RunConfig, bench.settings("grpo"), "settings")
    for case, length, limit in (("forced", None, config.max_response_tokens), ("natural", RESPONSE_TOKENS, None)):
        limit = limit or (8 if bench.toy else NATURAL_LIMIT)
        workload = bench.workload(length)
        tokenizer, policy = load_tokenizer(workload.policy), load_policy(workload.policy, bench.device)
        rows = read_jsonl(workload.prompts)[: config.prompts_per_step]
        prompts = [encode_prompt(tokenizer, problem["prompt"]) for problem in rows]
        generator = torch.Generator(bench.device).manual_seed(0)
        torch.manual_seed(0)
        common = (policy, tokenizer, prompts, config.group_size, limit)
        sides = {"ours": partial(_sample, *common, generator), "transformers": partial(_generate, *common)}
        tokens: dict[str, list[int]] = {side: [] for side in sides}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(1 + bench.steps):
            for side in list(sides) if number % 2 else list(reversed(sides)):
                seconds, count = timed(sides[side], bench.device)
                if number:
                    times[side].append(seconds)
                    tokens[side].append(count)
        name = f"generation, batch {config.responses_per_step}, {case}"
        per_token = {side: [s / n for s, n in zip(times[side], tokens[side], strict=True)] for side in sides}
        for side in sides:
            seconds = sorted(per_token[side])[len(per_token[side]) // 2]
            mean = sum(tokens[side]) / len(tokens[side]) / config.responses_per_step
            yield row(f"{name}, {side}", "tokens_per_second", 1 / seconds, "tokens/s", f"{mean:.1f} tokens a response")
            work = generate_flops(
                workload.shape, workload.prompt_tokens, mean, config.responses_per_step, config.prompts_per_step
            )
            spent = seconds * mean * config.responses_per_step
            yield row(f"{name}, {side}", "mfu", work / spent / bench.limits["matmul_flops"], "", "of the matmul peak")
            read = decode_bytes(workload.shape, workload.prompt_tokens, mean, config.responses_per_step)
            share = read / bench.limits["copy_bytes_per_second"] / spent
            yield row(f"{name}, {side}", "decode_bandwidth_share", share, "", "of the time, to read weights and cache")
        target = "generation" if case == "forced" and not bench.toy else ""
        note = f"transformers' seconds per token / ours, {bench.steps} pairs"
        yield ratio_row(name, per_token["transformers"], per_token["ours"], note, target)


def _sample(policy, tokenizer, prompts: list[list[int]], group: int, limit: int, generator) -> int:
    """Sample with our sampler; the number of generated tokens."""
    return sample(policy, tokenizer, prompts, group, limit, 1.0, generator).response_tokens


def _generate(policy, tokenizer, prompts: list[list[int]], group: int, limit: int) -> int:
    """Sample the same rows with transformers.generate; the number of generated tokens."""
    return sum(map(len, generated(policy, tokenizer, prompts, group, limit)))


def engines(bench: Bench) -> Iterator[dict]:
    """Tokens per second of each engine, its accuracy, and the ratios to transformers' generate."""
    torch.set_num_threads(bench.threads)
    run = bench.settings("grpo", max_response_tokens=bench.run.get("max_response_tokens", 48))
    wanted = {key: run[key] for key in ("max_response_tokens", "dtype", "device") if key in run}
    config: EvaluationConfig = from_dict(EvaluationConfig, {**wanted, "samples": run.get("group_size", 8)}, "settings")
    count = run.get("prompts_per_step", 32)
    workload = bench.workload(length=config.max_response_tokens / 2, problems=count * (1 + bench.steps))
    problems = read_jsonl(workload.prompts)
    tokenizer = load_tokenizer(workload.policy)
    policy = load_policy(workload.policy, bench.device, config.dtype)
    with ExitStack() as stack:
        sides: dict[str, Callable[[list[dict]], list[dict]]] = {
            "generate": partial(generate, policy, tokenizer, config)
        }
        for name in ("transformers", "vllm"):
            if name == "transformers" or importlib.util.find_spec("vllm"):
                with_engine = replace(config, engine=name)
                engine = stack.enter_context(
                    closing(opened(with_engine, policy, tokenizer, str(workload.policy), problems))
                )
                generator = torch.Generator(bench.device).manual_seed(0)
                sides[name] = partial(_engine, engine, policy, tokenizer, with_engine, generator)
        yield from _in_turns(bench, sides, problems, count, f"{config.dtype}, {count * config.samples} responses")


def _in_turns(bench: Bench, sides: dict, problems: list[dict], count: int, case: str) -> Iterator[dict]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    graded: dict[str, list[list[dict]]] = {side: [] for side in sides}
    for turn in range(1 + bench.steps):
        part = problems[turn * count : (turn + 1) * count]
        for side in list(sides) if turn % 2 else list(reversed(sides)):
            took, found = timed(partial(sides[side], part), bench.device)
            if turn:  # the first does not count
                seconds[side].append(took)
                graded[side].append(found)
    per_token = {
        side: [s / sum(r["tokens"] for r in found) for s, found in zip(seconds[side], graded[side], strict=True)]
        for side in sides
    }
    for side in sides:
        responses = [response for found in graded[side] for response in found]
        rate = sum(response["tokens"] for response in responses) / sum(seconds[side])
        note = f"{np.mean([response['tokens'] for response in responses]):.1f} tokens a response"
        yield row(f"{case}, {side}", "tokens_per_second", rate, "tokens/s", note)
        for name in GRADED:
            grid = np.array([r[name] for r in responses], dtype=float).reshape(bench.steps * count, -1)
            mean, half = grid.mean(), Z95 * clustered_standard_error(grid)
            yield row(f"{case}, {side}", name, mean, "", "", mean - half, mean + half)
    for side in sides:
        if side != "generate":
            note = f"generate's seconds per token / {side}'s, {bench.steps} pairs"
            yield ratio_row(f"{case}, {side}", per_token["generate"], per_token[side], note)


def _engine(engine, policy, tokenizer, config, generator, problems: list[dict]) -> list[dict]:
    return [
        response
        for part, _ in sampled(engine, policy, tokenizer, problems, config.samples, config, generator)
        for response in part
    ]


@torch.no_grad()
def generated(policy, tokenizer, prompts: list[list[int]], group: int, limit: int, temperature=1.0) -> list[list[int]]:
    """`group` responses to each prompt by transformers.generate, each up to and with its first end token."""
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    pad, device, ends = tokenizer.pad_token_id, policy.device, end_ids(tokenizer)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts for _ in range(group)], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(group)], device=device)
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad,
        eos_token_id=ends,
    )
    responses = policy.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
    ended = torch.isin(responses, torch.tensor(ends, device=device)).int()
    lengths = ((ended.cumsum(dim=1) - ended) == 0).sum(dim=1)
    return [row[:length] for row, length in zip(responses.tolist(), lengths.tolist(), strict=True)]


def generate(policy, tokenizer, config, problems: list[dict]) -> list[dict]:
    """Graded responses to problems, as the engines of a study give them."""
    prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in problems])
    limit = config.max_response_tokens
    ids = generated(policy, tokenizer, prompts, config.samples, limit, config.temperature)
    return [
        graded(problems[i // config.samples], i % config.samples, text, len(row), row[-1] not in end_ids(tokenizer))
        for i, (row, text) in enumerate(zip(ids, decode_ids(tokenizer, ids), strict=True))
    ]
