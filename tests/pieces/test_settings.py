import json
import random
import re
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from typing import Literal

import jsonschema
import pytest
from pydantic import PositiveInt

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError, from_dict, json_schema, settings, without_nulls
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.rewards.rules import RewardSettings
from algos.training.sampling.config import VllmConfig
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised.config import SupervisedConfig
from evaluation.config import EvaluationConfig
from evaluation.tasks import TASKS, TaskSettings
from evaluation.tasks.files import read_jsonl
from pipelines.kinds import KINDS
from pipelines.plan import SamplingSettings, StudySettings


@settings
class Inner:
    x: float = 1.0
    y: float = 2.0


@settings
class Outer:
    """A section."""

    name: str
    count: PositiveInt = 1  # how many: 1 é
    rate: float | None = None
    kind: Literal["loss", "reward"] = "loss"
    # One of the two,
    # or both.
    pair: tuple[Literal["a", "b"], ...] = ()  # which letters
    other: Inner | None = None
    weights: dict[str, float] = field(
        default_factory=dict,  # name -> weight
    )

    # what follows has a heading

    inner: Inner = field(default_factory=lambda: Inner(x=5.0))


@settings
class Heir(Outer):
    name = "heir"
    count = 3  # how many heirs
    more: bool = False


def test_values_and_defaults():
    got = from_dict(Outer, {"name": "a", "rate": 1, "weights": {"w": 2}, "pair": ["b", "a"]})
    assert got == Outer("a", 1, 1.0, pair=("b", "a"), weights={"w": 2.0}, inner=Inner(5.0, 2.0))
    assert isinstance(got.rate, float)


def test_a_null_is_left_out_unless_the_field_can_be_null():
    values = {"name": "a", "count": None, "rate": None, "other": {"x": None, "y": 1.0}, "inner": None, "extra": None}
    values["weights"] = {"v": 1.0, "w": None}
    kept = {"name": "a", "rate": None, "other": {"y": 1.0}, "extra": None, "weights": {"v": 1.0}}
    assert without_nulls(Outer, values) == kept


def test_numbers_arrive_bit_for_bit():
    numbers = [random.Random(0).uniform(-1, 1) * 10.0**power for power in range(-300, 300)]
    got = from_dict(Outer, {"name": "a", "weights": {str(i): number for i, number in enumerate(numbers)}})
    assert list(got.weights.values()) == numbers


def test_an_heir_gives_a_default_without_its_type_and_the_type_still_counts():
    assert (Heir().name, Heir().count, Outer("a").count) == ("heir", 3, 1)
    assert [field.name for field in fields(Heir)] == [*(field.name for field in fields(Outer)), "more"]
    with pytest.raises(SettingsError, match=r"^count must be above 0, got 0\.$"):
        replace(Heir(), count=0)


def test_what_is_made_in_code_is_checked_like_a_study_file():
    with pytest.raises(SettingsError, match=r"settings, key: 'cuont' is unknown. Did you mean 'count'"):
        Outer("a", cuont=1)
    with pytest.raises(SettingsError, match=r"^name is missing; it is required\.$"):
        Outer()
    with pytest.raises(FrozenInstanceError):
        Outer("a").count = 2


def test_the_json_schema_holds_types_limits_defaults_and_comments():
    schema = json_schema(Heir)
    assert json_schema(Outer)["description"] == "A section." and schema["additionalProperties"] is False
    assert schema["properties"]["count"] == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "default": 3,
        "title": "Count",
        "description": "how many heirs",
    }
    said = {name: part.get("description") for name, part in json_schema(Outer)["properties"].items()}
    assert said["count"] == "how many: 1 é" and said["weights"] == "name -> weight"
    assert said["pair"] == "which letters. One of the two, or both." and said["inner"] is None
    assert schema["properties"]["kind"]["enum"] == ["loss", "reward"]


