"""bfloat16 weights with float32 masters: no small update is lost; gradients, state and checkpoint are float32."""

import copy
import json

import pytest
import torch
from tiny import random_rollouts, tiny_model, tiny_tokenizer
from torch import nn

from algos.pieces.settings import SettingsError, from_dict
from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel, load_policy, save_policy
from algos.training.models.critics import SeparateCritic
from algos.training.models.logprobs import token_logprobs, token_values
from algos.training.run import KL_TOLERANCE_BFLOAT16, check_first_ratio
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import component_memory
from algos.training.update.optimize import make_optimizer, master_of, optimizer_step
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages

NAMES = ["adamw", "adamw_8bit", "adafactor"]
CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
ROLLOUTS = random_rollouts(TOKENIZER, [[5, 6, 7, 8, 9], [10, 11, 12]], 4, [4, 7, 1, 5, 6, 3, 7, 2])
REWARDS = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])


def weight(dtype=torch.bfloat16) -> nn.Module:
    """A module of one 64 x 64 matrix of ones."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    return module


def step(module, optimizer, scheduler, gradients=(1.0,)):
    for gradient in gradients:
        (module.weight * gradient).sum().backward()
    return optimizer_step(module, optimizer, scheduler, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_update_is_lost_to_plain_bfloat16_and_kept_by_its_master(name):
    """Steps of 1e-4 from 1, where bfloat16 is spaced by 2^-8 below: 40 of them are one spacing."""
    config = OptimizerConfig(name, learning_rate=1e-4)
    plain = weight()
    if name == "adamw":
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0)
        for _ in range(40):
            plain.weight.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (plain.weight == 1).all()
    module, reference = weight(), weight(torch.float32)
    optimizers = [(m, *make_optimizer(m, config, 40)) for m in (module, reference)]
    for _ in range(40):
        for each in optimizers:
            step(*each)
    torch.testing.assert_close(master_of(module.weight), reference.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(reference.weight.mean().item(), 1 - 40e-4, rtol=0, atol=1e-4)
    assert module.weight.dtype == torch.bfloat16 and (module.weight == 1 - 2**-8).all()


def test_gradients_add_up_in_float32():
    """1 and 100 times 2^-9: bfloat16 sums stay at 1, the master's gradient is 1 + 100/512. The clipped norm is its."""
    module = weight()
    optimizer, scheduler = make_optimizer(module, OptimizerConfig(), 1)
    for gradient in [1.0] + [2.0**-9] * 100:
        (module.weight * gradient).sum().backward()
        assert module.weight.grad is None
    assert (master_of(module.weight).grad == 1 + 100 / 512).all()
    norm = optimizer_step(module, optimizer, scheduler, 1.0)
    assert norm == pytest.approx(64 * (1 + 100 / 512)) and master_of(module.weight).grad is None


@pytest.mark.parametrize("name, moments", [("adamw", 8), ("adafactor", 0)])
def test_bytes_per_parameter(name, moments):
    """Bytes of a parameter: 2 for the weights, 4 for gradients, 4 for masters, 8 for AdamW's moments."""
    module = weight()
    optimizer, scheduler = make_optimizer(module, OptimizerConfig(name), 1)
    step(module, optimizer, scheduler)
    memory = component_memory(policy=(module, optimizer))["policy"]
    shares = {part: round(memory[part] / 64**2, 1) for part in memory}
    expected = {"weights": 2, "gradients": 4, "master": 4, "optimizer": moments}
    assert shares == {"parameters": 1, **expected} | ({"optimizer": 0.1} if name == "adafactor" else {})
    plain = weight(torch.float32)
    optimizer, scheduler = make_optimizer(plain, OptimizerConfig(name), 1)
    step(plain, optimizer, scheduler)
    assert component_memory(policy=(plain, optimizer))["policy"]["master"] == 0


def test_a_second_optimizer_goes_on_from_the_masters_of_the_first():
    """As in expert iteration without a restart: nothing is rounded away between the rounds."""
    module, master = weight(), None
    for rounds in (1, 2):
        optimizer, scheduler = make_optimizer(module, OptimizerConfig(learning_rate=1e-4), 1)
        step(module, optimizer, scheduler, (1.0, 2.0))
        assert master is None or master_of(module.weight) is master
        master = master_of(module.weight)
        torch.testing.assert_close(master.mean().item(), 1 - rounds * 1e-4, rtol=0, atol=1e-6)


def test_float32_weights_have_no_masters_and_no_hooks():
    module = weight(torch.float32)
    optimizer, _ = make_optimizer(module, OptimizerConfig(), 1)
    module.weight.sum().backward()
    assert master_of(module.weight) is module.weight and module.weight.grad is not None
    assert optimizer.param_groups[0]["params"] == [module.weight]


