"""A second implementation: TRL, given the same model and tokens, agrees in loss and gradient.

The comparison is end to end: TRL computes its log-probabilities from left-padded prompts with attention masks, ours
come from right-padded sequences without; the gradients compared are those of every model parameter.
"""

import copy
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import ppo
from algos.training.config import OptimiserConfig, RunConfig
from algos.training.logprobs import token_logprobs, token_values
from algos.training.models import ScalarModel
from algos.training.trl_baseline import grpo_arguments, ppo_arguments
from algos.training.types import Rollouts, Totals, make_batch

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
SEED = 1
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]


def close(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys() and got
    for name in got:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(g.abs().max()) for g in got.values()) > 1e-4


@pytest.mark.parametrize(
    "algorithm, settings",
    [
        ("grpo", {"clip_low": 0.2, "clip_high": 0.28, "std_epsilon": 1e-4}),
        ("grpo", {"clip_low": 0.1, "clip_high": 0.1, "std_epsilon": 1e-4, "kl_coef": 0.04}),
        ("gspo", {"clip_low": 0.03, "clip_high": 0.04, "std_epsilon": 1e-4}),
        ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4, "std_epsilon": 1e-4}),
    ],
)
def test_loss_and_gradient_of_grpo_and_gspo(algorithm, settings, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # TRL loads its reference from there
    config = RunConfig(algorithm, 0, settings, steps=1, prompts_per_step=2, group_size=4, minibatches=1)
    trainer = GRPOTrainer(
        model=copy.deepcopy(model),
        args=GRPOConfig(**grpo_arguments(config, str(tmp_path), CPU)),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "7+5="}] * 2),
    )
    trainer.current_gradient_accumulation_steps = 1

    rollouts = random_rollouts(tokenizer, PROMPTS, 4, LENGTHS)
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1], dtype=torch.float64)
    batch = make_batch(rollouts, rewards, tokenizer.pad_token_id)
    noise = torch.randn(batch.response_mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = 0.3 if algorithm == "grpo" else 0.05
    with torch.no_grad():  # an old policy and a reference that differ: some ratios are clipped, some are not
        old = token_logprobs(model, batch, 1.0)[0] + scale * noise
        ref = token_logprobs(model, batch, 1.0)[0] - 0.2 * noise.flip(0)
    batch = replace(batch, old_logprobs=old, ref_logprobs=ref)
    advantages = config.algorithm_entry.advantages(batch, config.algorithm_config)
    logprobs, _ = token_logprobs(model, batch, 1.0)
    loss, metrics = config.algorithm_entry.loss(
        logprobs, old, advantages, batch.response_mask, config.algorithm_config, Totals.of(batch.response_mask), ref
    )
    loss.backward()
    assert 0 < metrics["clip_fraction"] < 1

    width = max(map(len, PROMPTS))
    prompt_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in PROMPTS]).repeat_interleave(
        4, 0
    )
    prompt_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]).repeat_interleave(4, 0)
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": rollouts.response_ids,
            "completion_mask": rollouts.response_mask.long(),
            "advantages": advantages.squeeze(1),
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "num_items_in_batch": rollouts.response_mask.sum(),
        },
    )
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    close(gradients(model), gradients(trainer.model))


def test_group_advantages_equal_trls_on_one_batch():
    """TRL's formula, whose last line is looked up in its source: (r - group mean) / (sample std + 1e-4)."""
    import inspect

    from trl import GRPOTrainer

    from algos.grpo import group_advantages

    source = inspect.getsource(GRPOTrainer)
    assert "advantages / (std_rewards + 1e-4)" in source

    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    trl = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, 1e-4), trl)


def test_four_ppo_steps_have_trls_losses_and_gradients(tmp_path):
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
    ours, our_critic = copy.deepcopy(policy), copy.deepcopy(critic)
    rate, steps = 0.5, 4
    settings = {"clip_low": 0.05, "clip_high": 0.05, "gae_lambda": 1.0, "value_clip": 0.05, "value_coef": 0.7}
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
        optimiser=OptimiserConfig(max_grad_norm=None),
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

    optimiser = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=rate)
    seen = []
    optimiser.register_step_pre_hook(lambda *_: seen.append((gradients(policy), gradients(critic))))
    rows = [{"input_ids": p} for p in PROMPTS for _ in range(24)]
    trainer = PPOTrainer(
        args=PPOConfig(**ppo_arguments(config, str(tmp_path), CPU)),
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=Reward(),
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        optimizers=(optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)),
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
    run = config.algorithm_config
    with torch.no_grad():
        batch = replace(batch, old_logprobs=token_logprobs(ours, batch, 1.0)[0], values=token_values(our_critic, batch))
    advantages, returns = ppo.advantages(batch, run), ppo.returns(batch, run)
    torch.testing.assert_close(
        returns[batch.response_mask],  # lambda 1, no KL: the return is the reward everywhere
        batch.rewards[:, None].expand_as(returns)[batch.response_mask],
        check_dtype=False,
    )
    wide = widened(batch, tokenizer)
    with torch.no_grad():
        wide = replace(
            wide, values=token_values(our_critic, wide), returns=wide.rewards[:, None].expand(wide.response_mask.shape)
        )
    clipped = []
    for policy_gradient, critic_gradient in seen:
        ours.zero_grad()
        our_critic.zero_grad()
        logprobs, _ = token_logprobs(ours, batch, 1.0)
        loss, metrics = ppo.loss(
            logprobs, batch.old_logprobs, advantages, batch.response_mask, run, Totals.of(batch.response_mask)
        )
        loss.backward()
        ppo.value_loss(
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