REQUIRED = {  # of all sections
    **{"algorithm": "grpo", "seed": 0, "name": "word_problems"},
    **{"sampling": {"seed": 0}, "training": {"seed": 0}, "train": "train.jsonl", "test": "test.jsonl"},
    **{"study": "s", "task": {"name": "word_problems"}, "models": {}, "stages": {}, "seeds": [0]},
}
SECTIONS = (RunConfig, SupervisedConfig, TaskSettings, *(type(entry.defaults) for entry in ALGORITHMS.values()))


@pytest.mark.parametrize("cls", dict.fromkeys(SECTIONS))
def test_the_defaults_of_every_section_obey_its_own_schema(cls):
    values = {name: REQUIRED[name] for name in json_schema(cls).get("required", ())}
    made = json.loads(json.dumps(asdict(from_dict(cls, values))))
    jsonschema.validate(made, json_schema(cls))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**made, "nonsense": 1}, json_schema(cls))


def test_a_part_of_a_nested_section_keeps_the_rest_of_that_sections_defaults():
    assert from_dict(Outer, {"name": "a", "inner": {"y": 3}}).inner == Inner(5.0, 3.0)
    got = from_dict(SupervisedConfig, {"seed": 0, "optimizer": {"learning_rate": 0.5}}).optimizer
    assert (got.learning_rate, got.schedule) == (0.5, "cosine")


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"name": "a", "cuont": 1},
            r"outer, key: 'cuont' is unknown. Did you mean 'count'\? Allowed: count, inner, kind, name",
        ),
        ({}, "outer.name is missing"),
        ({"name": 3}, "outer.name must be text, got 3"),
        ({"name": "a", "count": 1.5}, "outer.count must be a whole number, got 1.5"),
        ({"name": "a", "count": True}, "outer.count must be a whole number, got True"),
        ({"name": "a", "rate": "3e-4"}, r"outer.rate must be a number, or null, got '3e-4'"),
        (
            {"name": "a", "inner": {"x": "3e-4"}},
            r"outer.inner.x must be a number, got '3e-4'. YAML reads 3e-4 as text; write 3.0e-04",
        ),
        ({"name": "a", "inner": {"x": float("nan")}}, "finite"),
        ({"name": "a", "weights": {"w": "heavy"}}, "outer.weights.w must be a number"),
        ({"name": "a", "count": "2"}, "outer.count must be a whole number, got '2'"),
        ({"name": "a", "kind": "rewart"}, r"outer.kind: 'rewart' is unknown. Did you mean 'reward'\? Allowed: loss, r"),
        ({"name": "a", "pair": ["a", "c"]}, r"outer.pair\[1\]: 'c' is unknown. Allowed: a, b"),
        ({"name": "a", "pair": "a"}, "outer.pair must be a list, got 'a'"),
        ({"name": "a", "other": {"z": 1}}, "outer.other, key: 'z' is unknown. Allowed: x, y"),
        ({"name": "a", "other": {"x": True}}, "outer.other.x must be a number, got True"),
        ({"name": "a", "other": 3}, "outer.other must be a mapping, or null, got 3"),
        ("text", "expected a mapping"),
    ],
)
def test_every_mistake_is_named_with_its_place(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(Outer, values, "outer")


NESTED = (OptimizerConfig, RewardSettings, VllmConfig, ModelConfig, EvaluationConfig, StudySettings, SamplingSettings)
EVERY = (*SECTIONS, *NESTED, *(kind.settings for kind in KINDS.values()), *(task.config for task in TASKS.values()))


@pytest.mark.parametrize("cls", dict.fromkeys(EVERY))
def test_a_whole_number_is_neither_true_nor_1_0(cls):
    made = json_schema(cls)
    given = {name: REQUIRED[name] for name in made.get("required", ())}
    for name, schema in made["properties"].items():
        if not re.search('"type": "integer"|"enum": .[0-9]', json.dumps(schema)):
            continue
        for value in (True, 1.0):
            bad = {"array": [value], "object": {"a": value}}.get(schema.get("type"), value)
            place = rf"x\.{name}(\[0\]|\.a)?"
            with pytest.raises(SettingsError, match=f"{place} must be a whole number(, or null)?, got "):
                from_dict(cls, {**given, name: bad}, "x")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"algorithm": "grop"}, "Did you mean 'grpo'"),
        ({"algorithm": "grpo", "group_size": 1}, "group_size must be at least 2 for grpo, got 1"),
        ({"algorithm": "grpo", "minibatches": 3}, "must be a multiple of minibatches, got 3"),
        ({"algorithm": "grpo", "rewards": {"helpfulness": 1.0}}, "'helpfulness' is unknown"),
        (
            {"algorithm": "gspo", "settings": {"clip": 0.1}},
            "'clip' is unknown. Did you mean 'clip_low'.*clip_high, clip_low",
        ),
        ({"algorithm": "ppo", "settings": {"gae_lambda": 2.0}}, "gae_lambda must be at most 1, got 2.0"),
        ({"algorithm": "ppo", "dtype": "int8"}, "dtype: 'int8'"),
        ({"algorithm": "ppo", "temperature": 0.0}, "temperature must be above 0"),
        ({"algorithm": "ppo", "settings": {"whiten_advantages": True}}, "'whiten_advantages' is unknown"),  # scale now
        ({"algorithm": "ppo", "critic_head": "mlp"}, "'critic_head' is unknown"),  # a setting of the algorithm
        (
            {"algorithm": "ppo", "settings": {"critic_head": "tree"}},
            "critic_head: 'tree' is unknown. Allowed: linear",
        ),
        ({"algorithm": "grpo", "settings": {"critic_head": "mlp"}}, "critic_head is no setting of grpo, which has"),
        ({"algorithm": "grpo", "budget_tokens": 0}, "budget_tokens must be above 0, or null, got 0"),
        (
            {"algorithm": "grpo", "budget_tokens": 100, "optimizer": {"schedule": "linear"}},
            "schedule must be constant, got linear",
        ),
        ({"algorithm": "dapo", "group_size": 1}, "group_size must be at least 2 for dapo, got 1"),
        ({"algorithm": "trpo", "minibatches": 2}, "epochs and minibatches must be 1, got 1 and 2"),
    ],
)
def test_impossible_runs_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"seed": 0, **values}, "stages.x")


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "remax", "reinforce_pp"])
def test_what_compares_with_no_other_response_may_have_groups_of_one(algorithm):
    assert from_dict(RunConfig, {"algorithm": algorithm, "seed": 0, "group_size": 1}).group_size == 1


