"""Memory of the logits in an update at a vocabulary of 151,936 and 4,096 response tokens in one micro-batch.

Ours is the project's update with the run's settings. Full is a loss that keeps all logits: their log-softmax and the
gradient of both. Only tensors with the vocabulary as last dimension count; a tied head's weights do not have it.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from algos.training import train, update
from algos.training.config import RunConfig, parse
from algos.training.models import load_policy
from algos.training.types import Rollouts, make_batch
from evaluation.bench.live import LiveBytes
from evaluation.bench.output import row
from evaluation.bench.parts import Bench
from evaluation.bench.workload import SHAPES, random_model, synthetic_workload
from evaluation.settings import SettingsError

VOCABULARY, RESPONSES, LENGTH, PROMPT = 151_936, 16, 256, 8


def random_rollouts(vocabulary: int, responses: int, length: int, device) -> Rollouts:
    """Two responses to a prompt, all of one length."""
    generator = torch.Generator().manual_seed(0)

    def ids(*size: int) -> Tensor:
        return torch.randint(2, vocabulary, size, generator=generator)

    prompts = [ids(PROMPT).tolist() for _ in range(responses // 2)]
    mask = torch.ones(responses, length, dtype=torch.bool, device=device)
    cut = torch.zeros(responses, dtype=torch.bool, device=device)
    return Rollouts(prompts, 2, ids(responses, length).to(device), mask, torch.zeros(mask.shape, device=device), cut)


def full_loss(policy, batch, temperature: float) -> Tensor:
    """The policy gradient with every logit kept, (B, T, V) in float32; all prompts have PROMPT tokens."""
    states = policy.base_model(input_ids=batch.sequence_ids, use_cache=False).last_hidden_state  # (B, L, H)
    logits = policy.get_output_embeddings()(states[:, PROMPT - 1 : -1]).float() / temperature
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, batch.response_ids[..., None]).squeeze(-1)
    return -(logprobs * batch.advantages).mean()


def available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


def predictor(bench: Bench) -> Iterator[dict]:
    """The largest relative difference between a phase's measured peak and the one predicted without weights."""
    try:
        from evaluation.memory.check import CASES, FAST, compare
    except ImportError:  # a branch of its own
        yield row("predictor", "not measured", None, note="this commit has no evaluation.memory.check")
        return
    for name in FAST[:1] if bench.toy else FAST:
        found = compare(CASES[name])
        worst = max(found, key=lambda phase: abs(phase["ratio"] - 1))
        note = f"{worst['phase']}: {worst['predicted_bytes']:,} predicted, {worst['measured_bytes']:,} measured"
        target = "" if bench.toy else "predictor"
        yield row(f"predictor, {name}", "relative_difference", abs(worst["ratio"] - 1), "", note, target=target)


def logits(bench: Bench) -> Iterator[dict]:
    """Ours against full, then the predictor's differences."""
    yield from update_share(bench)
    yield from predictor(bench)


def update_share(bench: Bench) -> Iterator[dict]:
    """Bytes of logits alive at the fullest moment of one update."""
    vocabulary, responses, length = (2000, 4, 16) if bench.toy else (VOCABULARY, RESPONSES, LENGTH)
    while bench.device.type == "cpu" and 5 * 4 * vocabulary * responses * length > available_bytes() and responses > 2:
        responses //= 2
    torch.set_num_threads(bench.threads)
    shape = replace(SHAPES["toy"], vocab_size=vocabulary, hidden_size=64, intermediate_size=128)
    workload = synthetic_workload(bench.folder(), shape, 8, PROMPT)
    settings = bench.settings(
        "grpo",
        prompts_per_step=responses // 2,
        group_size=2,
        minibatches=1,
        micro_batch_size=responses,
        max_response_tokens=length,
    )
    config = parse(RunConfig, settings, "settings")
    with suppress(SettingsError):  # one micro-batch, however long; a setting that came later than this file
        config = parse(RunConfig, {**settings, "micro_batch_tokens": responses * (PROMPT + length)}, "settings")
    random_model(workload.policy).save_pretrained(workload.policy)
    learner, _ = train.make_learner(config, str(workload.policy), None, bench.device)
    algorithm, estimator = config.algorithm_entry, config.algorithm_config
    rollouts = random_rollouts(vocabulary, responses, length, bench.device)
    batch = make_batch(rollouts, torch.arange(responses, dtype=torch.float32) % 2, 0)
    with LiveBytes(vocabulary) as live:
        batch = update.prepare(batch, learner, config, estimator)[0]
        before = live.restart()
        batch = update.with_advantages(batch, algorithm, estimator)
        generator = torch.Generator(bench.device).manual_seed(0)
        update.update(batch, learner, config, estimator, generator)
    policy = load_policy(workload.policy, bench.device)
    with LiveBytes(vocabulary) as full:
        full_loss(policy, batch, config.temperature).backward()
    case = f"vocabulary {vocabulary:,}, {responses * length:,} response tokens"
    yield row(case, "full_bytes", float(full.peak), "bytes")
    yield row(case, "update_bytes", float(live.peak), "bytes")
    yield row(case, "logprobs_bytes", float(before), "bytes", "without gradient, where the trainer computes them")
    target = "" if bench.toy else "logits"
    yield row(case, "update_share", live.peak / full.peak, "x", "update / full", target=target)
