"""What counts as one difference between two stages."""

import pandas as pd
import pytest
from synthetic import rl, stage

from algos.training.rewards.rules import RewardSettings
from evaluation.collect import Stage
from evaluation.families import Verdicts
from evaluation.pairs import differences, pairs, pairwise, say, trl_baselines


def as_stage(entry: dict, name: str = "x") -> Stage:
    """The stage of a study's entry, without scores."""
    record = {"settings": {**entry["settings"], "seed": 0}, "trainer": entry["trainer"], **entry.get("facts", {})}
    return Stage(name, entry["kind"], entry["from"], entry["like"], entry["edges"], entry["seeds"], [record], [])


def counted(first: dict, second: dict) -> str:
    return say(differences(as_stage(first), as_stage(second))[0])


def consequences(first: dict, second: dict) -> str:
    return say(differences(as_stage(first), as_stage(second))[1])


@pytest.mark.parametrize(
    "other, expected",
    [
        (rl("base", clip_high=0.28), "settings.clip_high: 0.2 -> 0.28"),
        (rl("other"), "from: base -> other"),
        (rl("base", kl_coef=0.01), "settings.kl_coef: 0.0 -> 0.01"),
        (rl("base", loop={"steps": 60}), "steps: 30 -> 60"),
        (rl("base", loop={"micro_batch_tokens": 4096}), "micro_batch_tokens: null -> 4096"),
        (rl("base", keep="correct"), "settings.keep: all -> correct"),
        (rl("base", correction="token_truncate"), "settings.correction: none -> token_truncate"),
    ],
)
def test_one_written_setting_is_one_difference(other, expected):
    assert counted(rl("base"), other) == expected


def test_an_algorithms_name_by_itself_is_no_difference():
    assert counted(rl("base", "grpo"), rl("base", "gspo", ratio="token", clip_low=0.2, clip_high=0.2)) == ""


def test_algorithms_differ_in_their_resolved_hyperparameters():
    expected = "settings.ratio: token -> sequence; settings.clip_low: 0.2 -> 0.0003; settings.clip_high: 0.2 -> 0.0004"
    assert counted(rl("base", "grpo"), rl("base", "gspo")) == expected


def test_another_objective_is_one_difference_with_the_hyperparameters_that_it_alone_has():
    first, second = rl("base", "grpo", aggregation="token-mean"), rl("base", "cispo")
    assert counted(first, second) == "objective: grpo -> cispo"
    assert "settings.is_max: absent -> 5.0" in consequences(first, second)


def test_the_critics_settings_follow_from_the_critic():
    first, second = rl("base", "ppo", aggregation="seq-mean-token-mean"), rl("base", "grpo", scale="none")
    assert counted(first, second) == "settings.baseline: critic -> group_mean; settings.scale: whiten -> none"
    assert "settings.gae_lambda: 0.95 -> absent" in consequences(first, second)
    assert "settings.kl_in: reward -> loss" in consequences(first, second)  # neither has a KL


def test_the_critics_settings_count_where_both_have_a_critic():
    expected = "settings.gae_lambda: 0.95 -> 1.0"
    assert counted(rl("base", "ppo"), rl("base", "ppo", gae_lambda=1.0)) == expected


def test_the_kind_of_a_kl_counts_where_both_have_one():
    first, second = (rl("base", kl_coef=0.1, kl_estimator=kind) for kind in ("k1", "k3"))
    assert counted(first, second) == "settings.kl_estimator: k1 -> k3"
    assert counted(rl("base"), rl("base", kl_estimator="k1")) == ""


def test_rewards_are_one_value_and_bring_their_reward_model():
    second = rl("base", loop={"rewards": {"reward_model": 1.0}}, edges={"reward_model": "judge"})
    assert counted(rl("base"), second) == 'rewards: {"correctness": 1.0} -> {"reward_model": 1.0}'
    third = rl("base", loop={"rewards": {"reward_model": 1.0}}, edges={"reward_model": "another"})
    assert counted(second, third) == "reward_model: judge -> another"


def test_a_reference_that_is_the_stages_start_follows_from_the_start():
    first, second = (rl(start, edges={"reference": start}) for start in ("a", "b"))
    assert (counted(first, second), consequences(first, second)) == ("from: a -> b", "reference: a -> b")
    fixed = rl("b", edges={"reference": "a"})
    assert counted(second, fixed) == "reference: b -> a"


CRITIC_KL = {"kl_coef": 0.01, "kl_in": "reward", "kl_estimator": "k1"}