def test_a_reward_model_is_needed_for_the_reward_or_for_the_critics_start():
    assert RunConfig("ppo", 0, {"critic_init": "reward_model"}).needs_reward_model
    assert RunConfig("grpo", 0, rewards={"reward_model": 1.0}).needs_reward_model
    assert not RunConfig("ppo", 0).needs_reward_model


def test_the_constant_length_is_the_limit_of_responses_unless_it_is_set():
    run = RunConfig("dr_grpo", 0, max_response_tokens=33)
    assert run.hparams.aggregation_length == 33
    assert RunConfig("dr_grpo", 0, {"aggregation_length": 50}).hparams.aggregation_length == 50
    assert RunConfig("grpo", 0).hparams.aggregation_length is None


def test_resolved_settings_hold_the_algorithms_defaults():
    assert RunConfig("gspo", 0, {"clip_high": 0.1}).resolved()["settings"]["clip_low"] == 3.0e-4
    assert RunConfig("ppo", 0).resolved()["optimizer"]["learning_rate"] == OptimizerConfig().learning_rate


def test_a_bad_line_of_a_data_file_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a"}\n{oops\n')
    with pytest.raises(SettingsError, match="line 2: not JSON"):
        read_jsonl(path)
    with pytest.raises(SettingsError, match="no such file"):
        read_jsonl(tmp_path / "missing.jsonl")
