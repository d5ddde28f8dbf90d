"""A run that fails while it trains: said in one line, and recorded with its last good weights and the batch.

A failed run is a result: its seed counts in the report, and the study goes on. So the command ends with a status of
its own, which the rules take for a job that is done.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch

from algos.training.experience import Experience
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.tokens import load_tokenizer
from algos.training.rewards.own import RewardFailure
from algos.training.stage.masking import masked
from algos.training.stage.record import BATCH, Record
from algos.training.update.optimize import master_of

FAILED = 3  # exit status of a run that is recorded as failed
FAILURES = (FloatingPointError, RewardFailure)  # what ends a run and not the study
MOST_BYTES = 1_000_000  # of the batch on disk
COLLAPSED = 0.05  # of the first step's entropy: below this share the policy has stopped to explore


def check_experience(experience: Experience, problems: list[dict]) -> None:
    """Raise FloatingPointError unless all rewards (B,) and log-probabilities (B, T) of a rollout batch are finite."""
    rewards, rollouts = experience.rewards, experience.rollouts
    bad = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
    if bad:
        row = problems[experience.problems[bad[0] // rollouts.group_size]].get("id")
        first = rewards[bad[0]].item()
        raise FloatingPointError(
            f"{len(bad)} of {len(rewards)} rewards are not finite: {first}, of row {row!r}, for one"
        )
    if not torch.isfinite(rollouts.sampler_logprobs[rollouts.response_mask]).all():
        raise FloatingPointError(
            "log-probabilities of sampled tokens are not finite: the policy diverged; try a lower learning rate"
        )


def batch_rows(
    problems: Iterable[dict], texts: list[str], rewards: Iterable[float] | None, components: Mapping[str, Any]
) -> list[dict]:
    """A batch of B responses as rows for the disk; problems are one a response, rewards None where there are none."""
    scores = [None] * len(texts) if rewards is None else [float(reward) for reward in rewards]
    return [
        {
            "id": problem.get("id"),
            "prompt": problem["prompt"],
            "response": text,
            "reward": score,
            **{name: float(values[i]) for name, values in components.items()},
        }
        for i, (problem, text, score) in enumerate(zip(problems, texts, scores, strict=True))
    ]


def write_batch(record: Record, rows: list[dict], error: Exception) -> None:
    """The batch as JSONL, at most MOST_BYTES of it: the rows that broke the run come first."""
    broke = getattr(error, "text", None)
    rows = sorted(rows, key=lambda row: row["response"] != broke and _finite(row["reward"]))
    size = 0
    with (record.out / BATCH).open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps({k: v if _finite(v) else str(v) for k, v in row.items()}, ensure_ascii=False) + "\n"
            size += len(line.encode())
            if size <= MOST_BYTES:
                file.write(line)


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def fail(
    record: Record, error: Exception, step: int, policy, tokenizer, start: str, rows: list[dict], **facts
) -> NoReturn:
    """Record a run that has failed in a step, with its last good checkpoint, and end the process with FAILED.

    The policy is good as long as its weights are finite, as no step is taken with a loss or a gradient that is not;
    else the checkpoint that the run started from is its last good one.
    """
    good = all(torch.isfinite(master_of(p)).all() for p in policy.parameters())
    if not good:
        policy, tokenizer = load_policy(start, torch.device("cpu")), load_tokenizer(start)
    save_policy(policy, tokenizer, record.out / "checkpoint")
    write_batch(record, rows, error)
    kept = "its last policy" if good else "the checkpoint that it started from"
    reason = masked(f"step {step}: {str(error).rstrip('.')}")
    record.finish("failed", failure={"step": step, "reason": reason, "checkpoint": kept}, **facts)
    said = f"failed: {reason}. Kept: {kept}, and the batch in {record.out / BATCH}."
    for stream in {sys.stderr, sys.stderr if sys.stderr.isatty() else sys.stdout}:  # a log file is not read at once
        print(said, file=stream, flush=True)
    raise SystemExit(FAILED)


def collapse(record: Record) -> dict[str, Any]:
    """The first step whose entropy is below COLLAPSED of the first one's, which is said in one line; else nothing."""
    lines = (record.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entropies = [(line["step"], line["entropy"]) for line in map(json.loads, lines) if line.get("entropy") is not None]
    for step, entropy in entropies:
        if entropy < COLLAPSED * entropies[0][1]:
            print(
                f"warning: the entropy collapsed: {entropy:.2g} nats a token in step {step}, after "
                f"{entropies[0][1]:.2g} in step {entropies[0][0]}",
                file=sys.stderr,
            )
            return {"entropy_collapse_step": step}
    return {}
