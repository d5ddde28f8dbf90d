"""Rewards in files of the user's own."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from algos.training.rewards.own import own_reward
from algos.training.rewards.rewards import Rewards, component_metrics
from algos.training.rewards.rules import Response, RewardSettings
from pipelines.digests import of_run, with_own_imports

CODE = """
import time

def politeness(prompts, responses, answers, rows):
    return [float("please" in response) + float(answer == "5") + row["bonus"] + len(prompt) for
            prompt, response, answer, row in zip(prompts, responses, answers, rows)]

def slow(prompts, responses, answers, rows):
    time.sleep(0.2)
    return [1.0] * len(responses)

def broken(prompts, responses, answers, rows):
    return [1 / row["bonus"] for row in rows]

def short(prompts, responses, answers, rows):
    return [1.0]

def endless(prompts, responses, answers, rows):
    return [float("inf")] * len(rows)

def odd(prompts, responses, answers, rows):
    return [rows[0]["odd"]] * len(rows)

def spoiling(prompts, responses, answers, rows):
    for row in rows:
        row.clear()
    return [1.0] * len(rows)

def leaving(prompts, responses, answers, rows):
    raise SystemExit

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    return path


def responses(count: int = 4) -> list[Response]:
    rows = [{"id": f"train/{i}", "prompt": "p" * i, "answer": f"#### {i}", "bonus": i % 3} for i in range(count)]
    return [Response("please" if i % 2 else "no", 5, 20, False, row, "") for i, row in enumerate(rows)]


def test_it_sees_prompt_response_answer_and_row(file):
    wanted = [float(i % 2) + float(i == 5) + i % 3 + i for i in range(7)]
    for threads in (1, 3, 20):
        assert own_reward(f"{file}:politeness", responses(7), RewardSettings(own_threads=threads)) == wanted


def test_it_is_combined_and_logged_like_a_rule(file):
    name = f"{file}:politeness"
    config = from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": {"correctness": 1.0, name: 0.5}})
    total, components = Rewards(config, SimpleNamespace()).grade(responses(), 2)
    assert torch.equal(total, components["correctness"] + 0.5 * components[name])
    assert component_metrics(components)["reward_politeness"] == components[name].mean()
    before = of_run(config)
    file.write_text(CODE + "\n")
    assert of_run(config) != before


def test_threads_call_it_side_by_side_and_seconds_bound_a_batch(file):
    started = time.perf_counter()
    own_reward(f"{file}:slow", responses(8), RewardSettings(own_threads=8))
    assert time.perf_counter() - started < 1.0
    with pytest.raises(SettingsError, match=r"slow took more than reward_settings.own_seconds = 0.05 for the 4"):
        own_reward(f"{file}:slow", responses(), RewardSettings(own_seconds=0.05))


ENDLESS = """
import sys
from algos.training.rewards.own import own_reward
from algos.training.rewards.rules import Response, RewardSettings

own_reward(f"{sys.argv[1]}:never", [Response("a", 1, 2, False, {"prompt": "", "answer": "#### 1"}, "")],
           RewardSettings(own_seconds=0.05))
"""


