"""TRPO's step on a real, tiny transformer: the Fisher matrix, the bound, the parameters put back."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import random_rollouts, tiny_model, tiny_tokenizer
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from algos.pieces.kl import kl_full
from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.critics import SeparateCritic
from algos.training.models.logprobs import token_logits
from algos.training.stage.config import OptimizerConfig
from algos.training.update import trust_region
from algos.training.update.optimize import make_optimizer
from algos.training.update.update import Learner, prepare, with_advantages

TOKENIZER = tiny_tokenizer()


def setup(size: int = 3, **settings):
    """A tiny policy with its critic, a batch of eight random responses, and what the run says."""
    config = RunConfig(
        "trpo",
        0,
        settings,
        prompts_per_step=2,
        group_size=4,
        minibatches=1,
        micro_batch_size=size,
        temperature=0.8,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    policy = tiny_model(TOKENIZER)
    head = ScalarModel(tiny_model(TOKENIZER, 2).base_model, "linear", 0.3, torch.Generator().manual_seed(0))
    critic = SeparateCritic(head)
    learner = Learner(
        policy, *make_optimizer(policy, config.optimizer, 1), critic, *make_optimizer(critic, config.optimizer, 1)
    )
    rollouts = random_rollouts(TOKENIZER, [[5, 6, 7, 8, 9], [10, 11, 12]], 4, [4, 7, 1, 5, 6, 3, 7, 2])
    batch = make_batch(rollouts, torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1]), TOKENIZER.pad_token_id)
    batch, _ = prepare(batch, learner, config, config.hparams)
    return with_advantages(batch, config.algorithm_entry, config.hparams), learner, config


def region(batch, learner, config):
    return trust_region.TrustRegion(batch, learner, config, config.hparams, torch.Generator().manual_seed(0))


def test_the_fisher_product_is_that_of_the_explicit_hessian():
    """Of the mean KL(old || new) over all tokens, with respect to the last norm and a bias, 32 parameters."""
    batch, learner, config = setup(size=8)
    batch = batch.select(torch.tensor([0, 2, 7]))
    names = ["model.norm.weight", "model.layers.0.self_attn.v_proj.bias"]
    for name, parameter in learner.policy.named_parameters():
        parameter.requires_grad_(name in names)
    chosen = {n: p.detach().clone() for n, p in learner.policy.named_parameters() if n in names}
    backbone, head = learner.policy.base_model, learner.policy.get_output_embeddings()

    def logprobs(vector):
        pieces = dict(zip(chosen, vector.split([p.numel() for p in chosen.values()]), strict=True))
        inner = {n.removeprefix("model."): p.view_as(chosen[n]) for n, p in pieces.items()}

        class Moved:
            base_model = staticmethod(lambda **inputs: functional_call(backbone, inner, kwargs=inputs))
            get_output_embeddings = staticmethod(lambda: head)

        return torch.log_softmax(token_logits(Moved, batch) / config.temperature, dim=-1)

    start = torch.cat([p.flatten() for p in chosen.values()])
    old = logprobs(start).detach()
    mask = batch.response_mask
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(
            lambda v: kl_full(old, logprobs(v))[mask].sum() / mask.sum(), start, vectorize=False
        )
    got = torch.stack(
        [region(batch, learner, config).fisher_product(v) for v in torch.eye(len(start), dtype=torch.float64)]
    )
    torch.testing.assert_close(got, hessian, atol=1e-9, rtol=1e-6)
    assert len(start) == 32 and torch.linalg.eigvalsh(hessian).min() > -1e-9 and hessian.abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_the_fisher_product_of_all_parameters_is_that_of_the_jacobian_whatever_the_micro_batches():
    """H v = J' (diag(p) - p p') J v, J the Jacobian of the logits: no second derivative."""
    batch, learner, config = setup(size=8)
    parameters = {name: p.detach() for name, p in learner.policy.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    directions = {n: torch.randn(p.shape, dtype=p.dtype, generator=generator) for n, p in parameters.items()}
    v = torch.cat([x.flatten() for x in directions.values()])

    def logits(values):  # (tokens, V)
        whole = functional_call(learner.policy, values, kwargs={"input_ids": batch.sequence_ids}).logits
        rows, columns = batch.response_mask.nonzero(as_tuple=True)
        return whole[rows, batch.prompt_lengths[rows] - 1 + columns] / config.temperature

    with sdpa_kernel(SDPBackend.MATH):
        z, change = torch.func.jvp(logits, (parameters,), (directions,))
        p = torch.softmax(z, dim=1)
        curved = p * change - p * (p * change).sum(dim=1, keepdim=True)
        back = torch.func.vjp(logits, parameters)[1](curved / len(z))[0]
    expected = torch.cat([back[name].flatten() for name in parameters])
    assert expected.abs().max() > 0.1
    for size in (8, 3):
        got = region(*setup(size=size)).fisher_product(v)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)  # the model's norms are in float32


def test_the_fisher_matrix_is_estimated_from_as_many_responses_as_the_setting_says():
    batch, learner, config = setup(fisher_responses=3)
    assert len(region(batch, learner, config).fisher_batch) == 3


def test_an_update_keeps_the_bound_improves_the_surrogate_and_trains_the_critic():
    batch, learner, config = setup(max_kl=1e-3)
    critic = copy.deepcopy(learner.critic.state_dict())
    before = region(batch, learner, config)  # remembers the old policy
    start, _ = before.evaluate()
    (metrics,) = trust_region.trust_region_update(
        batch, learner, config, config.hparams, torch.Generator().manual_seed(0), False
    )
    _, kl = before.evaluate()
    assert 0 < kl <= 1e-3 and kl == pytest.approx(metrics["line_search_kl"], rel=1e-4)
    assert metrics["surrogate_gain"] > 0 and metrics["step_fraction"] > 0 and metrics["ratio_max"] == pytest.approx(1)
    assert before.evaluate()[0] < start
    assert any(not torch.equal(x, critic[name]) for name, x in learner.critic.state_dict().items())
    assert all(p.grad is None for p in learner.policy.parameters())


def test_an_update_that_finds_no_step_leaves_the_policy_exactly_as_it_was(monkeypatch):
    batch, learner, config = setup()
    before = copy.deepcopy(learner.policy.state_dict())
    monkeypatch.setattr(trust_region.TrustRegion, "evaluate", lambda self: (0.0, 1.0))
    (metrics,) = trust_region.trust_region_update(
        batch, learner, config, config.hparams, torch.Generator().manual_seed(0), False
    )
    assert metrics["step_fraction"] == 0 and metrics["grad_norm"] > 0
    assert all(torch.equal(x, before[name]) for name, x in learner.policy.state_dict().items())


def test_warming_up_trains_the_critic_alone():
    batch, learner, config = setup()
    policy, critic = (copy.deepcopy(x.state_dict()) for x in (learner.policy, learner.critic))
    trust_region.trust_region_update(batch, learner, config, config.hparams, torch.Generator().manual_seed(0), True)
    assert all(torch.equal(x, policy[name]) for name, x in learner.policy.state_dict().items())
    assert any(not torch.equal(x, critic[name]) for name, x in learner.critic.state_dict().items())


def test_advantages_are_whitened_by_minibatch_where_that_is_the_scale():
    """The one step's minibatch is the batch: the same step as with whitening of the batch."""
    norms = []
    for scale in ("whiten", "whiten_minibatch", "none"):
        batch, learner, config = setup(scale=scale)
        (metrics,) = trust_region.trust_region_update(
            batch, learner, config, config.hparams, torch.Generator().manual_seed(0), False
        )
        norms.append(metrics["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) != pytest.approx(norms[2], rel=1e-2)


def test_responses_that_are_not_kept_move_nothing():
    batch, learner, config = setup()
    kept = torch.tensor([True, False, True, True, False, True, True, False])
    part = batch.select(kept.nonzero().squeeze(1))
    v = torch.randn(sum(p.numel() for p in learner.policy.parameters()), dtype=torch.float64)
    got = region(replace(batch, keep=kept), learner, config).fisher_product(v)
    torch.testing.assert_close(got, region(part, learner, config).fisher_product(v))
