"""What every test has: one thread, TRL without vLLM, and fixture A."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start, too: two workers share the cores

import torch
from golden import NAN, fixture_a

import algos.training.trl.without_vllm  # noqa: F401  # the tests import TRL's trainers, as the TRL baselines do

gc.disable()  # while tests are imported and made, nothing is garbage
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it computes, many times more on a busy machine


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """TRL's PPO and vLLM collect garbage at every step, and a worker holds a million objects that are none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=[NAN, -7.3, float("inf")], ids=["nan", "garbage", "inf"])
def a(request) -> SimpleNamespace:
    """Fixture A with different things in the padding: none may have an effect."""
    return fixture_a(request.param)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Data that is not copied into the project: a folder `shared` beside the checkout. If absent, tests skip."""
    return Path(__file__).parents[2] / "shared" / "data"