@pytest.mark.parametrize(
    "first, second, expected",
    [  # a setting that acts counts, and the same setting where it does not act does not
        (rl("base", "dapo"), rl("base", "dapo", max_rounds=8), "settings.max_rounds: 4 -> 8"),
        (rl("base"), rl("base", max_rounds=8), ""),
        (rl("base", std_ddof=1), rl("base", std_ddof=0), "settings.std_ddof: 1 -> 0"),
        (rl("base", scale="none"), rl("base", scale="none", std_ddof=0), ""),
        (rl("base"), rl("base", std_epsilon=1.0e-4), "settings.std_epsilon: 1e-06 -> 0.0001"),
        (rl("base", scale="whiten"), rl("base", scale="whiten", std_epsilon=1.0e-4), ""),
        (
            rl("base", correction="token_mask"),
            rl("base", correction="token_mask", correction_low=0.4),
            "settings.correction_low: 0.5 -> 0.4",
        ),
        (rl("base"), rl("base", correction_low=0.4), ""),
        (rl("base", ratio="product"), rl("base", ratio="product", aggregation="token-mean"), ""),
        *(  # terms of the loss that have one value a token
            (
                rl("base", ratio="product", **term),
                rl("base", ratio="product", aggregation="token-mean", **term),
                "settings.aggregation: seq-mean-token-mean -> token-mean",
            )
            for term in ({"kl_coef": 0.1}, {"entropy_coef": 0.1})
        ),
        (rl("base", kl_coef=0.1, kl_target=1.0), rl("base", kl_coef=0.1, kl_target=1.0, kl_horizon=9), "kl_horizon"),
        (rl("base", kl_coef=0.1), rl("base", kl_coef=0.1, kl_horizon=9), ""),
        (rl("base", **CRITIC_KL), rl("base", **CRITIC_KL, credit="token"), "settings.credit: response -> token"),
        (rl("base"), rl("base", credit="token"), ""),
        (
            rl("base", "ppo"),
            rl("base", "ppo", loop={"critic_learning_rate": 1.0e-3}),
            "critic_learning_rate: null -> 0.0",
        ),
        (rl("base"), rl("base", loop={"critic_learning_rate": 1.0e-3}), ""),
        (rl("base"), rl("base", loop={"reward_clip": 5.0}), ""),
        (rl("base"), rl("base", loop={"reward_settings": RewardSettings(overlong_tokens=9)}), ""),
        (
            rl("base", "dr_grpo"),
            rl("base", "dr_grpo", loop={"max_response_tokens": 96}),
            "max_response_tokens: 48 -> 96",
        ),
    ],
)
def test_a_setting_counts_where_it_acts_and_nowhere_else(first, second, expected):
    found = counted(first, second)
    assert found == expected or (expected and expected in found and found.count(": ") == 1), found


def test_the_clip_of_a_learned_reward_follows_from_the_reward():
    learned = rl("base", loop={"rewards": {"reward_model": 1.0}, "reward_clip": 5.0}, edges={"reward_model": "judge"})
    assert counted(rl("base"), learned) == 'rewards: {"correctness": 1.0} -> {"reward_model": 1.0}'
    other = rl("base", loop={"rewards": {"reward_model": 1.0}, "reward_clip": 4.0}, edges={"reward_model": "judge"})
    assert counted(learned, other) == "reward_clip: 5.0 -> 4.0"


def test_an_edge_follows_where_one_of_the_two_has_no_use_for_it():
    plain, pulled = rl("a"), rl("a", kl_coef=0.05, edges={"reference": "b"})
    assert counted(plain, pulled) == "settings.kl_coef: 0.0 -> 0.05"
    assert counted(rl("a", kl_coef=0.05), pulled) == "reference: absent -> b"
    judged = rl("a", "ppo", critic_init="reward_model", edges={"reward_model": "judge"}, scale="none")
    assert counted(judged, rl("a", scale="none", aggregation="token-mean")) == "settings.baseline: critic -> group_mean"


def test_seeds_within_a_section_are_no_difference():
    rounds = [stage("expert_iteration", "base", sampling={"seed": n, "prompts": 9}) for n in (0, 1)]
    assert counted(*rounds) == ""


def test_adapters_are_one_difference():
    first, second = rl("base"), rl("base")
    second["settings"]["lora"] = {"rank": 16, "alpha": 32.0, "targets": []}
    assert counted(first, second) == 'lora: null -> {"rank": 16, "alpha": 32.0, "targets": []}'


def test_a_trl_baseline_differs_in_the_trainer_alone():
    entries = {
        "own": rl("base"),
        "baseline": rl("base", like="own", loop={"trainer": "trl"}),
        "more": rl("base", like="own", loop={"trainer": "trl", "steps": 60}),
        "unlike": rl("base", loop={"trainer": "trl"}),
        "sft": stage("sft", "base", steps=1, trainer="own"),
        "trl_sft": stage("sft", "base", like="sft", steps=1, trainer="trl"),
    }
    stages = {name: as_stage(entry, name) for name, entry in entries.items()}
    assert trl_baselines(stages) == {"baseline": "own", "trl_sft": "sft"}


def test_another_engine_follows_from_trls_trainer():
    first = rl("base")
    first["settings"]["engine"] = "vllm"
    second = rl("base", loop={"trainer": "trl"})
    assert counted(first, second) == "trainer: own -> trl"


def test_the_pairs_of_one_stage_are_an_empty_table():
    stages = {"a": as_stage(rl("base"), "a")}
    stages["a"].scores = [{"per_problem": {"mean@2": [0.5, 0.6]}}] * 3
    table = pairs(stages, "mean@2", Verdicts(stages, "mean@2", 0.02))
    assert isinstance(table, pd.DataFrame) and table.empty and pairwise(table).empty
