"""The same RunConfig handed to TRL's trainers: a second implementation of the same estimator, writing the same files.

Every option that decides the estimator is set explicitly, because TRL's defaults are another one (DAPO's loss, gradient
checkpointing, an off-policy correction). Same policy, prompts in the same order, grader, group size, lengths, number of
responses, optimizer. Where TRL cannot do what the settings say, that is refused, not approximated; which trainer and
which options a run gets, and what is refused, stands in trl_settings.py.

What remains different in TRL 1.12:
- the responses of a rollout batch are shuffled into minibatches once, not in every epoch (GRPO, RLOO);
- for token means with several minibatches, and with an entropy bonus, the micro-batch is the minibatch (GRPO);
- the logged loss of reinforce.py and rloo.py is that of a ratio of 1, which has the same gradient;
- PPO takes its old log-probabilities from the sampler's logits, puts the reward one position after the last token (the
  same with lambda = 1, gamma = 1), and averages the value loss over that position too;
- PPO steps its optimizer once per `gradient_accumulation_steps` *micro*-batches, so that any value above 1 merges
  minibatches into one step; here it is 1 and the micro-batch is the minibatch;
- PPO takes no micro-batches within a minibatch, so its peak memory is that of a whole minibatch.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

import algos.training.trl.without_vllm  # noqa: F401
from algos.describe import estimator
from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from algos.training.experience import prompt_schedule
from algos.training.models.checkpoints import (
    ScalarModel,
    encode_prompt,
    import_model,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.rewards.rewards import Rewards, component_metrics
from algos.training.sampling.sampler import decode_ids
from algos.training.stage.config import loaded_dtype
from algos.training.stage.record import Phases, Progress, Record, component_memory, peak_memory, resident_bytes
from algos.training.trl.options import check, grpo_arguments, ppo_arguments, rloo_arguments, twin_of
from algos.training.update.optimize import make_optimizer
from evaluation.tasks import check_rows
from evaluation.tasks.files import read_jsonl


class Monitor:
    """What our loop measures, for a loop that is not ours: one metrics line per rollout batch, progress, phases."""

    def __init__(self, config: RunConfig, record: Record, name: str, tokenizer, device):
        self.config, self.record, self.tokenizer = config, record, tokenizer
        self.rewards = Rewards(config, tokenizer)
        self.phases, self.progress = Phases(device), Progress(config.steps, name or f"trl {config.algorithm}")
        self.step, self.generated, self.pending, self.step_started = 0, 0, None, time.perf_counter()
        self.after_step: Callable[[dict], None] | None = None

    def score(self, problems: list[dict], responses: list[list[int]]) -> list[float]:
        """Rewards of one rollout batch, by the grader that our own runs use; notes the batch's metrics."""
        start = time.perf_counter()
        texts = decode_ids(self.tokenizer, responses)
        truncated = [self.tokenizer.eos_token_id not in ids for ids in responses]
        prompts = [encode_prompt(self.tokenizer, problem["prompt"]) for problem in problems]
        seen = self.rewards.responses(texts, [len(ids) for ids in responses], truncated, problems, prompts)
        rewards, components = self.rewards.grade(seen, self.config.group_size)
        lengths = torch.tensor([float(len(ids)) for ids in responses])
        self.generated += int(lengths.sum())
        groups = rewards.view(-1, self.config.group_size)
        self.pending = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(),
            "accuracy": components["correctness"].mean(),
            **component_metrics(components),
            "response_tokens": lengths.mean(),
            "response_tokens_p95": lengths.quantile(0.95),
            "truncation_rate": sum(truncated) / len(truncated),
            "degenerate_groups": ((groups.max(dim=1).values - groups.min(dim=1).values) < 1e-8).float().mean(),
            "generated_tokens": self.generated,
            "batch_tokens": int(lengths.sum()),
        }
        if self.step % self.config.sample_every == 0 or self.step == self.config.steps - 1:
            for row in range(min(4, len(texts))):
                self.record.sample(
                    step=self.step,
                    prompt=problems[row]["prompt"],
                    response=texts[row],
                    reward=rewards[row].item(),
                    correct=bool(components["correctness"][row]),
                )
        self.phases.add("reward", time.perf_counter() - start)
        return rewards.tolist()

    def finish_step(self, logs: dict) -> None:
        """Write the rollout batch's line; logs are the trainer's own metrics, under our names."""
        if self.pending is None:  # the trainer's closing summary
            return
        self.phases.wait()
        now = time.perf_counter()
        seconds, self.step_started = now - self.step_started, now
        self.phases.add("update", seconds - sum(self.phases.step.values()))  # what is nothing else
        step, tokens = dict(self.phases.step), self.pending.pop("batch_tokens")
        metrics = {
            **self.pending,
            **logs,
            **self.phases.next_step(),
            "step_seconds": seconds,
            **{f"{k}_tokens_per_second": tokens / v for k, v in step.items() if v > 0},
        }
        self.record.log(self.step, metrics)
        self.progress.update(
            self.step + 1,
            reward=float(self.pending["reward"]),
            accuracy=float(self.pending["accuracy"]),
            **{"tokens/s": tokens / seconds},
        )
        self.step, self.pending = self.step + 1, None
        if self.after_step is not None:
            self.after_step(metrics)
            self.step_started = time.perf_counter()

    def timed(self, function, phase, minus: tuple[str, ...] = ()):
        """function, its seconds added to a phase (phase(*args) if callable), less those of the phases in `minus`."""

        @wraps(function)
        def wrapper(*args, **kwargs):
            name = phase(*args, **kwargs) if callable(phase) else phase
            if not name:
                return function(*args, **kwargs)
            inside = sum(self.phases.step.get(other, 0.0) for other in minus)
            self.phases.wait()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.phases.wait()
            nested = sum(self.phases.step.get(other, 0.0) for other in minus) - inside
            self.phases.add(name, time.perf_counter() - start - nested)
            return result

        return wrapper


