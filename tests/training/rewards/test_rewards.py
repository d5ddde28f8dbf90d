"""Rewards combined, by hand; what is logged of them; the learned reward's scale."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import TEXTS, random_rollouts, tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.tokens import encode_prompt, train_tokenizer
from algos.training.rewards.rewards import Rewards, RunningStd, combine, component_metrics
from algos.training.rewards.rules import RewardSettings
from algos.training.trl.check import check

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]


def run(**settings) -> RunConfig:
    return from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "group_size": 2, **settings})


def problems(*answers: str) -> list[dict]:
    return [{"prompt": "", "answer": f"#### {answer}"} for answer in answers]


def test_rewards_are_weighted_and_logged_apart():
    rollouts = random_rollouts(TOKENIZER, [[5], [6]], 2, [1, 1, 1, 1])
    score = Rewards(run(rewards={"correctness": 1.0, "format": 0.1}), TOKENIZER)
    scored = score(rollouts, ["#### 5", "#### 6", "6", "#### 6"], problems("5", "6"))
    total, parts = scored.rewards, scored.components
    torch.testing.assert_close(total, torch.tensor([1.1, 0.1, 0.0, 1.1]))
    assert parts["correctness"].tolist() == [1, 0, 0, 1] and parts["format"].tolist() == [1, 1, 0, 1]
    with pytest.raises(SettingsError, match="reward_model"):
        Rewards(run(rewards={"reward_model": 1.0}), TOKENIZER)


def test_correctness_is_there_even_if_it_is_no_reward():
    rollouts = random_rollouts(TOKENIZER, [[5]], 2, [1, 1])
    scored = Rewards(run(rewards={"format": 1.0}), TOKENIZER)(rollouts, ["#### 5", "#### 6"], problems("5"))
    total, parts = scored.rewards, scored.components
    assert total.tolist() == [1, 1] and parts["correctness"].tolist() == [1, 0]


def test_rules_see_lengths_the_worked_solution_and_the_end_of_the_prompt():
    tokenizer = train_tokenizer([*TEXTS, "<think>"] * 3, 120)
    rollouts = random_rollouts(tokenizer, [encode_prompt(tokenizer, "7+5=<think>"), [6]], 2, [2, 7, 8, 1])
    rollouts = replace(rollouts, truncated=torch.tensor([False, False, True, False]))
    config = run(
        rewards={"overlong": 1.0, "edit_similarity": 1.0, "think_format": 1.0},
        reward_settings={"overlong_tokens": 4},
        max_response_tokens=8,
        missing_end_penalty=0.5,
    )
    texts = ["12</think><answer>#### 12</answer>", "7+5=12\n#### 12", "#### 3", ""]
    rows = [{"prompt": "", "answer": "7+5=12\n#### 12"}, {"prompt": "", "answer": "#### 4"}]
    scored = Rewards(config, tokenizer)(rollouts, texts, rows)
    total, parts = scored.rewards, scored.components
    assert parts["overlong"].tolist() == [0, -0.75, -1, 0]
    assert parts["think_format"].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(parts["edit_similarity"][1:], torch.tensor([1, 5 / 6, 0]))
    rest = total - sum(parts[name] for name in config.rewards)
    torch.testing.assert_close(rest, torch.tensor([0, 0, -0.5, 0]))  # the truncated one


PARTS = {
    "correctness": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "format": torch.tensor([1.0, 1.0, 0.0, 0.0]),
    "repetition": torch.tensor([-0.5, -0.5, 0.0, -1.0]),
}
WEIGHTS = {"correctness": 1.0, "format": 0.2, "repetition": 0.1}


def test_the_sum_by_hand():
    torch.testing.assert_close(combine(PARTS, WEIGHTS, "sum", 2), torch.tensor([1.15, 0.15, 1.0, -0.1]))


def test_the_gate_by_hand():
    """Format is lost where the answer is wrong, penalties are not; a negative weight makes a penalty of a rule."""
    torch.testing.assert_close(combine(PARTS, WEIGHTS, "gate", 2), torch.tensor([1.15, -0.05, 1.0, -0.1]))
    torch.testing.assert_close(
        combine(PARTS, {"format": -0.2, "repetition": -0.1}, "gate", 2), torch.tensor([-0.15, -0.2, 0.0, 0.0])
    )
    assert combine(PARTS, {"correctness": -1.0, "format": 0.5}, "gate", 2).tolist() == [-0.5, 0, -1, 0]


def test_normalizing_each_component_by_hand():
    """A pair x, x - 1 has mean x - 1/2 and sample standard deviation 1 / sqrt(2); where both are equal there is 0.

    In the first group only correctness differs, in the second correctness and, with weight 0.1, repetition.
    """
    unit = 0.5 / (0.5**0.5 + 1e-4)
    got = combine(PARTS, WEIGHTS, "normalize_each", 2)
    torch.testing.assert_close(got, torch.tensor([unit, -unit, 1.1 * unit, -1.1 * unit]))
    equal = {"correctness": torch.full((6,), 0.1), "format": torch.full((6,), 0.7)}
    assert combine(equal, {"correctness": 1.0, "format": 1.0}, "normalize_each", 3).tolist() == [0] * 6


def test_normalizing_each_tells_apart_what_the_sum_makes_equal():
    """GDPO's example: rewards (0, 1) and (0, 2) are the same two advantages after one normalization of the sum."""
    one = {"correctness": torch.tensor([0.0, 1.0]), "format": torch.tensor([0.0, 0.0])}
    both = {"correctness": torch.tensor([0.0, 1.0]), "format": torch.tensor([0.0, 1.0])}
    weights = {"correctness": 1.0, "format": 1.0}
    first, second = (combine(parts, weights, "normalize_each", 2) for parts in (one, both))
    torch.testing.assert_close(second, 2 * first)


