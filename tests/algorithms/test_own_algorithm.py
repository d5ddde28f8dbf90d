"""An algorithm in a file of the user's own, in place of a name of the table."""

import os
import subprocess
import sys

import pytest

from algos import ALGORITHMS, grpo
from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from pipelines.digests import algorithm_files

CODE = """
from dataclasses import replace

from algos.grpo import ALGORITHM as GRPO

DEFAULTS = replace(GRPO.defaults, scale="none")
ALGORITHM = replace(GRPO, defaults=DEFAULTS, idea="No scale.", source="mine", relative="grpo")
OTHER = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "variant.py"
    path.write_text(CODE)
    return path


def test_a_run_takes_the_file(file):
    config = from_dict(RunConfig, {"algorithm": str(file), "seed": 0})
    assert config.hparams.scale == "none" and config.algorithm_entry.idea == "No scale."
    assert from_dict(RunConfig, config.resolved()).resolved() == config.resolved()
    assert str(file) in ALGORITHMS and str(file) not in list(ALGORITHMS)
    assert {path.name for path in algorithm_files(str(file))} == {"variant.py", "grpo.py"}


def test_its_page_and_its_conformance_are_one_command_each(file):
    described = subprocess.run(
        [sys.executable, "-m", "algos", "describe", str(file)], capture_output=True, text=True, check=True
    )
    assert "No scale." in described.stdout
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    checked = subprocess.run(
        [sys.executable, "-m", "algos", "check", str(file)], capture_output=True, text=True, env=environment
    )
    assert checked.returncode == 0, checked.stdout[-2000:]


def test_a_file_with_a_wrong_loss_does_not_conform(file):
    file.write_text(CODE + "\nALGORITHM = replace(ALGORITHM, objective=lambda *given: GRPO.objective(*given)[::-1])\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "algos", "check", str(file)]
    assert subprocess.run(command, capture_output=True, text=True, env=environment).returncode == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone.py", "algorithm: there is no file 'gone.py'"),
        ("{file}:NOTHING", "variant.py defines no NOTHING"),
        ("{file}:OTHER", "OTHER of .*variant.py must be of type Algorithm, got int"),
        ("gprpo", "Did you mean 'grpo'"),
    ],
)
def test_a_file_without_an_algorithm_is_refused(file, name, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"algorithm": name.format(file=file), "seed": 0})


def test_the_table_has_no_other_names():
    assert "grpo" in ALGORITHMS and "gprpo" not in ALGORITHMS and ALGORITHMS["grpo"] is grpo.ALGORITHM
    with pytest.raises(KeyError):
        ALGORITHMS["gprpo"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ("defaults=None", "Algorithm.defaults must be an Estimator"),
        ("defaults=dict(scale='none')", "Algorithm.defaults must be an Estimator"),
        ("objective=3", "Algorithm.objective must be a function, got '3'"),
        ("run=None", "Algorithm.run must be a dict"),
        ("idea=7", "Algorithm.idea must be text"),
    ],
)
def test_an_entry_with_a_part_of_another_kind_is_refused_with_its_line(file, changes, message):
    file.write_text(CODE.replace('idea="No scale.", ', "").replace("defaults=DEFAULTS", changes))
    with pytest.raises(SettingsError, match=rf"variant.py, line 7: TypeError: {message}"):
        from_dict(RunConfig, {"algorithm": str(file), "seed": 0})