def train(
    config: RunConfig,
    policy_path: str,
    prompts_path: str,
    out: str,
    name: str = "",
    threads: int = 1,
    reward_model_path: str | None = None,
    reference_path: str | None = None,
    critic_path: str | None = None,
    after_step: Callable[[dict], None] | None = None,
) -> None:
    """Train with TRL; writes checkpoint/, metrics.jsonl, samples.jsonl and run.json as algos.training.train does.

    after_step is called with the metrics of each step, outside of the measured time; an exception in it ends the run.
    """
    for option, path in (("reference", reference_path), ("critic", critic_path)):
        if path is not None and path != policy_path:
            raise SettingsError(f"trainer trl: TRL's {option} starts from the policy; leave --{option} out.")
    import datasets  # noqa: F401  before memory is first measured: libraries are not what the run needs
    import trl.experimental.ppo  # noqa: F401
    from transformers import GenerationConfig, set_seed
    from trl import GRPOTrainer  # noqa: F401

    check(config)
    problems = read_jsonl(prompts_path)
    check_rows(problems, prompts_path)
    device = resolve_device(config.device)
    if device.type == "cuda" and (torch.cuda.device_count() > 1 or device.index not in (None, 0)):
        raise SettingsError(
            "trainer trl: TRL takes every visible GPU; set CUDA_VISIBLE_DEVICES to one, device to cuda."
        )
    set_seed(config.seed)  # numpy's too: TRL's PPO shuffles its minibatches with it
    import_model(policy_path)
    before = resident_bytes()
    tokenizer = load_tokenizer(policy_path)
    tokenizer.padding_side = "left"
    policy = load_policy(policy_path, device, loaded_dtype(config))
    policy.generation_config = GenerationConfig(  # a model's own, with its penalties, would change what is sampled from
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )
    rows = [problems[i] for chosen in prompt_schedule(len(problems), config) for i in chosen]
    for row in rows:
        encode_prompt(tokenizer, row["prompt"], config.max_prompt_tokens)
    record = Record(
        out,
        "rl",
        config.resolved(),
        threads,
        algorithm=config.algorithm,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        estimator=estimator(config.hparams),
        warnings=config.warnings(),
        device=str(device),
    )
    monitor = Monitor(config, record, name, tokenizer, device)
    monitor.after_step = after_step
    models = TRAINERS[twin_of(config).kind](config, policy, policy_path, tokenizer, rows, out, monitor, device)
    monitor.progress.close()
    save_policy(policy, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=monitor.phases.total,
        generated_tokens=monitor.generated,
        optimizer_steps=config.steps * config.epochs * config.minibatches,
        generated_responses=config.steps * config.responses_per_step,
        memory=component_memory(**models),
        peak_memory=peak_memory(device, before),
    )


