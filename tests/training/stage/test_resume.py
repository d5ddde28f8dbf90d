"""A small sample of tests/faults/kills.py and torn.py: stages that are killed end as if they had not been."""

import random
import signal

import pytest

from tests.faults.stages import CASES, differences, finish, make_inputs, result, run
from tests.faults.torn import cut, killed_stage, recovered

SAMPLE = [
    *("ppo", "grpo lora", "gspo bfloat16", "dapo", "sft bfloat16 adafactor", "reward_model"),
    *("preferences", "rejection_sampling", "expert_iteration", "distillation"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.mark.parametrize("case", SAMPLE)
def test_a_killed_stage_ends_as_if_it_had_not_been(inputs, tmp_path, case):
    status, moments = run(case, inputs, tmp_path / "whole")
    assert status == 0, (tmp_path / "whole.log").read_text()
    rng = random.Random(case)
    killed = finish(case, inputs, tmp_path / "killed", lambda most: rng.randint(most // 2, most * 3 // 4), moments, 2)
    assert killed >= 1 and "resumed" in (tmp_path / "killed" / "run.json").read_text()
    assert differences(result(tmp_path / "whole"), result(tmp_path / "killed")) == []


def test_a_stage_without_saved_states_is_the_same_too(inputs, tmp_path):
    run("grpo", inputs, tmp_path / "saved")
    run("grpo", inputs, tmp_path / "plain", saving={"minutes": None})
    assert differences(result(tmp_path / "saved"), result(tmp_path / "plain")) == []
    assert run("grpo", inputs, tmp_path / "again", 5)[0] == -signal.SIGKILL  # a kill is one


def test_a_torn_state_costs_a_step_and_nothing_else(inputs, tmp_path):
    killed, expected = killed_stage("ppo", inputs, tmp_path)
    assert recovered("ppo", inputs, killed, expected, tmp_path / "torn", cut, random.Random(0)) == []


def test_the_cases_cover_every_kind():
    from pipelines.kinds import KINDS

    assert {kind for kind, _ in CASES.values()} == set(KINDS) == {CASES[case][0] for case in SAMPLE}
