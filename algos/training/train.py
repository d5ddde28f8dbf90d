"""One reinforcement-learning run: prompts -> rollouts -> rewards -> advantages -> loss -> update.

`train` is the loop, read from top to bottom; its stages stand in experience.py (2-3) and update.py (4-6).

The loop knows no algorithm by name. By hand:
    python -m algos.training.train --settings '{"algorithm": "grpo", "seed": 0}' --policy DIR --prompts FILE --out DIR
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from algos.describe import estimator
from algos.pieces.estimator import changed
from algos.pieces.settings import SettingsError, from_dict
from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.experience import Experience, Sampler
from algos.training.models.checkpoints import (
    ScalarModel,
    encode_prompts,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.models.critics import SeparateCritic, make_critic
from algos.training.models.lora import WithoutAdapters, add_adapters
from algos.training.models.packing import shares_prompts
from algos.training.models.passes import compile_passes, recompute_activations
from algos.training.models.shared_pass import drop_equal_backbone
from algos.training.rewards.rewards import Rewards, component_metrics
from algos.training.sampling.engines import RatioCanary, make_engine
from algos.training.stage.record import (
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
from algos.training.update import offload
from algos.training.update.batch_metrics import batch_metrics, combine
from algos.training.update.optimize import make_optimizer
from algos.training.update.trust_region import trust_region_update
from algos.training.update.update import Learner, kept, kl_after_update, prepare, update, with_advantages
from evaluation.tasks import check_rows
from evaluation.tasks.files import read_jsonl

RATIO_TOLERANCE = 1e-3  # of the ratio on the first optimizer step, where only rounding may move it from 1
# In bfloat16 a logit of 16 to 32 is a multiple of 1/8: the token's and the normalizer's off by one each are
# exp(1/4) - 1 = 28 %. Measured between different paddings: at most 5 % (default cold start), 18 % (12 layers, 3 x
# logits).
RATIO_TOLERANCE_BFLOAT16 = 0.5


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
    algorithm, settings = config.algorithm_entry, config.hparams
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    load_policy(policy_path, torch.device("cpu"), config.dtype)  # imports the model's code, so that it is not measured
    before = resident_bytes()

    tokenizer = load_tokenizer(policy_path)
    prompts = encode_prompts(tokenizer, [p["prompt"] for p in problems], config.max_prompt_tokens)
    learner, models = make_learner(config, policy_path, reward_model_path, device)
    reward_model = models["reward_model"][0] if "reward_model" in models else None
    a_head = reward_model is not None and reward_model.backbone is None  # on the reference's backbone
    judge = Rewards(config, tokenizer, reward_model, learner.layout(config), learner.reference if a_head else None)
    engine, canary = make_engine(config, tokenizer, learner.policy, policy_path, prompts), RatioCanary()
    collect = Sampler(config, problems, prompts, tokenizer, judge, engine)
    warnings = config.warnings()
    if config.offload and not offload.worthwhile(device):
        warnings.append(offload.NO_EFFECT)
        print(f"warning: {offload.NO_EFFECT}")
    record = Record(
        out,
        "train",
        config.resolved(),
        threads,
        algorithm=config.algorithm,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        estimator=estimator(settings),
        warnings=warnings,
        device=str(device),
    )
    phases = offload.make_phases(config, device, learner, reward_model)
    progress = Progress(config.budget_tokens or config.steps, name or config.algorithm)
    generated = responses = optimizer_steps = 0
    for step in range(config.steps):
        experience = collect(learner.policy, generator, phases)
        rollouts, components = experience.rollouts, experience.components
        with phases("logprobs"):
            batch = make_batch(rollouts, experience.rewards, tokenizer.pad_token_id)
            exact = engine.exact and config.old_logprobs == "sampler" and config.dtype == "float32"
            batch, entropies = prepare(batch, learner, config, settings, rollouts.entropies if exact else None)
            agreement = canary.check(batch.old_logprobs, batch.sampler_logprobs, batch.response_mask)
            batch = replace(
                batch,
                greedy_rewards=experience.greedy_rewards,
                keep=kept(settings, rollouts.truncated, components["correctness"], config.group_size),
            )
            batch = with_advantages(batch, algorithm, settings)
        with phases("update"):
            learning_rate = learner.scheduler.get_last_lr()[0]
            diagnostics = batch_metrics(batch, rollouts, entropies, components["correctness"], settings)
            run_updates = update if algorithm.update is None else trust_region_update
            warming_up = settings.has_critic and step < settings.value_warmup
            updates = run_updates(batch, learner, config, settings, generator, warming_up)
            after = kl_after_update(batch, learner, config) if algorithm.measures_kl_after_update else None
        check_first_ratio(updates[0], config.dtype)
        if not engine.exact:
            with phases("synchronize"):
                engine.synchronize(learner.policy)
        generated += experience.generated_tokens
        responses += experience.generated_responses
        optimizer_steps += 0 if warming_up else len(updates)
        step_seconds = dict(phases.step)
        metrics = {
            "reward": experience.rewards.mean(),
            "reward_std": experience.rewards.std(),
            "accuracy": components["correctness"].mean(),
            **component_metrics(components),
            **diagnostics,
            **agreement,
            "sampling_rounds": experience.rounds,
            "mixed_groups": experience.mixed_share,
            **combine(updates),
            **({} if after is None else {"kl_after_update": after}),
            "updates": len(updates),
            "kl_coef": settings.kl_coef,
            **{name: value for name, (_, value) in changed(settings, config.hparams).items()},  # as adapted
            "learning_rate": learning_rate,
            "generated_tokens": generated,
            "batch_tokens": experience.generated_tokens,
            **phases.next_step(),
            "step_seconds": sum(step_seconds.values()),
            **{f"{k}_tokens_per_second": experience.generated_tokens / v for k, v in step_seconds.items()},
        }
        record.log(step, metrics)
        if not warming_up:
            settings = algorithm.adapt(settings, {k: float(v) for k, v in metrics.items()}, len(batch))
        finished = step == config.steps - 1 or (config.budget_tokens is not None and generated >= config.budget_tokens)
        if step % config.sample_every == 0 or finished:
            keep_samples(record, step, experience, problems)
        progress.update(
            step + 1 if config.budget_tokens is None else min(generated, config.budget_tokens),
            reward=metrics["reward"].item(),
            accuracy=metrics["accuracy"].item(),
            **{"tokens/s": experience.generated_tokens / metrics["step_seconds"]},
        )
        if finished:
            break
    progress.close()
    engine.close()
    if config.budget_tokens is not None and generated < config.budget_tokens:
        print(
            f"warning: {config.steps} steps generated {generated} of budget_tokens = {config.budget_tokens} tokens; "
            "raise steps"
        )
    save_policy(learner.policy, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        generated_tokens=generated,
        optimizer_steps=optimizer_steps,
        generated_responses=responses,
        memory=component_memory(**models),
        peak_memory=peak_memory(device, before),
    )


def make_learner(config: RunConfig, policy_path: str, reward_model_path: str | None, device) -> tuple[Learner, dict]:
    """The models of a run with their optimizers; and all of them by name, as (model, optimizer or None)."""
    settings = config.hparams
    policy = load_policy(policy_path, device, config.dtype)
    reward_model = load_reward_model(config, reward_model_path, device)
    if reward_model is not None and settings.needs_reference:
        drop_equal_backbone(reward_model, policy)
    if config.lora is not None:
        add_adapters(policy, config.lora)
    total = config.steps * config.updates_per_step
    warmup = min(getattr(settings, "value_warmup", 0), config.steps - 1) * config.updates_per_step
    learner = Learner(policy, *make_optimizer(policy, config.optimizer, total - warmup))
    models = {"policy": (policy, learner.optimizer)}
    if settings.has_critic:
        learner.critic = make_critic(settings, policy, policy_path, reward_model_path, config.seed, config.dtype)
        learner.critic_optimizer, learner.critic_scheduler = make_optimizer(
            learner.critic, config.optimizer, total, config.critic_learning_rate
        )
        models["critic"] = (learner.critic, learner.critic_optimizer)
    if settings.needs_reference:
        if config.lora is not None:
            learner.reference = WithoutAdapters(policy)
        else:
            learner.reference = load_policy(policy_path, device, config.dtype).requires_grad_(False)
            models["reference"] = (learner.reference, None)
    if reward_model is not None:
        models["reward_model"] = (reward_model, None)
    if config.share_prompts:
        learner.share_prompts = shares_prompts(*(backbone for backbone, _ in backbones(models)))
    arrange_passes(config, models, device)
    return learner, models


def load_reward_model(config: RunConfig, path: str | None, device) -> ScalarModel | None:
    """The frozen reward model of a run that has one among its rewards."""
    if "reward_model" not in config.rewards:
        return None
    if path is None:
        raise SettingsError("rewards: reward_model is named, but no reward model was given (--reward-model).")
    return ScalarModel.load(path, device, config.dtype).requires_grad_(False)


def backbones(models: dict) -> Iterator[tuple[Any, bool]]:
    """The backbones among a run's models, and whether each is trained; none of a head on another model's states."""
    for model, optimizer in models.values():
        model = model.model if isinstance(model, SeparateCritic) else model
        backbone = model.backbone if isinstance(model, ScalarModel) else getattr(model, "base_model", None)
        if backbone is not None:
            yield backbone, optimizer is not None


def arrange_passes(config: RunConfig, models: dict, device) -> None:
    """Gradient checkpointing of what is trained; compilation of everything, as the run says."""
    for backbone, trained in backbones(models):
        if config.gradient_checkpointing and trained:
            recompute_activations(backbone)
        if config.compile:
            compile_passes(backbone, device)


def check_first_ratio(metrics: dict, dtype: str = "float32") -> None:
    """Raise RuntimeError unless all ratios are 1 on the first optimizer step: old and new then come from one policy."""
    if "ratio_max" not in metrics:  # the critic's warm-up
        return
    deviation = max(abs(float(metrics["ratio_max"]) - 1), abs(float(metrics["ratio_min"]) - 1))
    if deviation > (RATIO_TOLERANCE_BFLOAT16 if dtype == "bfloat16" else RATIO_TOLERANCE):
        raise RuntimeError(
            f"the importance ratio is off by {deviation:.2g} on the first step of a rollout batch, where it "
            "must be 1: old and new log-probabilities come from different computations"
        )


def keep_samples(record: Record, step: int, experience: Experience, problems: list[dict], most: int = 4) -> None:
    """Some responses of a rollout batch into samples.jsonl, as the policy gave them."""
    for row in range(min(most, len(experience.texts))):
        record.sample(
            step=step,
            prompt=problems[experience.problems[row // experience.rollouts.group_size]]["prompt"],
            response=experience.texts[row],
            reward=experience.rewards[row].item(),
            correct=bool(experience.components["correctness"][row]),
        )


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True, help="checkpoint to start from")
    parser.add_argument("--prompts", required=True, help="train problems, JSONL")
    parser.add_argument("--reward-model", help="reward model checkpoint, if the rewards name reward_model")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(RunConfig, load_settings(args.settings), "settings")
    if config.trainer == "trl":
        from algos.training.trl.baseline import train as run
    else:
        run = train
    run(config, args.policy, args.prompts, args.out, args.name, args.threads, args.reward_model)


if __name__ == "__main__":
    main_guard(main)