def test_a_call_that_never_returns_does_not_keep_the_process_from_ending(file):
    file.write_text("from threading import Event\n\ndef never(*lists):\n    Event().wait()\n")
    done = subprocess.run([sys.executable, "-c", ENDLESS, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "never took more than reward_settings.own_seconds = 0.05" in done.stderr


@pytest.mark.parametrize(
    "function, message",
    [
        ("broken", r"broken fails on row 'train/0', response 'no': ZeroDivisionError: division by zero"),
        ("short", r"must return a list of 4 numbers, one a response, got '\[1.0\]'"),
        ("endless", r"must return finite numbers, got inf for row 'train/0'"),
    ],
)
def test_its_failure_names_the_row(file, function, message):
    with pytest.raises(SettingsError, match=message):
        own_reward(f"{file}:{function}", responses(), RewardSettings())


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone.py:politeness", "rewards: there is no file 'gone.py'"),
        ("{file}:rudeness", "my_rewards.py defines no rudeness"),
        ("{file}:NUMBER", "NUMBER of .*my_rewards.py must be of type function, got int"),
        ("correctnes", "Did you mean 'correctness'"),
    ],
)
def test_a_reward_that_is_not_there_is_refused_before_anything_runs(file, name, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": {name.format(file=file): 1.0}})


def test_a_file_that_fails_is_refused_with_its_line(file):
    file.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(SettingsError, match=r"my_rewards.py, line 2: ZeroDivisionError: division by zero"):
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": {f"{file}:politeness": 1.0}})


@pytest.mark.parametrize("odd", [None, [1.0], {"score": 1}, 1j, 10**400, "1", b"1", torch.ones(2), float("nan")])
def test_what_is_no_number_is_refused_with_its_row(file, odd):
    asked = responses()
    asked[0].problem["odd"] = odd
    with pytest.raises(SettingsError, match=r"must return finite numbers, got .* for row 'train/0'"):
        own_reward(f"{file}:odd", asked, RewardSettings())


@pytest.mark.parametrize("number", [True, 2, torch.tensor(1.5), np.float32(0.5)])
def test_numbers_of_other_libraries_are_numbers(file, number):
    asked = responses()
    asked[0].problem["odd"] = number
    assert own_reward(f"{file}:odd", asked, RewardSettings()) == [float(number)] * 4


def test_a_reward_cannot_change_the_rows_of_the_run(file):
    asked = responses()
    own_reward(f"{file}:spoiling", asked, RewardSettings())
    assert asked[3].problem == responses()[3].problem


def test_code_that_ends_the_process_is_a_failure_like_any_other(file, tmp_path):
    with pytest.raises(SettingsError, match="leaving fails on row 'train/0', response 'no': SystemExit"):
        own_reward(f"{file}:leaving", responses(), RewardSettings())
    (tmp_path / "script.py").write_text("import sys\ndef score(*_): ...\nsys.exit(0)\n")
    with pytest.raises(SettingsError, match=r"script.py, line 3: SystemExit: 0"):
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": {f"{tmp_path}/script.py:score": 1.0}}, "run")


def test_two_rewards_that_would_be_logged_as_one_are_refused(file, tmp_path):
    (tmp_path / "other.py").write_text(CODE + "\ncorrectness = slow\n")
    for rewards, message in (
        ({f"{file}:slow": 1.0, f"{tmp_path}/other.py:slow": 1.0}, "would both be logged as reward_slow"),
        ({f"{tmp_path}/other.py:correctness": 1.0}, "other.py:correctness has the name of a built-in reward"),
        ({f"{file}": 1.0}, "must name a file and a function in it, as in my_rewards.py:brevity"),
    ):
        with pytest.raises(SettingsError, match=message):
            from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": rewards}, "run")


def test_files_beside_it_are_imported_and_part_of_what_a_result_depends_on(file, tmp_path):
    (tmp_path / "lengths").mkdir()
    (tmp_path / "lengths" / "__init__.py").write_text("from lengths.most import MOST\n")
    (tmp_path / "lengths" / "most.py").write_text("MOST = 7.0\n")
    (tmp_path / "by_length.py").write_text("import lengths\ndef score(p, r, *_): return [lengths.MOST] * len(r)\n")
    name = f"{tmp_path}/by_length.py:score"
    assert own_reward(name, responses(), RewardSettings()) == [7.0] * 4
    run = from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "rewards": {name: 1.0}}, "run")
    before = of_run(run)
    (tmp_path / "lengths" / "most.py").write_text("MOST = 8.0\n")
    assert of_run(run) != before


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    for name in "ab":
        (tmp_path / name / "pack").mkdir(parents=True)
        (tmp_path / name / "pack" / "__init__.py").write_text("")
        (tmp_path / name / "pack" / "who.py").write_text(f"WHO = {ord(name)}\n")
        (tmp_path / name / "reward.py").write_text(
            "from pack.who import WHO\ndef score(p, r, *_):\n    import pack.who\n    return [WHO] * len(r)\n"
        )
    found = [own_reward(f"{tmp_path}/{name}/reward.py:score", responses(), RewardSettings())[0] for name in "ab"]
    assert found == [97.0, 98.0]
    files = {path.relative_to(tmp_path).as_posix() for path in with_own_imports(tmp_path / "b" / "reward.py")}
    assert files == {"b/reward.py", "b/pack/__init__.py", "b/pack/who.py"}
