"""Which estimators are biased, and how much: python -m evaluation.bias.exact [--samples N] [--seed S] [--out FILE.csv]

On a toy policy small enough to enumerate (evaluation.bias.toy) the policy gradient of E[r] is a finite sum. So is the
expectation of every estimator: all batches of P prompts and G responses, each weighted by its probability, go through
the project's own advantages and losses (evaluation.bias.gradients). An estimator called unbiased here is unbiased to
rounding, not within an error bar. Batches sampled one by one, on a plainer path, check the enumeration.

Verdicts are computed from the numbers (evaluation.bias.measure). The causes after a verdict are read off the settings.
tests/evaluation/test_exact.py checks the causes: an estimator without its causes is unbiased up to a constant factor,
and each cause alone makes the estimator biased.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError, refusals
from evaluation.bias.gradients import Policies, sampled_gradients
from evaluation.bias.measure import TOLERANCE, Bias, configured, measure, relative
from evaluation.bias.toy import CRITICS, Toy, gradient_of, make_toy, prefix_kl, response_kl

GROUP_SIZE, SMALL_GROUP = 3, 2
DISTANCE, SAMPLER_DISTANCE = 0.8, 2.0  # of the old policy and of the sampler from the policy, in logits
UNCLIPPED = {"clip_low": 1.0, "clip_high": 1.0e9}  # a ratio is never below 0
PLAIN = {"baseline": "leave_one_out", "scale": "none", "aggregation": "seq-mean-token-sum"}
MEAN = PLAIN | {"aggregation": "seq-mean-token-mean"}


def number(x: float) -> str:
    if math.isnan(x):
        return "-"
    return "0" if abs(x) < TOLERANCE else f"{x:.1e}" if abs(x) < 1e-3 else f"{x:.4f}"


def columns(found: Bias) -> dict[str, float | str]:
    return {
        "cosine": found.cosine,
        "c": found.factor,
        "rest": found.rest,
        "bias": found.bias,
        "variance": found.variance,
        "verdict": found.words,
    }


def deviation(sampled: Tensor, mean: Tensor) -> float:
    """How far the mean of sampled batches (N, P, T, V) is from `mean`: root mean square in standard errors, about 1."""
    error = sampled.std(dim=0) / len(sampled) ** 0.5
    moving = error > 0
    return float((((sampled.mean(dim=0) - mean) / error)[moving] ** 2).mean().sqrt())


def all_algorithms(toy: Toy, samples: int, generator: torch.Generator) -> Iterator[dict]:
    entries = [(name, name, "exact") for name in ALGORITHMS]
    entries += [(f"{name}, {critic} critic", name, critic) for name in ("ppo", "ppo_mc") for critic in CRITICS[1:]]
    for label, name, critic in entries:
        algorithm = ALGORITHMS[name]
        found = measure(algorithm, toy, GROUP_SIZE, critic)
        row = {"algorithm": label, **columns(found)}
        if samples:
            hparams = configured(algorithm)
            sampled = sampled_gradients(algorithm, hparams, toy, GROUP_SIZE, samples, generator, critic)
            row["sampled"] = deviation(sampled, found.mean)
        yield row


# label, algorithm, critic, changes that add up within an algorithm
STEPS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("grpo", "grpo", "exact", {}),
    ("  no standard deviation", "grpo", "exact", {"scale": "none"}),
    ("  and token sum", "grpo", "exact", {"aggregation": "seq-mean-token-sum"}),
    ("  and own response out of the baseline", "grpo", "exact", {"baseline": "leave_one_out"}),
    ("  and dynamic sampling", "grpo", "exact", {"dynamic_sampling": True}),
    ("ppo, wrong critic", "ppo", "wrong", {}),
    ("  not whitened", "ppo", "wrong", {"scale": "none"}),
    ("  and token sum", "ppo", "wrong", {"aggregation": "seq-mean-token-sum"}),
    ("  and lambda 1", "ppo", "wrong", {"gae_lambda": 1.0}),
    ("  lambda 0 instead", "ppo", "wrong", {"gae_lambda": 0.0}),
    ("  lambda 0, constant critic", "ppo", "constant", {"gae_lambda": 0.0}),
    ("  lambda 0, exact critic", "ppo", "exact", {"gae_lambda": 0.0}),
)


def step_by_step(toy: Toy, toy_binary: Toy) -> Iterator[dict]:
    """From GRPO to RLOO and from PPO to the policy gradient, one choice at a time."""
    settings: dict[str, Any] = {}
    for label, name, critic, change in STEPS:
        settings = settings | change if change else {}
        yield {"estimator": label, **columns(measure(ALGORITHMS[name], toy, GROUP_SIZE, critic, **settings))}
        if change == {"dynamic_sampling": True}:
            found = measure(ALGORITHMS[name], toy_binary, GROUP_SIZE, critic, **settings)
            yield {"estimator": "  the same with rewards 0 and 1", **columns(found)}


KL_TERMS: dict[str, dict[str, Any]] = {
    **{
        f"{kind} in reward, credit {credit}": {"kl_in": "reward", "kl_estimator": kind, "credit": credit}
        for kind, credit in product(("k1", "k2", "k3", "full"), ("response", "token"))
    },
    **{f"{kind} in loss": {"kl_in": "loss", "kl_estimator": kind} for kind in ("k1", "k2", "k3", "k3+", "full")},
    "full in loss, forward": {"kl_in": "loss", "kl_estimator": "full", "kl_direction": "forward"},
    "ratio x k1 in loss": {"kl_in": "loss", "kl_estimator": "k1", "kl_importance_weighted": True},
    "ratio x k3 in loss": {"kl_in": "loss", "kl_estimator": "k3", "kl_importance_weighted": True},
}


def kl_gradient(toy: Toy, policies: Policies, **settings) -> Tensor:
    """Expected gradient (P, T, V) of a KL term alone, coefficient 1, tokens summed."""
    silent = replace(toy, rewards=torch.zeros_like(toy.rewards))
    exact = gradient_of(response_kl(toy), policies.new)
    return -measure(ALGORITHMS["reinforce"], silent, 1, policies=policies, exact=exact, kl_coef=1.0, **settings).mean


def kl_terms(toy: Toy) -> Iterator[dict]:
    """The gradient of each placement and estimator of the KL, on-policy and with responses of another policy."""
    for where, old in (("", toy.logits), (", off-policy", toy.moved(DISTANCE))):
        policies = Policies.of(toy, old)
        exact = {
            "whole responses": gradient_of(response_kl(toy), policies.new),
            "per prefix": gradient_of(prefix_kl(toy, old), policies.new),
            "forward, per prefix": gradient_of(prefix_kl(toy, old, "forward"), policies.new),
        }
        for label, settings in KL_TERMS.items():
            if where and settings["kl_in"] == "reward":
                continue  # without a ratio on the policy term, no KL in the reward is right off-policy
            mean = kl_gradient(toy, policies, **settings)
            gaps = {name: relative(mean, g) for name, g in exact.items()}
            fits = [name for name, gap in gaps.items() if gap < TOLERANCE]
            none = "no gradient" if float(mean.norm()) < TOLERANCE else "none of them"
            yield {"KL term": label + where, **gaps, "verdict": f"gradient of the KL, {fits[0]}" if fits else none}


OFF_POLICY: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("no ratio", "rloo", {}),
    ("token ratio", "grpo", PLAIN | UNCLIPPED),
    ("product ratio", "grpo", PLAIN | UNCLIPPED | {"ratio": "product"}),
    ("token ratio, clipped at 0.2", "grpo", PLAIN),
    ("product ratio, clipped at 0.2", "grpo", PLAIN | {"ratio": "product"}),
    ("token ratio cut at 1.2, no gradient (cispo)", "cispo", PLAIN | {"is_max": 1.2}),
    ("token ratio, soft gate (sapo)", "sapo", PLAIN),
    ("token ratio, masked by probability (dppo)", "dppo", PLAIN),
    ("product ratio reshaped, no gradient (vespo)", "vespo", PLAIN),
    ("product ratio up to 1 where A < 0 (topr)", "topr", PLAIN),
    ("token ratio, token mean of each response", "grpo", MEAN | UNCLIPPED),
    ("geometric mean of token ratios (gspo)", "gspo", MEAN | UNCLIPPED),
    ("geometric mean, clipped at 3e-4 and 4e-4", "gspo", MEAN),
    ("geometric mean of clipped ratios (gmpo)", "gmpo", {"baseline": "leave_one_out", "scale": "none"}),
)


def off_policy(toy: Toy) -> Iterator[dict]:
    """Responses of an older policy; order: the power of a small distance with which the bias vanishes (0: it stays)."""
    for label, name, settings in OFF_POLICY:
        far, near, nearer = (
            measure(ALGORITHMS[name], toy, SMALL_GROUP, policies=Policies.of(toy, toy.moved(distance)), **settings)
            for distance in (DISTANCE, DISTANCE / 100, DISTANCE / 200)
        )
        order = math.log2(near.bias / nearer.bias) if nearer.bias > TOLERANCE else math.nan
        yield {"estimator": label, **columns(far), "order": order, "verdict": far.verdict}


CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    **{
        f"{level}_{how}, {low:g} to {high:g}": {
            "correction": f"{level}_{how}",
            "correction_low": low,
            "correction_high": high,
        }
        for level in ("token", "sequence")
        for how, low, high in (("truncate", 0.0, 1.0e9), ("truncate", 0.0, 2.0), ("mask", 0.5, 2.0))
    },
    "geometric_mask, 0.5 to 2": {"correction": "geometric_mask", "correction_low": 0.5, "correction_high": 2.0},
}


def corrections(toy: Toy) -> Iterator[dict]:
    """RLOO on responses of a sampler that differs from the trainer's policy."""
    policies = Policies.of(toy, old=toy.logits, sampler=toy.moved(SAMPLER_DISTANCE))
    for label, settings in CORRECTIONS.items():
        found = measure(ALGORITHMS["rloo"], toy, SMALL_GROUP, policies=policies, **settings)
        yield {"correction": label, **columns(found), "verdict": found.verdict}


