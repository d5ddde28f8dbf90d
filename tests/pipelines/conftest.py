"""The finished smoke study, made once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest
from project import copy_project, snakemake


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A copy of the project with the finished smoke study. Tests that change it take a copy of their own."""
    tree = copy_project(tmp_path_factory.mktemp("smoke") / "project")
    run = snakemake(tree)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return tree


@pytest.fixture
def own(tree, tmp_path) -> Path:
    """A copy of the finished tree, times kept, so that nothing in it counts as changed."""
    shutil.copytree(tree, tmp_path / "own")
    return tmp_path / "own"