def test_checkpoints_are_the_masters_in_float32(tmp_path):
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "start")
    policy = load_policy(tmp_path / "start", CPU, "bfloat16")
    optimizer, scheduler = make_optimizer(policy, OptimizerConfig(learning_rate=1e-5), 1)
    policy(torch.tensor([[5, 6, 7]])).logits.float().square().mean().backward()
    optimizer_step(policy, optimizer, scheduler, 1.0)
    save_policy(policy, TOKENIZER, tmp_path / "end")
    loaded = load_policy(tmp_path / "end", CPU)
    assert json.loads((tmp_path / "end" / "config.json").read_text())["dtype"] == "float32"
    for got, parameter in zip(loaded.parameters(), policy.parameters(), strict=True):
        assert torch.equal(got, master_of(parameter)) and torch.equal(parameter, got.bfloat16())
    assert any(not torch.equal(p.float(), master_of(p)) for p in policy.parameters())
    critic = ScalarModel(policy.base_model, "linear", 0.5, torch.Generator().manual_seed(0))
    critic.save(tmp_path / "critic")
    again = ScalarModel.load(tmp_path / "critic", CPU)
    assert torch.equal(again.score.weight, critic.score.weight)
    assert torch.equal(again.backbone.norm.weight, master_of(policy.base_model.norm.weight))


@pytest.fixture
def models():
    """The same tiny policy and critic in both types, its weights as bfloat16 has them."""
    policy = tiny_model(TOKENIZER, 0, torch.bfloat16)
    backbone = tiny_model(TOKENIZER, 2, torch.bfloat16).base_model
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator().manual_seed(0)
        found[dtype] = (
            copy.deepcopy(policy).to(dtype),
            SeparateCritic(ScalarModel(copy.deepcopy(backbone).to(dtype), "mlp", 0.3, generator)),
        )
    return found


def test_log_probabilities_and_values_are_float32(models):
    batch = make_batch(ROLLOUTS, REWARDS, TOKENIZER.pad_token_id)
    policy, critic = models[torch.bfloat16]
    logprobs, entropies = token_logprobs(policy, batch, 0.8, entropy=True)
    values = token_values(critic.model, batch)
    assert logprobs.dtype == entropies.dtype == values.dtype == torch.float32
    assert critic.model.score[0].weight.dtype == torch.float32  # a head is small and is not rounded
    assert (values != values.bfloat16().float()).any()
    exact, exact_critic = models[torch.float32]
    torch.testing.assert_close(logprobs, token_logprobs(exact, batch, 0.8)[0], atol=0.1, rtol=0)
    torch.testing.assert_close(values, token_values(exact_critic.model, batch), atol=0.1, rtol=0)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_masters_gradients_are_those_of_float32_up_to_rounding(models, algorithm):
    """bfloat16 has 8 bits: 2^-8 of the largest entry per operation, a few dozen of which are behind a gradient."""
    found = {}
    for dtype, (policy, critic) in models.items():
        config = RunConfig(
            algorithm,
            0,
            prompts_per_step=2,
            group_size=4,
            minibatches=1,
            micro_batch_size=3,
            dtype=str(dtype).split(".")[1],
        )
        learner = Learner(policy, *make_optimizer(policy, config.optimizer, 1))
        if algorithm == "ppo":
            learner.critic = critic
            make_optimizer(critic, config.optimizer, 1)
        batch, _ = prepare(make_batch(ROLLOUTS, REWARDS, TOKENIZER.pad_token_id), learner, config, config.hparams)
        batch = with_advantages(batch, config.algorithm_entry, config.hparams)
        metrics = accumulate_gradients(batch, learner, config, config.hparams)
        check_first_ratio(metrics, config.dtype)
        parts = [learner.policy] + ([learner.critic] if learner.critic else [])
        found[dtype] = torch.cat([master_of(p).grad.flatten() for part in parts for p in part.parameters()])
    low, exact = found.values()
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low, exact, dim=0) > 0.998
    assert low.norm().item() == pytest.approx(exact.norm().item(), rel=0.03)


def test_the_first_ratio_may_be_off_by_bfloat16s_rounding_and_no_more():
    far = {"ratio_max": 1.6, "ratio_min": 0.6, "approx_kl_k3": 0.9 * KL_TOLERANCE_BFLOAT16}  # single tokens
    check_first_ratio(far, "bfloat16")
    with pytest.raises(RuntimeError, match=r"off by 0.6 on the first step .* must be 1"):
        check_first_ratio(far, "float32")
    changes = {"approx_kl_k3": 0.03}, {"ratio_max": 2.8}, {"ratio_min": 0.3}, {"ratio_max": float("nan")}
    for change in changes:
        with pytest.raises(RuntimeError, match=r"nats a token in the mean, on the first step .* must be 1"):
            check_first_ratio(far | change, "bfloat16")


def test_trpo_is_refused_in_bfloat16():
    with pytest.raises(SettingsError, match=r"trpo needs second derivatives, .*: dtype must be float32, got bfloat16"):
        from_dict(RunConfig, {"algorithm": "trpo", "seed": 0, "minibatches": 1, "dtype": "bfloat16"})
