"""One reinforcement-learning run: prompts -> rollouts -> rewards -> advantages -> loss -> update, read top to bottom.

The loop knows no algorithm by name. By hand:
    python -m algos.training.train --settings '{"algorithm": "grpo", "seed": 0}' --policy DIR --prompts FILE --out DIR
"""

from dataclasses import replace
from pathlib import Path

import torch

from algos.training.config import RunConfig, parse
from algos.training.logprobs import in_micro_batches, micro_batches, token_logprobs, token_values
from algos.training.models import ScalarModel, encode_prompt, load_policy, load_tokenizer, resolve_device, save_policy
from algos.training.optimise import make_optimiser, optimiser_step
from algos.training.record import (
    Phases,
    Progress,
    Record,
    component_memory,
    load_settings,
    main_guard,
    peak_memory,
    resident_bytes,
    stage_parser,
    use_threads,
)
from algos.training.rewards import Rewards, golds_of
from algos.training.rollouts import decode, sample
from algos.training.types import Batch, Rollouts, Totals, make_batch
from evaluation.settings import SettingsError, read_jsonl
from evaluation.tasks import check_rows

RATIO_TOLERANCE = 1e-3  # of the ratio on the first optimiser step, where only rounding may move it from 1


def prompt_schedule(problems: int, config: RunConfig) -> list[list[int]]:
    """Indices of the P problems of each step: shuffled passes over all of them, a function of the seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    while len(order) < config.steps * config.prompts_per_step:
        order += torch.randperm(problems, generator=generator).tolist()
    return [order[i * config.prompts_per_step : (i + 1) * config.prompts_per_step] for i in range(config.steps)]


def train(
    config: RunConfig,
    policy_path: str,
    prompts_path: str,
    out: str,
    name: str = "",
    threads: int = 1,
    reward_model_path: str | None = None,
) -> None:
    """Train config.algorithm from the policy checkpoint; writes checkpoint/, metrics.jsonl, samples.jsonl, run.json."""
    problems = read_jsonl(prompts_path)
    check_rows(problems, prompts_path)
    if config.prompts_per_step > len(problems):
        raise SettingsError(
            f"prompts_per_step is {config.prompts_per_step}, but {prompts_path} has {len(problems)} problems."
        )
    device = resolve_device(config.device)
    algorithm, settings = config.algorithm_entry, config.algorithm_config
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    load_policy(policy_path, torch.device("cpu"), config.dtype)  # imports the model's code, so that it is not measured
    before = resident_bytes()

    tokenizer = load_tokenizer(policy_path)
    prompts = [encode_prompt(tokenizer, p["prompt"], config.max_prompt_tokens) for p in problems]
    policy = load_policy(policy_path, device, config.dtype)
    optimiser_steps = config.steps * config.epochs * config.minibatches
    optimiser, scheduler = make_optimiser(policy, config.optimiser, optimiser_steps)
    models = {"policy": (policy, optimiser)}
    critic = critic_optimiser = critic_scheduler = reference = reward_model = None
    if algorithm.has_critic:
        critic = ScalarModel.from_policy(policy_path, config.critic_head, 0.0, device, config.dtype)
        critic_optimiser, critic_scheduler = make_optimiser(
            critic, config.optimiser, optimiser_steps, config.critic_learning_rate
        )
        models["critic"] = (critic, critic_optimiser)
    if config.needs_reference:
        reference = load_policy(policy_path, device, config.dtype).requires_grad_(False)
        models["reference"] = (reference, None)
    if config.needs_reward_model:
        if reward_model_path is None:
            raise SettingsError("rewards: reward_model is named, but no reward model was given (--reward-model).")
        reward_model = ScalarModel.load(reward_model_path, device, config.dtype).requires_grad_(False)
        models["reward_model"] = (reward_model, None)
    score = Rewards(config.rewards, tokenizer.pad_token_id, reward_model, config.reward_clip)

    record = Record(
        out,
        "train",
        config.resolved(),
        threads,
        algorithm=config.algorithm,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        estimator=algorithm.estimator(settings),
        device=str(device),
    )
    phases, progress, generated = Phases(device), Progress(config.steps, name or config.algorithm), 0
    for step, chosen in enumerate(prompt_schedule(len(problems), config)):
        with phases("generate"):
            rollouts = sample(
                policy,
                tokenizer,
                [prompts[i] for i in chosen],
                config.group_size,
                config.max_response_tokens,
                config.temperature,
                generator,
            )
        with phases("reward"):
            texts = decode(tokenizer, rollouts)
            rewards, components = score(rollouts, texts, golds_of([problems[i] for i in chosen]))
        with phases("logprobs"):
            batch = make_batch(rollouts, rewards, tokenizer.pad_token_id)
            batch, entropies = prepare(batch, policy, reference, critic, config)
            batch = replace(batch, advantages=algorithm.advantages(batch, settings))
            if critic is not None:
                batch = replace(batch, returns=algorithm.returns(batch, settings))
        with phases("update"):
            learning_rate = scheduler.get_last_lr()[0]
            diagnostics = batch_metrics(batch, rollouts, entropies, components["correctness"])
            update_metrics = []
            for rows in minibatch_rows(len(batch), config, generator):
                minibatch = batch.select(rows)
                metrics = accumulate_gradients(minibatch, policy, critic, config)
                metrics["grad_norm"] = optimiser_step(policy, optimiser, scheduler, config.optimiser.max_grad_norm)
                if critic is not None:
                    metrics["critic_grad_norm"] = optimiser_step(
                        critic, critic_optimiser, critic_scheduler, config.optimiser.max_grad_norm
                    )
                update_metrics.append(metrics)
        check_first_ratio(update_metrics[0])
        generated += rollouts.response_tokens
        step_seconds = dict(phases.step)
        metrics = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(),
            "accuracy": components["correctness"].mean(),
            **{f"reward_{k}": v.mean() for k, v in components.items()},
            **diagnostics,
            **combine(update_metrics),
            "learning_rate": learning_rate,
            "generated_tokens": generated,
            **phases.next_step(),
            "step_seconds": sum(step_seconds.values()),
            **{f"{k}_tokens_per_second": rollouts.response_tokens / v for k, v in step_seconds.items()},
        }
        record.log(step, metrics)
        if step % config.sample_every == 0 or step == config.steps - 1:
            for row in range(min(4, len(texts))):
                record.sample(
                    step=step,
                    prompt=problems[chosen[row // config.group_size]]["prompt"],
                    response=texts[row],
                    reward=rewards[row].item(),
                    correct=bool(components["correctness"][row]),
                )
        progress.update(
            step + 1,
            reward=metrics["reward"].item(),
            accuracy=metrics["accuracy"].item(),
            **{"tokens/s": rollouts.response_tokens / metrics["step_seconds"]},
        )
    progress.close()
    save_policy(policy, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        generated_tokens=generated,
        optimiser_steps=optimiser_steps,
        generated_responses=config.steps * config.responses_per_step,
        memory=component_memory(**models),
        peak_memory=peak_memory(device, before),
    )


def prepare(batch: Batch, policy, reference, critic, config: RunConfig) -> tuple[Batch, torch.Tensor]:
    """The batch with old and reference log-probabilities and values; and the policy's entropies (B, T)."""

    def both(part):
        return torch.stack(token_logprobs(policy, part, config.temperature, entropy=True), dim=-1)

    logprobs, entropies = in_micro_batches(both, batch, config.micro_batch_size).unbind(-1)
    batch = replace(batch, old_logprobs=logprobs)
    if reference is not None:
        batch = replace(
            batch,
            ref_logprobs=in_micro_batches(
                lambda part: token_logprobs(reference, part, config.temperature)[0], batch, config.micro_batch_size
            ),
        )
    if critic is not None:
        batch = replace(
            batch, values=in_micro_batches(lambda part: token_values(critic, part), batch, config.micro_batch_size)
        )
    return batch, entropies


