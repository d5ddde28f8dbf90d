"""The optimizers: what each keeps in memory, and Adafactor's step by hand."""

import importlib.util
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from algos.pieces.settings import SettingsError, from_dict
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import component_memory
from algos.training.update.optimize import OPTIMIZERS, make_optimizer, optimizer_step

NAMES = ["adamw", "adafactor", "adamw_8bit"]


def matrix(values) -> nn.Module:
    """A module of one matrix."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(values))
    return module


def one_step(module: nn.Module, gradient, **options):
    """The optimizer after one step with the given gradient on the module's weight."""
    optimizer, _ = make_optimizer(module, OptimizerConfig(**options), total_steps=1)
    module.weight.grad = torch.as_tensor(gradient)
    optimizer.step()
    return optimizer


def test_every_name_has_its_optimizer():
    assert set(OPTIMIZERS) == set(get_args(get_type_hints(OptimizerConfig)["name"]))
    with pytest.raises(SettingsError, match=r"optimizer\.name: 'adam' is unknown. Did you mean 'adamw'"):
        from_dict(OptimizerConfig, {"name": "adam"}, "optimizer")


@pytest.mark.parametrize("name", NAMES)
def test_each_descends_and_follows_the_schedule(name):
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    config = OptimizerConfig(name, learning_rate=0.01, schedule="linear")
    optimizer, scheduler = make_optimizer(model, config, total_steps=20)
    inputs, losses, rates = torch.randn(32, 64), [], []
    for _ in range(20):
        loss = (model(inputs) - inputs).square().mean()
        loss.backward()
        losses.append(loss.item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer_step(model, optimizer, scheduler, None)
    assert losses[-1] < 0.7 * losses[0]
    assert rates[0] == 0.01 and rates[-1] == pytest.approx(0.0005)


def test_golden_second_moment_of_adafactor():
    """V = [[1, 4], [9, 16]]: R = [5, 25], C = [10, 20], R C / sum(R) = [[5/3, 10/3], [25/3, 50/3]].

    The library keeps means of rows and columns, which changes neither that nor the step G / sqrt(R C / sum(R)). Its
    root mean square is sqrt((0.6 + 1.2 + 1.08 + 0.96) / 4) = 0.98, at which nothing is scaled down.
    """
    module = matrix([[0.0, 0.0], [0.0, 0.0]])
    gradient = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    state = one_step(module, gradient, name="adafactor", learning_rate=0.1).state[module.weight]
    torch.testing.assert_close(state["exp_avg_sq_row"] * 2, torch.tensor([5.0, 25.0]))
    torch.testing.assert_close(state["exp_avg_sq_col"] * 2, torch.tensor([10.0, 20.0]))
    moment = torch.tensor([[1.6666667, 3.3333333], [8.3333333, 16.6666667]])
    torch.testing.assert_close(module.weight.data, -0.1 * gradient / moment.sqrt())


def test_adafactor_scales_an_update_down_to_root_mean_square_one():
    """R = C = [1, 4]: U = [[sqrt(5), 0], [0, -sqrt(5/4)]], of root mean square sqrt(25/16) = 1.25."""
    module = matrix([[0.0, 0.0], [0.0, 0.0]])
    one_step(module, [[1.0, 0.0], [0.0, -2.0]], name="adafactor", learning_rate=1.25)
    torch.testing.assert_close(module.weight.data, torch.tensor([[-(5**0.5), 0.0], [0.0, 1.25**0.5]]))


def test_adafactors_rate_is_the_one_that_is_set_whatever_the_weights_size():
    """Equal squares leave U = sign(G); weight decay takes rate x decay x weight besides, as AdamW's does."""
    for size in (1e-3, 10.0):
        module = matrix([[size, size], [size, size]])
        one_step(module, [[2.0, -2.0], [2.0, 2.0]], name="adafactor", learning_rate=0.01, weight_decay=0.5)
        expected = size * (1 - 0.01 * 0.5) - 0.01 * torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        torch.testing.assert_close(module.weight.data, expected)


def state_bytes(module, optimizer) -> int:
    return component_memory(policy=(module, optimizer))["policy"]["optimizer"]


def test_bytes_of_optimizer_state():
    """An n x m matrix: 2 n m floats under AdamW, n + m under Adafactor; besides one scalar each, step count and RMS."""
    n, m = 30, 20
    gradient = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
    module = matrix(torch.zeros(n, m).tolist())
    assert state_bytes(module, one_step(module, gradient)) == 4 * (2 * n * m + 1)
    module = matrix(torch.zeros(n, m).tolist())
    assert state_bytes(module, one_step(module, gradient, name="adafactor")) == 4 * (n + m + 1)
    module = matrix(torch.zeros(m).tolist())  # a vector keeps a full second moment
    assert state_bytes(module, one_step(module, gradient[0], name="adafactor")) == 4 * (m + 1)


def test_what_parameters_share_is_counted_once_and_other_models_state_is_not():
    """The 8-bit AdamW keeps one table of 256 values per moment for all tensors."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    both = nn.ModuleList([first, second])
    optimizer = torch.optim.SGD(both.parameters())
    table = torch.zeros(256)
    for layer in both:
        optimizer.state[layer.weight] = {"step": 1, "state1": torch.zeros(4, dtype=torch.uint8), "qmap1": table}
    assert state_bytes(both, optimizer) == 2 * 4 + 4 * 256
    assert state_bytes(first, optimizer) == 4 + 4 * 256


def test_8_bit_moments_take_a_quarter():
    """128 x 128: two bytes per element, a float32 scale per block of 256 and moment, one table per moment."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(128, 128))
    optimizer = one_step(module, torch.randn(128, 128), name="adamw_8bit")
    assert state_bytes(module, optimizer) == 2 * (128 * 128 + 4 * 64 + 4 * 256)


def test_without_bitsandbytes_8_bit_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"optimizer: name: adamw_8bit needs bitsandbytes; pip install"):
        from_dict(OptimizerConfig, {"name": "adamw_8bit"}, "optimizer")
    from_dict(OptimizerConfig, {"name": "adafactor"}, "optimizer")
