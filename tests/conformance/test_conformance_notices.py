"""Wrong algorithms, which the conformance tests must notice."""

from dataclasses import replace

import pytest
import test_conformance_advantages as advantages
import test_conformance_gradients as gradients
import test_conformance_masks as masks
import torch
from cases import Case, case_of
from golden import NAN

from algos import grpo


def wrong(objective=None, **changes) -> Case:
    entry = replace(grpo.ALGORITHM, **changes)
    if objective:
        entry = replace(entry, objective=lambda lr, lp, A, m, c: (objective(lr.exp(), lp, A, m), {}))
    return case_of("wrong", entry)


def raw_rewards(batch, hparams):
    return batch.rewards.view(-1, 1)


def padded_sum(batch, hparams):
    return batch.rewards.view(-1, 1) - 0.1 * batch.old_logprobs.sum(dim=1, keepdim=True)


def running_mean(batch, hparams):
    return (batch.rewards - batch.rewards.cumsum(0) / torch.arange(1, len(batch.rewards) + 1)).view(-1, 1)


def blind(batch, hparams):
    return torch.ones_like(batch.rewards).view(-1, 1)


@pytest.mark.parametrize(
    "test, case, options",
    [
        (masks.test_padding_has_no_effect, wrong(advantages=padded_sum), {"padding": NAN}),
        (
            masks.test_the_order_of_responses_has_no_effect,
            wrong(lambda r, lp, A, m: r * A * torch.arange(1, len(r) + 1)[:, None]),
            {},
        ),
        (
            masks.test_micro_batches_add_up_to_the_step,
            wrong(lambda r, lp, A, m: r * A / A.abs().mean()),
            {"sizes": (6, 6)},
        ),
        (
            masks.test_micro_batches_add_up_to_the_step,
            wrong(lambda r, lp, A, m: r * A * m.sum() / len(r)),
            {"sizes": (1, 7, 4)},
        ),
        (
            masks.test_what_is_masked_is_never_counted,
            wrong(lambda r, lp, A, m: r * A * r.shape[1]),
            {"extra": "padding column"},
        ),
        (
            masks.test_what_is_masked_is_never_counted,
            wrong(lambda r, lp, A, m: r * A / len(r)),
            {"extra": "empty response"},
        ),
        (masks.test_one_token_responses_need_no_second_column, wrong(lambda r, lp, A, m: r * A * r.shape[1]), {}),
        (
            advantages.test_the_order_of_groups_and_within_them_permutes_the_advantages,
            wrong(advantages=running_mean),
            {},
        ),
        (advantages.test_the_last_valid_token_is_rewarded, wrong(advantages=blind), {}),
        (
            advantages.test_equal_rewards_are_finite_and_teach_a_group_baseline_nothing,
            wrong(advantages=raw_rewards),
            {},
        ),
        (
            gradients.test_on_the_first_step_ratios_are_1_and_the_gradient_is_the_plain_policy_gradient,
            wrong(lambda r, lp, A, m: 2 * r * A),
            {},
        ),
        (
            gradients.test_without_advantage_the_policy_term_has_no_gradient,
            wrong(lambda r, lp, A, m: r * (A + 0.1)),
            {},
        ),
        (
            gradients.test_gradients_are_those_of_finite_differences,
            wrong(lambda r, lp, A, m: r.detach() * A * lp),
            {"spread": 0.3},
        ),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_a_wrong_algorithm_is_noticed(test, case, options):
    with pytest.raises(AssertionError):
        test(case, **options)