def test_component_metrics():
    parts = {
        "correctness": torch.zeros(4),
        "repetition": PARTS["repetition"],
        "reward_model": torch.tensor([5.0, 5, 1]),
    }
    metrics = component_metrics(parts)
    assert metrics["reward_correctness_at_max"] == 0  # the rule's maximum is 1, not the batch's
    assert metrics["reward_repetition"] == -0.5 and metrics["reward_repetition_at_max"] == 0.25
    assert metrics["reward_repetition_std"] == pytest.approx((0.5 / 3) ** 0.5)
    assert metrics["reward_reward_model_at_max"] == pytest.approx(2 / 3)


def test_the_running_standard_deviation_is_that_of_all_numbers_seen():
    running, seen = RunningStd(), torch.empty(0)
    assert running.std == 1
    generator = torch.Generator().manual_seed(0)
    for size in (1, 5, 1, 8):
        values = torch.randn(size, generator=generator) * size + 100
        running.update(values)
        seen = torch.cat([seen, values])
        assert running.std == pytest.approx(seen.double().std().item() if len(seen) > 1 else 1.0)
    assert (running.count, running.mean) == (15, pytest.approx(seen.double().mean().item()))
    equal = RunningStd()
    equal.update(torch.full((7,), 0.1))
    assert equal.std == 1


@pytest.fixture
def reward_model():
    backbone = copy.deepcopy(tiny_model(TOKENIZER).base_model)
    return ScalarModel(backbone, "linear", 0.5, torch.Generator().manual_seed(0))


def learned(reward_model, **settings) -> Rewards:
    return Rewards(run(rewards={"reward_model": 1.0}, **settings), TOKENIZER, reward_model)


def test_learned_rewards_are_normalized_clipped_and_low_for_partial_responses(reward_model):
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    raw = learned(reward_model).learned(rollouts)[0]
    reward_model.offset, reward_model.gain = raw.mean().item(), 1 / raw.std().item()
    normal = learned(reward_model).learned(rollouts)[0]
    assert normal.mean().item() == pytest.approx(0, abs=1e-5) and normal.std().item() == pytest.approx(1, abs=1e-5)
    cut = replace(rollouts, truncated=torch.ones(8, dtype=torch.bool))
    assert (learned(reward_model).learned(cut)[0] <= -1).all()
    assert learned(reward_model, reward_clip=0.5).learned(rollouts)[0].abs().max() <= 0.5


def test_running_scale_divides_by_the_spread_so_far_and_does_not_shift(reward_model):
    batches = [random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS, seed) for seed in (0, 1)]
    raw = [learned(reward_model).learned(rollouts)[0] for rollouts in batches]
    scaled = learned(reward_model, reward_scale_running=True)
    torch.testing.assert_close(scaled.learned(batches[0])[0], raw[0] / raw[0].std())
    torch.testing.assert_close(scaled.learned(batches[1])[0], raw[1] / torch.cat(raw).std())
    clipped = learned(reward_model, reward_scale_running=True, reward_clip=0.5).learned(batches[0])[0]
    torch.testing.assert_close(clipped, (raw[0] / raw[0].std()).clamp(-0.5, 0.5))  # clipping comes last


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reward_combination": "mean"}, "reward_combination: 'mean' is unknown"),
        ({"reward_combination": "gate"}, "gate needs at least two rewards, got correctness"),
        ({"reward_combination": "normalize_each"}, "normalize_each needs at least two rewards, got correctness"),
        (
            {
                "algorithm": "ppo",
                "rewards": {"correctness": 1, "format": 1},
                "reward_combination": "normalize_each",
                "group_size": 1,
            },
            "normalize_each needs group_size at least 2, got 1",
        ),
        (
            {
                "algorithm": "remax",
                "rewards": {"correctness": 1, "format": 1},
                "reward_combination": "normalize_each",
            },
            "leaves the greedy response",
        ),
        ({"rewards": {"overlong": 1}, "reward_settings": {"overlong_tokens": 48}}, "must be below .* = 48, got 48"),
        ({"reward_settings": {"ngram": 3}}, "reward_settings, key: 'ngram' is unknown"),
        ({"reward_settings": {"language_script": "latin"}}, "language_script: 'latin' is unknown"),
        ({"missing_end_penalty": -1}, "missing_end_penalty must be at least 0, got -1"),
    ],
)
def test_impossible_rewards_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        run(**settings)


def test_the_rules_settings_are_recorded_with_their_defaults():
    assert run(reward_settings={"overlong_tokens": 4}).reward_settings == RewardSettings(overlong_tokens=4)
    assert run().resolved()["reward_settings"]["repetition_ngram"] == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reward_scale_running": True}, "reward_scale_running"),
        (
            {"rewards": {"correctness": 1, "format": 1}, "reward_combination": "normalize_each"},
            "normalize_each is not handed to TRL",
        ),
        ({"algorithm": "ppo", "optimizer": {"name": "adafactor"}}, "got optimizer.name adafactor; use adamw"),
    ],
)
def test_trl_baselines_refuse_what_trl_cannot_do(settings, message):
    with pytest.raises(SettingsError, match=message):
        check(run(trainer="trl", **settings))
