"""docs/metrics.md has every metric, in the group that MLflow shows it in. What whole stages log: test_workflow.py."""

import re
from dataclasses import replace

import pytest
import torch
from metrics_page import documented, missing

from algos import ALGORITHMS
from algos.describe import with_length
from algos.pieces.critic import WithCritic
from algos.pieces.types import Totals
from algos.training.stage.records import GROUPS, OTHER, metric_name

MORE = {"entropy_coef": 0.1, "correction": "token_truncate", "kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3"}
DUAL = {"dual_clip": 3.0}


def test_every_metric_stands_under_the_group_that_mlflow_shows_it_in():
    page = documented()
    assert set(page) == {*GROUPS, OTHER, "eval"} and all(page.values())
    for group, entries in page.items():
        names = [re.sub("[A-Z]+", "x", entry) for entry in entries]
        assert len(set(names)) == len(names)
        if group != "eval":  # of an evaluation, whatever the name
            assert [metric_name(name) for name in names] == [f"{group}/{name}" for name in names]


def test_a_name_that_mlflow_does_not_take_is_changed_as_little_as_can_be():
    assert metric_name("mean@8", "eval") == "eval/mean_at_8" and metric_name("my_own") == f"{OTHER}/my_own"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_the_losses_of_an_algorithm_report_is_on_the_page(name):
    entry, x = ALGORITHMS[name], torch.zeros(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    given = {"ref_logprobs": x, "sampler_logprobs": x, "entropies": x, "full_kl": x}
    given |= {} if entry.select is None else {"selected": mask}
    names = set()
    for changes in ({}, MORE, DUAL):
        try:
            hparams = with_length(replace(entry.defaults, **changes), 3)
        except (TypeError, ValueError):  # an algorithm need not allow all of them
            continue
        advantages = torch.ones(2, 3 if hparams.per_token_advantages else 1)
        names |= set(entry.loss(x, x, advantages, mask, hparams, Totals.of(mask), **given)[1])
        if isinstance(hparams, WithCritic):
            names |= set(entry.value_loss(x, x, x, mask, hparams, Totals.of(mask))[1])
    assert {"ratio_mean", "approx_kl_k3"} <= names and not missing(names)
    if entry.update is not None:
        gradient = torch.ones(2)
        assert not missing(
            set(entry.update(gradient, lambda v: v, lambda: (0.0, 0.0), lambda *_: None, entry.defaults))
        )
