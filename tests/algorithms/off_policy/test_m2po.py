"""M2PO, by hand. A = +-1 and log rho = [[0.2623643, -0.5108256, 0.1177830], [-0.3566749, 0.0953102]]."""

from dataclasses import replace

import pytest
import torch
from golden import gradient
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import m2po
from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.models.logprobs import token_logprobs
from algos.training.update.update import Learner, accumulate_gradients, with_advantages

A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def run(a, threshold):
    hparams = m2po.M2POConfig(second_moment=threshold)
    a.logprobs, a.advantages = a.new, A2
    selected = m2po.near_tokens(a, hparams)
    return lambda x: m2po.ALGORITHM.loss(x, a.old, A2, a.mask, hparams, a.totals, selected=selected)


@pytest.mark.parametrize(
    "threshold, kept, loss, clipped",
    [
        (0.07, [[True] * 3, [True] * 2], -0.245, 0.0),
        (0.05, [[True] * 3, [False, True]], -0.385, 0.2),
        (0.04, [[False, True, True], [False, True]], -0.125, 0.4),
        (0.01, [[False, True, False], [False, True]], 0.1, 0.6),
    ],
)
def test_golden_mask_and_loss(a, threshold, kept, loss, clipped):
    """Tokens that move on: the first and third of response 1 and the first of response 2.

    Their squares, sorted: 0.0138728, 0.0688350, 0.1272170; means of the first 1, 2, 3: 0.0138728, 0.0413539, 0.0699749.
    The loss is -(1.3 + 0.6 + 1.125 - 0.7 - 1.1) / 5 without the masked tokens, still over 5 tokens.
    """
    value, grad = gradient(lambda x: run(a, threshold)(x)[0], a.new)
    assert value.item() == pytest.approx(loss)
    assert ((grad != 0) == torch.tensor([kept[0], [*kept[1], False]])).all()
    assert run(a, threshold)(a.new)[1]["clip_fraction"].item() == pytest.approx(clipped)


def test_a_response_that_does_not_count_is_not_sorted(a):
    a.loss_mask = a.mask & torch.tensor([[True], [False]])  # 0.1272170 is not among them: the mean of two is 0.0413539
    a.logprobs, a.advantages = a.new, A2
    assert m2po.near_tokens(a, m2po.M2POConfig(second_moment=0.0414))[0].all()
    assert not m2po.near_tokens(a, m2po.M2POConfig(second_moment=0.0413))[0, 0]


def test_a_step_selects_among_all_its_tokens_whatever_its_micro_batches():
    """Through the model: the policy is run before the step, and all micro-batches share one mask."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    rollouts = random_rollouts(tokenizer, [[5, 6, 7], [8, 9]], 4, [4, 7, 1, 5, 6, 3, 7, 2])
    batch = make_batch(rollouts, torch.tensor([1.0, 0, 0, 1, 0, 0, 0.5, 1]).double(), tokenizer.pad_token_id)
    noise = torch.randn(batch.response_mask.shape, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for size in (8, 3):
        config = RunConfig(
            "m2po", 0, prompts_per_step=2, group_size=4, minibatches=1, micro_batch_size=size, max_response_tokens=7
        )
        with torch.no_grad():
            old = token_logprobs(model, batch, 1.0)[0] + 0.3 * noise
        ready = with_advantages(replace(batch, old_logprobs=old), config.algorithm_entry, config.hparams)
        model.zero_grad(set_to_none=True)
        metrics = accumulate_gradients(ready, Learner(model, None, None), config, config.hparams)
        found.append((float(metrics["clip_fraction"]), gradients(model)))
    assert 0 < found[0][0] < 0.5 and found[0][0] == pytest.approx(found[1][0])
    for name, expected in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], expected, atol=1e-9, rtol=1e-6)
