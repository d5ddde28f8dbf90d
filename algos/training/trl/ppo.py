"""A run by TRL's PPOTrainer.

What remains different in TRL 1.12:
- the old log-probabilities come from the logits of the sampler;
- the reward stands one position after the last token (the same with lambda = 1, gamma = 1), and the value loss is
  averaged over that position too;
- the optimizer steps once per `gradient_accumulation_steps` *micro*-batches, so that any value above 1 merges
  minibatches into one step; here it is 1 and the micro-batch is the minibatch;
- there are no micro-batches within a minibatch, so the peak memory is that of a whole minibatch.
"""

from collections import defaultdict, deque
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

import algos.training.trl.without_vllm  # noqa: F401
from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel, load_policy
from algos.training.models.tokens import encode_prompt
from algos.training.trl.common import Work, silence
from algos.training.trl.monitor import Monitor, scoring_only, step_logs
from algos.training.trl.options import ppo_arguments

METRICS = {  # TRL's name -> the suite's name
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clip_fraction",
    "lr": "learning_rate",
}


class RuleReward(nn.Module):
    """TRL's PPO takes a reward module only: this one decodes and grades. The token ids of a prompt tell its problem.

    Rows with the same prompt may have different answers: they are taken in the order of the rows, as TRL asks them.
    """

    base_model_prefix = "backbone"

    def __init__(self, monitor: Monitor, asked: list[tuple[list[int], dict]]):
        """asked: token ids and row of every prompt, in the order of the responses; a prompt's group is adjacent."""
        super().__init__()
        self.monitor = monitor
        self.problems: dict[tuple[int, ...], deque[dict]] = defaultdict(deque)
        for ids, row in asked:
            self.problems[tuple(ids)].append(row)
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
            problems.append(owner.problems[tuple(ids[:width][mask[:width]].tolist())].popleft())
            responses.append(ids[width:][mask[width:]].tolist())
        rewards = torch.tensor(owner.monitor.score(problems, responses), device=input_ids.device)
        return SimpleNamespace(hidden_states=[rewards[:, None, None].expand(-1, input_ids.shape[1], 1).clone()])


def train_ppo(work: Work, monitor: Monitor) -> dict:
    """Train the policy on the rows, in their order; the models by name, as (model, optimizer or None)."""
    config, policy, tokenizer = work.config, work.policy, work.tokenizer
    critic = ScalarModel.from_policy(work.policy_path, config.hparams.critic_head, 0.0, work.device, config.dtype)
    reference = load_policy(work.reference_path, work.device, config.dtype)  # TRL's PPO runs it at any kl_coef
    reference.requires_grad_(False)
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in work.rows]
    if any(tokenizer.pad_token_id in ids for ids in prompts):
        raise SettingsError(
            f"trainer trl: the padding token {tokenizer.pad_token!r} occurs in prompts; TRL would mask it."
        )
    reward = RuleReward(
        monitor, [asked for asked in zip(prompts, work.rows, strict=True) for _ in range(config.group_size)]
    )
    optimizers = _make_optimizer(config, policy, critic)
    trainer = _make_trainer(
        work,
        prompts,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        optimizers=optimizers,
        callbacks=[step_logs(monitor, METRICS)],
    )
    with _timed(monitor, reward):
        trainer.train()
    return {"policy": (policy, optimizers[0]), "critic": (critic, optimizers[0]), "reference": (reference, None)}


def _make_trainer(work: Work, prompts: list[list[int]], **parts):
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = work.config
    trainer = PPOTrainer(
        args=PPOConfig(**ppo_arguments(config, work.out, work.device)),
        processing_class=work.tokenizer,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts for _ in range(config.group_size)]),
        **parts,
    )
    silence(trainer)
    assert trainer.train_dataset is not None
    loader = DataLoader(
        trainer.train_dataset,
        batch_size=config.responses_per_step,
        collate_fn=trainer.data_collator,
        shuffle=False,  # TRL shuffles; the order of the rows keeps groups and steps together
        drop_last=True,
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)
    return trainer


def _timed(monitor: Monitor, reward: RuleReward) -> ExitStack:
    """While it is open, the functions of TRL's PPO are timed, and the reward knows how wide the queries are."""
    from trl.experimental.ppo import ppo_trainer

    sample = ppo_trainer.batch_generation

    def generate(model, queries, *args, **kwargs):
        reward.query_width = queries.shape[1]
        return sample(model, queries, *args, **kwargs)

    def reading(model, *_) -> str | None:
        return None if isinstance(model, RuleReward) else "logprobs"

    patches = ExitStack()
    for name, function, phase in (
        ("batch_generation", generate, "generate"),
        ("forward", ppo_trainer.forward, scoring_only),
        ("get_reward", ppo_trainer.get_reward, reading),
    ):
        patches.enter_context(patch.object(ppo_trainer, name, monitor.timed(function, phase)))
    return patches


def _make_optimizer(config: RunConfig, policy, critic):
    """One AdamW with a group each for policy and critic: each has its own rate and its own gradient clipping."""
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.parameters()), "lr": config.optimizer.learning_rate},
            {"params": list(critic.parameters()), "lr": config.critic_learning_rate or config.optimizer.learning_rate},
        ],
        betas=(config.optimizer.adam_beta1, config.optimizer.adam_beta2),
        eps=config.optimizer.adam_epsilon,
        weight_decay=config.optimizer.weight_decay,
    )
    limit = config.optimizer.max_grad_norm
    if limit is not None:  # TRL's PPO has no clipping of its own

        def clip(opt, *_):
            for group in opt.param_groups:
                nn.utils.clip_grad_norm_(group["params"], limit)

        optimizer.register_step_pre_hook(clip)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # check() refuses other schedules
