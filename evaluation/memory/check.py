"""Predictions of memory beside measurements, on small models on this machine: results/memory/check.csv.

Measurements are the counts of LiveTensors in two real steps. The allocator's column is PyTorch's own account of the
second update, with the scratch memory of kernels: it checks the counter. Predictions must be within TOLERANCE.
"""

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from algos.pieces.settings import DType, SettingsError
from algos.training.config import LOGITS_AT_ONCE, RunConfig
from algos.training.stage.config import OptimizerConfig, OptimizerName
from evaluation.memory.closed_form import QWEN, shape_config
from evaluation.memory.dry_run import Workload, measure, measure_update, predict

TOLERANCE = 0.1
VOCABULARY = 151_936  # of Qwen2.5
RULES, LEARNED = {"correctness": 1.0}, {"reward_model": 1.0}


@dataclass(frozen=True)
class Case:
    """A small run. hidden and vocabulary are the model's; the rest are settings."""

    algorithm: str = "grpo"
    settings: dict = field(default_factory=dict)
    rewards: dict = field(default_factory=lambda: RULES)
    optimizer: OptimizerName = "adamw"
    dtype: DType = "float32"
    checkpointing: bool = False
    hidden: int = 128
    layers: int = 3
    vocabulary: int = 512
    prompts: int = 8
    group: int = 4
    prompt_tokens: int = 32
    response_tokens: int = 48
    micro_batch_tokens: int = 512
    logits_at_once: int | None = -1  # -1: the default

    def workload(self) -> Workload:
        heads = max(self.hidden // 32, 2)
        model = shape_config(
            QWEN, self.hidden, 11 * self.hidden // 4, self.layers, heads, heads // 2, self.vocabulary, True
        )
        at_once: dict[str, Any] = {} if self.logits_at_once == -1 else {"logits_at_once": self.logits_at_once}
        run = RunConfig(
            self.algorithm,
            0,
            self.settings,
            prompts_per_step=self.prompts,
            group_size=self.group,
            minibatches=2,
            micro_batch_tokens=self.micro_batch_tokens,
            max_response_tokens=self.response_tokens,
            rewards=self.rewards,
            optimizer=OptimizerConfig(name=self.optimizer),
            dtype=self.dtype,
            gradient_checkpointing=self.checkpointing,
            device="cpu",
            **at_once,
        )
        return Workload(run, model, self.prompt_tokens)


KL = {"kl_coef": 0.05}
CASES = {
    "ppo": Case("ppo"),
    "ppo, reference and reward model": Case("ppo", KL, LEARNED),
    "ppo, shared critic": Case("ppo", {"critic": "shared"}),
    "grpo, rules": Case(),
    "grpo, reference and reward model": Case("grpo", KL, LEARNED),
    "gspo": Case("gspo"),
    "grpo, adamw_8bit": Case(optimizer="adamw_8bit"),
    "grpo, adafactor": Case(optimizer="adafactor"),
    "grpo, bfloat16": Case(dtype="bfloat16"),
    "grpo, checkpointing": Case(checkpointing=True, layers=6),
    "ppo, critic of 1 layer, bfloat16": Case("ppo", {"critic_layers": 1}, dtype="bfloat16"),
    "grpo, long responses": Case(prompts=4, response_tokens=160, micro_batch_tokens=1024),
    "grpo, long prompts": Case(prompts=4, prompt_tokens=256, response_tokens=32, micro_batch_tokens=1024),
    "grpo, groups of 16": Case(prompts=4, group=16),
    "grpo, groups of 2": Case(group=2),
    "grpo, hidden size 64": Case(hidden=64),
    "grpo, hidden size 256, 6 layers": Case(hidden=256, layers=6),
    "grpo, vocabulary 151,936": Case(hidden=64, vocabulary=VOCABULARY, prompts=4),
    "grpo, vocabulary 151,936, pieces of 27": Case(
        hidden=64, vocabulary=VOCABULARY, prompts=4, logits_at_once=27 * VOCABULARY
    ),
    "ppo, vocabulary 151,936, adafactor": Case(
        "ppo", KL, hidden=64, vocabulary=VOCABULARY, prompts=4, optimizer="adafactor"
    ),
}
FAST = ("ppo, shared critic", "grpo, reference and reward model", "grpo, adafactor", "grpo, groups of 16")


def compare(case: Case, allocator: bool = False) -> list[dict]:
    """One row per phase: predicted and measured peak in bytes."""
    torch.set_num_threads(1)  # such small operations wait for one another's threads
    workload = case.workload()
    predicted, measured = predict(workload), measure(workload, allocator)
    rows = []
    for phase, peak in measured.items():
        rows.append(
            {
                "phase": phase,
                "predicted_bytes": predicted[phase].bytes,
                "measured_bytes": peak.bytes,
                "ratio": predicted[phase].bytes / peak.bytes,
                "allocator_bytes": peak.allocator_bytes or "",
                "measured_logits_bytes": peak.by("category").get("logits", 0),
            }
        )
    return rows


def logits_bytes(at_once: int | None, tokens: int = 4096) -> int:
    """Measured bytes of logits and their gradients at the update's peak, with so many tokens in a micro-batch.

    at_once: RunConfig.logits_at_once; None keeps the logits of all tokens at once.
    """
    torch.set_num_threads(1)
    case = Case(
        "gspo",
        hidden=32,
        layers=1,
        vocabulary=VOCABULARY,
        prompts=2,
        prompt_tokens=8,
        response_tokens=tokens // 4 - 2,
        micro_batch_tokens=tokens,
        logits_at_once=at_once,
    )
    return measure_update(case.workload()).by("category")["logits"]


def check(out: Path) -> None:
    """Run all cases, print and write them. Raises SettingsError if a prediction is off by more than TOLERANCE."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    print(
        f"{'case':<40}{'phase':<10}{'predicted, MB':>14}{'measured, MB':>14}{'ratio':>8}{'allocator, MB':>15}{'s':>6}"
    )
    for name, case in CASES.items():
        start = time.perf_counter()
        for row in compare(case, allocator=True):
            rows.append({"case": name, **row})
            allocated = f"{row['allocator_bytes'] / 1e6:.3f}" if row["allocator_bytes"] else ""
            print(
                f"{name:<40}{row['phase']:<10}{row['predicted_bytes'] / 1e6:>14.3f}{row['measured_bytes'] / 1e6:>14.3f}"
                f"{row['ratio']:>8.4f}{allocated:>15}{time.perf_counter() - start:>6.0f}",
                flush=True,
            )
    with (out / "check.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    full, pieces = logits_bytes(None), logits_bytes(LOGITS_AT_ONCE)
    print(
        f"logits at the update's peak, vocabulary {VOCABULARY:,}, 4,096 tokens: {full / 1e9:.3f} GB whole, "
        f"{pieces / 1e9:.3f} GB in pieces, {pieces / full:.3f} of it"
    )
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"furthest from 1: {worst['ratio']:.4f} ({worst['case']}, {worst['phase']}); written to {out / 'check.csv'}")
    if abs(worst["ratio"] - 1) > TOLERANCE:
        raise SettingsError(f"{worst['case']}, {worst['phase']}: predicted / measured is {worst['ratio']:.3f}.")
