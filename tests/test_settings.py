from dataclasses import dataclass, field

import pytest

from algos.training.config import OptimiserConfig, RunConfig, SupervisedConfig
from evaluation.settings import SettingsError, from_dict, read_jsonl


@dataclass(frozen=True)
class Inner:
    x: float = 1.0
    y: float = 2.0


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    rate: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(x=5.0))


def test_values_and_defaults():
    got = from_dict(Outer, {"name": "a", "rate": 1, "weights": {"w": 2}})
    assert got == Outer("a", 1, 1.0, {"w": 2.0}, Inner(5.0, 2.0)) and isinstance(got.rate, float)


def test_a_part_of_a_nested_section_keeps_the_rest_of_that_sections_defaults():
    assert from_dict(Outer, {"name": "a", "inner": {"y": 3}}).inner == Inner(5.0, 3.0)
    got = from_dict(SupervisedConfig, {"seed": 0, "optimiser": {"learning_rate": 0.5}}).optimiser
    assert (got.learning_rate, got.schedule) == (0.5, "cosine")


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"name": "a", "cuont": 1},
            r"outer, key: 'cuont' is unknown. Did you mean 'count'\? Allowed: count, inner, name",
        ),
        ({}, "outer.name is missing"),
        ({"name": 3}, "outer.name must be text, got 3"),
        ({"name": "a", "count": 1.5}, "outer.count must be whole number, got 1.5"),
        ({"name": "a", "count": True}, "outer.count must be whole number, got True"),
        ({"name": "a", "rate": "3e-4"}, r"outer.rate must be number or null, got '3e-4'"),
        (
            {"name": "a", "inner": {"x": "3e-4"}},
            r"outer.inner.x must be number, got '3e-4'. YAML reads 3e-4 as text; write 3.0e-04",
        ),
        ({"name": "a", "inner": {"x": float("nan")}}, "finite"),
        ({"name": "a", "weights": {"w": "heavy"}}, "outer.weights.w must be number"),
        ("text", "expected a mapping"),
    ],
)
def test_every_mistake_is_named_with_its_place(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(Outer, values, "outer")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"algorithm": "grop"}, "Did you mean 'grpo'"),
        ({"algorithm": "grpo", "group_size": 1}, "group_size must be at least 2 for grpo, got 1"),
        ({"algorithm": "grpo", "minibatches": 3}, "must be a multiple of minibatches, got 3"),
        ({"algorithm": "grpo", "rewards": {"helpfulness": 1.0}}, "'helpfulness' is unknown"),
        ({"algorithm": "gspo", "settings": {"clip": 0.1}}, "'clip' is unknown. .*Allowed: clip_high, clip_low"),
        ({"algorithm": "ppo", "settings": {"gae_lambda": 2.0}}, r"gae_lambda must be in 0..1, got 2.0"),
        ({"algorithm": "ppo", "dtype": "int8"}, "dtype: 'int8'"),
        ({"algorithm": "ppo", "temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_impossible_runs_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"seed": 0, **values}, "runs.x")


def test_ppo_may_have_groups_of_one():
    assert from_dict(RunConfig, {"algorithm": "ppo", "seed": 0, "group_size": 1}).group_size == 1


def test_resolved_settings_hold_the_algorithms_defaults():
    assert RunConfig("gspo", 0, {"clip_high": 0.1}).resolved()["settings"]["clip_low"] == 3.0e-4
    assert RunConfig("ppo", 0).resolved()["optimiser"]["learning_rate"] == OptimiserConfig().learning_rate


def test_a_bad_line_of_a_data_file_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a"}\n{oops\n')
    with pytest.raises(SettingsError, match="line 2: not JSON"):
        read_jsonl(path)
    with pytest.raises(SettingsError, match="no such file"):
        read_jsonl(tmp_path / "missing.jsonl")
