"""The training loop on a tiny policy: budgets, warm-up, adapted hparams, what survives an interruption."""

import pytest
from lean import loop_in


@pytest.fixture
def loop(tmp_path):
    return loop_in(tmp_path)


def test_a_token_budget_ends_the_run_after_the_batch_that_reaches_it(loop):
    _, free = loop("grpo", steps=4)
    spent = [line["generated_tokens"] for line in free]
    assert spent == [sum(line["batch_tokens"] for line in free[: i + 1]) for i in range(4)]
    for budget, steps in ((1, 1), (spent[1] - 1, 2), (spent[1], 2), (spent[1] + 1, 3)):
        record, lines = loop("grpo", steps=4, budget_tokens=budget)
        assert [line["generated_tokens"] for line in lines] == spent[:steps]
        assert record["generated_tokens"] == spent[steps - 1] >= budget


def test_steps_that_end_before_the_budget_is_spent_say_so(loop, capsys):
    record, lines = loop("grpo", steps=1, budget_tokens=10**6)
    assert len(lines) == 1 and record["status"] == "finished"
    said = capsys.readouterr().out
    assert f"warning: 1 steps generated {record['generated_tokens']} of budget_tokens = 1000000 tokens" in said


def test_the_tokens_of_discarded_groups_count_in_the_budget(loop):
    """Nothing is ever right here, so that dynamic sampling draws three rounds a step and keeps one."""
    record, lines = loop("dapo", {"max_rounds": 3}, steps=2)
    assert [line["sampling_rounds"] for line in lines] == [3, 3] and {line["mixed_groups"] for line in lines} == {0}
    assert record["generated_responses"] == 2 * 3 * 8
    assert all(line["batch_tokens"] > 2 * line["response_tokens"] * 8 for line in lines)


def test_the_loop_warms_the_critic_up_for_as_many_rollout_batches_as_set(loop):
    _, lines = loop("ppo", {"value_warmup": 2})
    assert ["policy_loss" in line for line in lines] == [False, False, True]
    assert all("value_loss" in line and line["updates"] == 2 for line in lines)


def test_the_loop_steers_the_coefficient_of_the_kl_penalty(loop):
    """From a KL of 0 to a target of 2 it falls by 0.2 x responses / horizon; the first step uses the setting itself."""
    _, lines = loop("ppo_adaptive_kl", {"kl_coef": 0.1, "kl_horizon": 80})
    assert lines[0]["kl_coef"] == 0.1 and lines[0]["kl_to_ref_sequence"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 80))


@pytest.mark.parametrize("algorithm", ["raft", "remax", "trpo", "ppo_shared", "ppo_penalty", "reinforce_pp"])
def test_the_loop_runs_what_needs_more_than_a_loss(loop, algorithm):
    changes = {"minibatches": 1} if algorithm in ("trpo", "raft", "remax") else {}
    record, lines = loop(algorithm, steps=2, **changes)
    assert record["status"] == "finished" and len(lines) == 2
    if algorithm != "raft":  # which has nothing right to learn from
        assert all(line["grad_norm"] > 0 for line in lines)