def _callback(monitor: Monitor, translate: dict[str, str]):
    from transformers import TrainerCallback

    class Logs(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            monitor.phases.wait()
            monitor.step_started = time.perf_counter()  # imports and set-up are no part of the first step

        def on_log(self, args, state, control, logs=None, **kwargs):
            monitor.finish_step({ours: logs[theirs] for theirs, ours in translate.items() if theirs in (logs or {})})

    return Logs()


def _train_group(config, policy, policy_path, tokenizer, rows, out, monitor: Monitor, device) -> dict:
    """By GRPOTrainer or RLOOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    if twin_of(config).kind == "grpo":
        kind, arguments, kl = GRPOTrainer, GRPOConfig(**grpo_arguments(config, out, device)), "kl_loss_k3"
    else:
        kind, arguments, kl = RLOOTrainer, RLOOConfig(**rloo_arguments(config, out, device)), "kl_to_ref_k1"

    def reward(prompts, completions, completion_ids, answer, **_):
        problems = [{"prompt": p, "answer": a} for p, a in zip(prompts, answer, strict=True)]
        return monitor.score(problems, completion_ids)

    trainer = kind(
        model=policy,
        args=arguments,
        reward_funcs=reward,
        processing_class=tokenizer,
        optimizers=make_optimizer(policy, config.optimizer, config.steps * config.epochs * config.minibatches),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "answer": r["answer"]} for r in rows]),
        callbacks=[
            _callback(
                monitor,
                {
                    "loss": "policy_loss",
                    "grad_norm": "grad_norm_last",
                    "entropy": "entropy",
                    "kl": kl,
                    "learning_rate": "learning_rate",
                    "clip_ratio/region_mean": "clip_fraction",
                    "clip_ratio/low_mean": "clip_fraction_low",
                    "clip_ratio/high_mean": "clip_fraction_high",
                    "cispo_clip_ratio": "clip_fraction_high",
                },
            )
        ],
    )
    _silence(trainer)
    inner = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = monitor.timed(
        inner, lambda *_, **__: None if torch.is_grad_enabled() else "logprobs"
    )
    trainer._generate_and_score_completions = monitor.timed(
        trainer._generate_and_score_completions, "generate", minus=("reward", "logprobs")
    )
    trainer.train()
    models = {"policy": (policy, _plain_optimizer(trainer.optimizer))}
    if trainer.ref_model is not None:
        models["reference"] = (trainer.ref_model, None)
    return models


def _silence(trainer) -> None:
    """No log lines on the terminal: the progress line is ours, the figures are in metrics.jsonl."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _plain_optimizer(optimizer):
    """The torch optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


class RuleReward(nn.Module):
    """TRL's PPO takes a reward module only: this one decodes and grades. Queries are found by their token ids."""

    base_model_prefix = "backbone"

    def __init__(self, monitor: Monitor, problem_by_prompt: dict[tuple[int, ...], dict]):
        super().__init__()
        self.monitor, self.problem_by_prompt = monitor, problem_by_prompt
        self.backbone, self.score = _Grader(self), nn.Identity()
        self.query_width = 0  # columns of the left-padded queries in the current rollout batch


class _Grader(nn.Module):
    def __init__(self, owner: RuleReward):
        super().__init__()
        self.owner = [owner]  # in a list, so that it is no submodule

    def forward(self, input_ids, attention_mask, **_):
        owner = self.owner[0]
        width, problems, responses = owner.query_width, [], []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            problems.append(owner.problem_by_prompt[tuple(ids[:width][mask[:width]].tolist())])
            responses.append(ids[width:][mask[width:]].tolist())
        rewards = torch.tensor(owner.monitor.score(problems, responses), device=input_ids.device)
        return SimpleNamespace(hidden_states=[rewards[:, None, None].expand(-1, input_ids.shape[1], 1).clone()])


def _train_ppo(config, policy, policy_path, tokenizer, rows, out, monitor: Monitor, device) -> dict:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    critic = ScalarModel.from_policy(policy_path, config.hparams.critic_head, 0.0, device, config.dtype)
    reference = load_policy(policy_path, device, config.dtype).requires_grad_(False)  # TRL's PPO runs it at any kl_coef
    encoded = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    if any(tokenizer.pad_token_id in ids for ids in encoded):
        raise SettingsError(
            f"trainer trl: the padding token {tokenizer.pad_token!r} occurs in prompts; TRL would mask it."
        )
    reward = RuleReward(monitor, {tuple(ids): row for ids, row in zip(encoded, rows, strict=True)})
    repeated = [{"input_ids": ids} for ids in encoded for _ in range(config.group_size)]
    optimizer, scheduler = _ppo_optimizer(config, policy, critic)
    with ExitStack() as patches:
        trainer = PPOTrainer(
            args=PPOConfig(**ppo_arguments(config, out, device)),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_list(repeated),
            optimizers=(optimizer, scheduler),
            callbacks=[
                _callback(
                    monitor,
                    {
                        "loss/policy_avg": "policy_loss",
                        "loss/value_avg": "value_loss",
                        "policy/clipfrac_avg": "clip_fraction",
                        "lr": "learning_rate",
                    },
                )
            ],
        )
        _silence(trainer)
        loader = DataLoader(
            trainer.train_dataset,
            batch_size=config.responses_per_step,
            collate_fn=trainer.data_collator,
            shuffle=False,
            drop_last=True,
        )  # TRL shuffles; our order keeps groups and steps together
        trainer.dataloader = trainer.accelerator.prepare(loader)

        def generate(model, queries, *args, **kwargs):
            reward.query_width = queries.shape[1]
            return original_generation(model, queries, *args, **kwargs)

        original_generation = ppo_trainer.batch_generation
        patches.enter_context(patch.object(ppo_trainer, "batch_generation", monitor.timed(generate, "generate")))
        patches.enter_context(
            patch.object(
                ppo_trainer,
                "forward",
                monitor.timed(ppo_trainer.forward, lambda *_, **__: None if torch.is_grad_enabled() else "logprobs"),
            )
        )
        patches.enter_context(
            patch.object(
                ppo_trainer,
                "get_reward",
                monitor.timed(
                    ppo_trainer.get_reward, lambda model, *_: None if isinstance(model, RuleReward) else "logprobs"
                ),
            )
        )
        trainer.train()
    return {"policy": (policy, optimizer), "critic": (critic, optimizer), "reference": (reference, None)}


def _ppo_optimizer(config: RunConfig, policy, critic):
    """One AdamW with a group each for policy and critic, as our loop's two are: own rate, own gradient clipping."""
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.parameters()), "lr": config.optimizer.learning_rate},
            {"params": list(critic.parameters()), "lr": config.critic_learning_rate or config.optimizer.learning_rate},
        ],
        betas=(config.optimizer.adam_beta1, config.optimizer.adam_beta2),
        eps=config.optimizer.adam_epsilon,
        weight_decay=config.optimizer.weight_decay,
    )
    if config.optimizer.max_grad_norm is not None:  # TRL's PPO has no clipping of its own

        def clip(opt, *_):
            for group in opt.param_groups:
                nn.utils.clip_grad_norm_(group["params"], config.optimizer.max_grad_norm)

        optimizer.register_step_pre_hook(clip)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # check() refuses other schedules


TRAINERS = {"grpo": _train_group, "rloo": _train_group, "ppo": _train_ppo}
