"""A state as tensors and values: everything comes back, and nothing of an unknown kind is left out in silence."""

import json
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import nn

from algos.training.stage.config import OptimizerConfig
from algos.training.stage.state import DERIVED, pack, random_states, set_random_states, unpack
from algos.training.update.optimize import make_optimizer


@dataclass(frozen=True)
class Frozen:
    rate: float
    names: tuple[str, ...] = ("a",)


@dataclass
class State:
    number: float
    generator: torch.Generator
    frozen: Frozen
    loose: Any = None
    rows: list[dict] | None = None
    weights: dict = field(default_factory=dict)
    reference: Any = field(default=None, metadata=DERIVED)


def moved(state: State) -> tuple[Any, dict]:
    """The state as it comes from the disk."""
    tensors: dict = {}
    values = pack(state, tensors, "state")
    return json.loads(json.dumps(values)), {name: tensor.clone() for name, tensor in tensors.items()}


def new() -> State:
    return State(0.0, torch.Generator().manual_seed(0), Frozen(1.0))


def test_all_kinds_of_values_come_back_as_they_were():
    state = new()
    state.number, state.frozen = 0.1 + 0.2, Frozen(float("inf"), ("b", "c"))
    state.loose, state.rows, state.weights = (
        5,
        [{"text": "\u2028", "ok": True}],
        {"w": torch.tensor([1.5, float("nan")])},
    )
    torch.rand(3, generator=state.generator)
    other = unpack(new(), *moved(state), "state")
    assert other.number == 0.30000000000000004 and other.frozen == Frozen(float("inf"), ("b", "c"))
    assert (other.loose, other.rows) == (5, state.rows) and repr(other.weights) == repr(state.weights)
    assert torch.equal(torch.rand(9, generator=other.generator), torch.rand(9, generator=state.generator))


def test_what_the_inputs_give_again_is_not_saved_and_what_is_unknown_is_refused():
    state = new()
    state.reference = object()
    assert "reference" not in moved(state)[0]
    state.loose = object()
    with pytest.raises(TypeError, match=r"state\.loose is a object, which cannot be saved"):
        moved(state)


def test_a_model_that_is_wholly_frozen_is_saved_and_frozen_weights_beside_trained_ones_are_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    state = new()
    state.loose = model
    assert set(moved(state)[1]) - {"state.generator"} == {"state.loose.1.weight", "state.loose.1.bias"}
    model.requires_grad_(False)
    assert len(moved(state)[1]) == 5


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw_8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizers_go_on_where_they_were(name, dtype):
    """Three steps, and three more with what the disk gives: the same as six."""
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")

    def trained() -> State:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1)).to(getattr(torch, dtype))
        config = OptimizerConfig(name=name, learning_rate=0.1, schedule="linear")
        state = new()
        state.weights = dict(
            zip(("model", "optimizer", "scheduler"), (model, *make_optimizer(model, config, 9)), strict=True)
        )
        return state

    def steps(state: State, first: int) -> State:
        model, optimizer, scheduler = state.weights.values()
        for step in range(first, first + 3):
            inputs = torch.linspace(-1, 1 + step, 64 * 4).view(4, 64).to(model[0].weight.dtype)
            model(inputs).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return state

    expected, begun = steps(steps(trained(), 0), 3), steps(trained(), 0)
    other = steps(unpack(trained(), *moved(begun), "state"), 3)
    for one, two in zip(expected.weights["model"].parameters(), other.weights["model"].parameters(), strict=True):
        assert torch.equal(one, two) and torch.equal(getattr(one, "master", one), getattr(two, "master", two))
    assert not torch.equal(one, begun.weights["model"][1].bias)
    assert expected.weights["scheduler"].get_last_lr() == other.weights["scheduler"].get_last_lr()


def test_a_saved_model_of_another_shape_is_refused():
    state, other = new(), new()
    state.loose, other.loose = nn.Linear(1, 2), nn.Linear(3, 2)  # copy_ would broadcast
    with pytest.raises(ValueError, match=r"state\.loose\.weight is .*\(2, 1\), not .*\(2, 3\)"):
        unpack(other, *moved(state), "state")


def test_the_global_generators_come_back():
    import random

    import numpy

    def drawn():
        return random.random(), numpy.random.rand(), float(torch.rand(1))

    tensors: dict = {}
    values = json.loads(json.dumps(pack(random_states(), tensors, "random")))
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    first = drawn()
    assert drawn() != first
    set_random_states(unpack(random_states(), values, kept, "random"))
    assert drawn() == first


def test_every_field_of_a_runs_state_is_saved_but_the_reference():
    """A new field is saved by itself, or refused when a run first saves; only a mark of its own leaves it out."""
    from algos.training.run import State as RunState
    from algos.training.update.update import Learner

    marked = [f"{kind.__name__}.{f.name}" for kind in (RunState, Learner) for f in fields(kind) if f.metadata]
    assert marked == ["Learner.reference"]
