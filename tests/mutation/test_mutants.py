"""What the mutation command plans to break is there: a mistake that finds no line would count as tested."""

import ast

import pytest
from mistakes import PLANNED, defaults, limits
from mutants import mutants


def changes(mistake, line: str) -> list[str]:
    """What a mistake makes of a line, or of the call in it."""
    statement = ast.parse(line).body[0]
    nodes = [statement, *([statement.value] if isinstance(statement.value, ast.Call) else [])]
    return [ast.unparse(ast.fix_missing_locations(new)) for node in nodes for _, new in mistake(node)]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("clip_low: NonNegativeFloat = 0.2", ["clip_low: NonNegativeFloat = 0.4"]),
        ("clip_low = 0.0003", ["clip_low = 0.0006"]),  # a subclass gives an inherited field another default
        ("critic_detach: bool = False", ["critic_detach: bool = True"]),
        ("X = GRPOConfig(scale='none', kl_coef=0.0)", ["GRPOConfig(scale='none', kl_coef=1)"]),
        ("kl_target: PositiveFloat | None = None", []),
    ],
)
def test_defaults_wherever_they_are_set(line, expected):
    assert changes(defaults, line) == expected


@pytest.mark.parametrize(
    "line, expected",
    [
        ("rank: PositiveInt | None = None", ["rank: int | None = None"]),
        ("dual_clip: Annotated[float, Field(gt=1)] | None = None", ["dual_clip: float | None = None"]),
        ("kl_in: Literal['loss', 'reward'] = 'loss'", ["kl_in: str = 'loss'"]),
        ("Scale = Literal['none', 'group_std']", ["Scale = str"]),
        ("whiten_rewards: bool = False", []),
    ],
)
def test_limits_that_a_type_states(line, expected):
    assert changes(limits, line) == expected


def test_every_planned_mistake_and_every_excuse_finds_a_line():
    assert {mutant.kind for mutant in mutants()} == PLANNED


def test_a_mistake_that_finds_no_line_ends_the_command(tmp_path):
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "some.py").write_text("clip_low: float = 0.2\n")
    with pytest.raises(SystemExit, match=r"nothing to mutate for: all for any; .*; sign; .*kl\.detach"):
        mutants(tmp_path)
