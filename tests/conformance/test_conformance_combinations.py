"""All combinations of the pieces: refused by name, or finite losses that add up over micro-batches."""

from itertools import product
from typing import get_args

import pytest
import torch
from cases import Case, fill, loss_mask, make, rows_of, step, with_advantages
from golden import NAN

from algos import grpo, ppo
from algos.pieces import advantages as pieces
from algos.pieces.aggregation import MODES
from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import clipped_objective
from algos.pieces.correction import Correction
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator
from algos.pieces.ratios import LEVELS, PER_RESPONSE
from algos.pieces.types import Totals
from algos.reinforce import reinforce_objective

KL = [
    {"kl_coef": 0.0},
    *({"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": estimator} for estimator in ("k1", "k2", "k3", "k3+", "full")),
    *({"kl_coef": 0.1, "kl_in": "reward", "kl_estimator": estimator} for estimator in ("k1", "k3", "k3+", "full")),
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k1", "kl_importance_weighted": True},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k2", "kl_importance_weighted": True},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "full", "kl_direction": "forward"},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3", "kl_direction": "forward"},
]


@pytest.mark.parametrize("ratio", LEVELS)
@pytest.mark.parametrize("baseline", get_args(pieces.Baseline))
def test_every_combination_is_refused_by_name_or_has_finite_losses_that_add_up(baseline, ratio):
    critic, none = baseline == "critic", ratio == "none"
    config_class = (WithCritic if none else ppo.PPOConfig) if critic else (Estimator if none else grpo.GRPOConfig)
    objective = reinforce_objective if none else clipped_objective
    entry = Algorithm(config_class(), objective, lambda hparams: "", "", "")
    possible = 0
    for scale, aggregation, correction, kl in product(("none", "whiten"), MODES, get_args(Correction), KL):
        choice = {"baseline": baseline, "scale": scale, "ratio": ratio, "aggregation": aggregation, **kl}
        choice["correction"] = correction
        try:
            hparams = config_class(**choice, aggregation_length=5)
        except ValueError as error:
            assert any(f"{name} {value}" in str(error) for name, value in choice.items()), (choice, str(error))
            continue
        possible += 1
        case = Case("", entry, hparams)
        b = make(hparams, lengths=(1, 3, 2, 3), width=3)
        b = with_advantages(case, fill(b, b.response_mask, NAN))
        whole = step(case, b)
        parts = [step(case, rows_of(b, rows), Totals.of(loss_mask(b))) for rows in ([0], [1, 2, 3])]
        assert whole.numbers["loss"].isfinite() and whole.gradients["logprobs"].isfinite().all(), choice
        assert whole.gradients["logprobs"].abs().sum() > 0, choice
        added = sum(part.numbers["loss"] for part in parts)
        assert torch.allclose(added, whole.numbers["loss"], atol=1e-12), choice
        torch.testing.assert_close(parts[1].gradients["logprobs"], whole.gradients["logprobs"][1:])
    assert possible == 0 if critic and ratio in PER_RESPONSE else possible >= 30
