"""A second implementation: TRL's PPO agrees with the suite's in the losses and gradients of policy and critic."""

import copy
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import gradients, tiny_model, tiny_tokenizer

from algos.pieces.types import Rollouts, Totals, make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.logprobs import token_logprobs, token_values
from algos.training.stage.config import OptimizerConfig
from algos.training.trl.options import ppo_arguments
from algos.training.update.update import with_advantages

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
SEED = 1


@pytest.mark.parametrize("kl", [{}, {"kl_coef": 0.1}, {"kl_coef": 0.1, "kl_estimator": "k3"}])
def test_four_ppo_steps_have_trls_losses_and_gradients(kl, tmp_path):
    """TRL's PPO trains 4 epochs on one rollout batch with plain gradient descent; ours replays its tokens.

    The ratios leave 1 from the second step on, and the rate is such that clips become active. TRL averages the value
    loss over the position behind the last token too: there, and only there, our mask is widened to compare.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    policy = tiny_model(tokenizer)
    generator = torch.Generator().manual_seed(0)
    critic = ScalarModel(tiny_model(tokenizer, 1).base_model, "linear", 0.3, generator)
    reference = tiny_model(tokenizer, 2)
    ours, our_critic = copy.deepcopy(policy), copy.deepcopy(critic)
    rate, steps = 0.5, 4
    settings = {"clip_low": 0.05, "clip_high": 0.05, "gae_lambda": 1.0, "value_clip": 0.05, "value_coef": 0.7, **kl}
    config = RunConfig(
        "ppo",
        SEED,  # with this one no response begins with the padding token
        settings,
        steps=1,
        prompts_per_step=2,
        group_size=24,
        minibatches=1,
        epochs=steps,
        max_response_tokens=24,
        optimizer=OptimizerConfig(max_grad_norm=None),
    )
    captured = {}

    class Reward(torch.nn.Module):
        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.score = torch.nn.Identity()
            self.backbone = self.Backbone()

        class Backbone(torch.nn.Module):
            def forward(self, input_ids, attention_mask, **_):
                from types import SimpleNamespace

                scores = (input_ids * attention_mask).sum(1).to(torch.float64).remainder(3)  # some rewards 0, 1, 2
                captured["rewards"] = scores
                return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1).clone()])

    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=rate)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append((gradients(policy), gradients(critic))))
    rows = [{"input_ids": p} for p in PROMPTS for _ in range(24)]
    trainer = PPOTrainer(
        args=PPOConfig(**ppo_arguments(config, str(tmp_path), CPU)),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=Reward(),
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )

    def generate(model, queries, *args):
        captured["queries"] = queries
        sequences, logits = original(model, queries, *args)
        # a random policy samples the padding token too, which TRL takes for the end: let the response end there
        responses = sequences[:, queries.shape[1] :]
        ended = (responses == tokenizer.pad_token_id).cumsum(1) > 0
        sequences[:, queries.shape[1] :] = torch.where(ended, tokenizer.pad_token_id, responses)
        captured["responses"] = sequences
        return sequences, logits

    original = ppo_trainer.batch_generation
    with (
        patch.object(ppo_trainer, "batch_generation", generate),
        patch.object(np.random, "permutation", lambda n: np.arange(n)),
    ):
        trainer.train()
    assert len(seen) == steps

    batch = as_our_batch(captured, tokenizer)
    run, entry = config.hparams, config.algorithm_entry
    with torch.no_grad():
        batch = replace(
            batch,
            old_logprobs=token_logprobs(ours, batch, 1.0)[0],
            ref_logprobs=token_logprobs(reference, batch, 1.0)[0],
            values=token_values(our_critic, batch),
        )
    batch = with_advantages(batch, entry, run)
    wide = widened(batch, tokenizer)
    returns = torch.nn.functional.pad(batch.returns, (0, wide.response_mask.shape[1] - batch.returns.shape[1]))
    behind = wide.response_mask & (torch.arange(wide.response_mask.shape[1]) == batch.response_mask.sum(1)[:, None])
    with torch.no_grad():  # no KL behind the last token: the return there is the reward
        returns = torch.where(behind, wide.rewards[:, None].to(returns.dtype), returns)
        wide = replace(wide, values=token_values(our_critic, wide), returns=returns)
    clipped = []
    for policy_gradient, critic_gradient in seen:
        ours.zero_grad()
        our_critic.zero_grad()
        logprobs, _ = token_logprobs(ours, batch, 1.0)
        loss, metrics = entry.loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.response_mask, run, Totals.of(batch.response_mask)
        )
        loss.backward()
        entry.value_loss(
            token_values(our_critic, wide),
            wide.values,
            wide.returns,
            wide.response_mask,
            run,
            Totals.of(wide.response_mask),
        )[0].backward()
        clipped.append(float(metrics["clip_fraction"]))
        # TRL divides its logits by temperature + 1e-7, which is where the tolerance comes from
        for got, expected in ((gradients(ours), policy_gradient), (gradients(our_critic), critic_gradient)):
            assert got.keys() == expected.keys()
            for name in got:
                torch.testing.assert_close(
                    got[name],
                    expected[name],
                    atol=1e-5,
                    rtol=1e-4,
                    check_dtype=False,
                    msg=lambda m, n=name: f"{n}: {m}",
                )
        with torch.no_grad():
            for parameter in [*ours.parameters(), *our_critic.parameters()]:
                parameter -= rate * parameter.grad
    assert clipped[0] == 0 and max(clipped) > 0


def as_our_batch(captured: dict, tokenizer):
    """TRL's left-padded queries and its responses as our batch."""
    queries, responses = captured["queries"], captured["responses"][:, captured["queries"].shape[1] :]
    mask = responses != tokenizer.pad_token_id
    assert mask[:, 0].all()
    assert (~mask).any() and mask.sum() > len(mask)  # some responses end early: padding is there
    prompts = [row[row != tokenizer.pad_token_id].tolist() for row in queries]
    rollouts = Rollouts(
        prompts,
        1,
        torch.where(mask, responses, tokenizer.pad_token_id),
        mask,
        torch.zeros(mask.shape),
        torch.zeros(len(mask), dtype=torch.bool),
    )
    return make_batch(rollouts, captured["rewards"], tokenizer.pad_token_id)


def widened(batch, tokenizer):
    """The batch with one more position behind each response that ended before the limit, as in TRL's value loss."""
    lengths = batch.response_mask.sum(1)
    mask = torch.arange(batch.response_mask.shape[1]) < (lengths + 1)[:, None]
    prompts = [batch.sequence_ids[i, : int(batch.prompt_lengths[i])].tolist() for i in range(len(batch))]
    rollouts = Rollouts(
        prompts, 1, batch.response_ids, mask, batch.sampler_logprobs, torch.zeros(len(batch), dtype=torch.bool)
    )
    return make_batch(rollouts, batch.rewards, tokenizer.pad_token_id)