def minibatch_rows(responses: int, config: RunConfig, generator: torch.Generator):
    """Row indices of each optimiser step: whole responses, shuffled afresh in every epoch."""
    for _ in range(config.epochs):
        order = torch.randperm(responses, generator=generator, device=generator.device)
        yield from order.split(responses // config.minibatches)


def accumulate_gradients(minibatch: Batch, policy, critic, config: RunConfig) -> dict[str, torch.Tensor]:
    """Add the gradients of one optimiser step, micro-batch by micro-batch; the metrics of the whole step."""
    algorithm, settings = config.algorithm_entry, config.algorithm_config
    totals = Totals.of(minibatch.response_mask)
    parts = []
    for rows in micro_batches(minibatch, config.micro_batch_size):
        part = minibatch.select(rows)
        logprobs, _ = token_logprobs(policy, part, config.temperature)
        loss, metrics = algorithm.loss(
            logprobs,
            part.old_logprobs,
            part.advantages,
            part.response_mask,
            settings,
            totals,
            ref_logprobs=part.ref_logprobs,
        )
        loss.backward()
        metrics = {"policy_loss": loss.detach(), **metrics}
        if critic is not None:
            value_loss, value_metrics = algorithm.value_loss(
                token_values(critic, part), part.values, part.returns, part.response_mask, settings, totals
            )
            value_loss.backward()
            metrics |= value_metrics
        parts.append(metrics)
    return {name: _reduce(name, [part[name] for part in parts], sum) for name in parts[0]}


def combine(steps: list[dict]) -> dict[str, float]:
    """Metrics of a rollout batch: means over its optimiser steps, the extremes of _min and _max."""
    return {
        name: _reduce(name, [float(step[name]) for step in steps], lambda values: sum(values) / len(values))
        for name in steps[0]
    }


def _reduce(name: str, values: list, otherwise):
    if name.endswith("_min"):
        return min(values)
    return max(values) if name.endswith("_max") else otherwise(values)


def check_first_ratio(metrics: dict) -> None:
    """Raise RuntimeError unless all ratios are 1 on the first optimiser step: old and new then come from one policy."""
    if "ratio_max" not in metrics:  # an algorithm without ratios
        return
    deviation = max(abs(float(metrics["ratio_max"]) - 1), abs(float(metrics["ratio_min"]) - 1))
    if deviation > RATIO_TOLERANCE:
        raise RuntimeError(
            f"the importance ratio is off by {deviation:.2g} on the first step of a rollout batch, where it "
            "must be 1: old and new log-probabilities come from different computations"
        )


@torch.no_grad()
def batch_metrics(batch: Batch, rollouts: Rollouts, entropies, correct) -> dict[str, float]:
    """Diagnostics of a rollout batch: lengths, groups, advantages, entropy, sampler gap, KL, explained variance."""
    mask, lengths = batch.response_mask, batch.response_mask.sum(dim=1).float()
    tokens = mask.sum()
    groups = batch.rewards.view(-1, batch.group_size)
    right = correct.view(-1, batch.group_size)
    spread = groups.max(dim=1).values - groups.min(dim=1).values
    advantages = batch.advantages.expand_as(batch.old_logprobs)[mask]
    gap = (batch.old_logprobs - batch.sampler_logprobs)[mask]
    metrics = {
        "response_tokens": lengths.mean(),
        "response_tokens_p95": lengths.quantile(0.95),
        "truncation_rate": rollouts.truncated.float().mean(),
        "degenerate_groups": (spread < 1e-8).float().mean(),
        "groups_all_right": (right.min(dim=1).values == 1).float().mean(),
        "groups_all_wrong": (right.max(dim=1).values == 0).float().mean(),
        "advantage_mean": advantages.mean(),
        "advantage_std": advantages.std(),
        "advantage_low": advantages.min(),
        "advantage_high": advantages.max(),
        "advantage_zero_fraction": (advantages == 0).float().mean(),
        "entropy": entropies[mask].mean(),
        "sampler_gap_mean": gap.abs().mean(),
        "sampler_gap_largest": gap.abs().max(),
    }
    if batch.ref_logprobs is not None:
        kl = torch.where(mask, batch.old_logprobs - batch.ref_logprobs, 0.0)
        metrics |= {
            "kl_to_ref_sequence": kl.sum(dim=1).mean(),
            "kl_to_ref_k1": kl.sum() / tokens,
            "kl_to_ref_k3": torch.where(mask, torch.expm1(-kl) + kl, 0.0).sum() / tokens,
        }
    if batch.values is not None:
        returns, values = batch.returns[mask], batch.values[mask]
        variance = returns.var()
        metrics |= {
            "value_mean": values.mean(),
            "return_mean": returns.mean(),
            "explained_variance": 1 - (returns - values).var() / variance if variance > 0 else float("nan"),
        }
    return {name: float(value) for name, value in metrics.items()}


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True, help="checkpoint to start from")
    parser.add_argument("--prompts", required=True, help="train problems, JSONL")
    parser.add_argument("--reward-model", help="reward model checkpoint, if the rewards name reward_model")
    args = parser.parse_args()
    use_threads(args.threads)
    config = parse(RunConfig, load_settings(args.settings), "settings")
    if config.trainer == "trl":
        from algos.training.trl_baseline import train as run
    else:
        run = train
    run(config, args.policy, args.prompts, args.out, args.name, args.threads, args.reward_model)


if __name__ == "__main__":
    main_guard(main)