def table(title: str, rows: list[dict]) -> str:
    names = list(rows[0])
    names.sort(key=lambda name: name == "verdict")  # words last
    cells = [names] + [[x if isinstance(x := row[name], str) else number(x) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    text = [
        "  ".join(
            cell.ljust(width) if isinstance(rows[0][name], str) else cell.rjust(width)
            for cell, width, name in zip(line, widths, names, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([title, *text, ""])


EXAMPLES = """Examples:
    {prog} --samples 0                 the enumeration alone
    {prog} --seed 1 --out exact.csv    other tables of the toy policy; all rows in a file
"""


def main(words: list[str] | None = None, prog: str = "python -m evaluation.bias.exact") -> None:
    """words: those of the command line, or else the process's own; prog: how the command is called there."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Bias and variance of every estimator, on a policy small enough to enumerate.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--samples", type=int, default=200, help="sampled batches that check the enumeration; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the toy's tables and of the sampled batches")
    parser.add_argument("--out", help="CSV file of all tables")
    args = parser.parse_args(words)
    with refusals():
        if args.samples < 0:
            raise SettingsError(f"--samples must be at least 0, got {args.samples}.")
    torch.set_num_threads(1)
    toy, generator = make_toy(args.seed), torch.Generator().manual_seed(args.seed)

    def gap(distance):  # KL of a moved policy to the policy
        moved = replace(toy, logits=toy.moved(distance), ref_logits=toy.logits)
        return float(response_kl(moved)(moved.logits))

    sections = {
        f"On-policy, P = 2 prompts, G = {GROUP_SIZE}, KL left out": all_algorithms(toy, args.samples, generator),
        "One choice at a time": step_by_step(toy, make_toy(args.seed, binary=True)),
        "KL terms alone: distance from the gradient of KL(policy || reference)": kl_terms(toy),
        f"Off-policy, G = {SMALL_GROUP}, KL(old || policy) = {gap(DISTANCE):.3f} nats": off_policy(toy),
        f"Corrected for a sampler, RLOO, G = {SMALL_GROUP}, KL(sampler || policy) = {gap(SAMPLER_DISTANCE):.3f} nats": (
            corrections(toy)
        ),
    }
    print(LEGEND)
    written = []
    for title, found in sections.items():
        rows = list(found)
        print(table(title, rows), flush=True)
        written += [{"section": title, "name": next(iter(row.values())), **dict(list(row.items())[1:])} for row in rows]
    if args.out:
        names = list(dict.fromkeys(name for row in written for name in row))
        with open(args.out, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(written)


LEGEND = """mean of the estimator over all batches = c x exact gradient + rest
cosine    of mean and exact gradient
rest      |rest| / |c x exact|: what no learning rate repairs
bias      |mean - exact| / |exact|
variance  trace of the covariance over batches / |mean|^2
sampled   mean of sampled batches against the enumerated one, root mean square in standard errors: about 1
"""

if __name__ == "__main__":
    main()
