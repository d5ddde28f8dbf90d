"""Plain sampling, dynamic sampling and greedy baselines, with a policy whose answers are written down."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.types import Rollouts
from algos.training import experience as stage
from algos.training.config import RunConfig
from algos.training.experience import PromptOrder, Sampler, prompt_schedule
from algos.training.rewards.rewards import Rewards, Scored
from algos.training.sampling import engines
from algos.training.sampling.sampler import sample
from algos.training.stage.record import Phases

PAD, GROUP, WANTED = 0, 2, 2


def dynamic(**settings) -> RunConfig:
    return RunConfig(
        "dapo",
        0,
        {"max_rounds": 3, **settings},
        prompts_per_step=WANTED,
        group_size=GROUP,
        minibatches=1,
        rewards={"correctness": 1.0},
    )


class Written:
    """Stands in for sample, decode and the rewards: the n-th sampled group has the n-th entry of right answers.

    A group's responses are n + 1 tokens long, all of them the number 10 + n, so that what is kept can be told apart.
    """

    def __init__(self, monkeypatch, rights: list[list[int]]):
        self.rights, self.next, self.calls, self.prompts = rights, count(), [], []
        monkeypatch.setattr(engines, "sample", self.sample)
        monkeypatch.setattr(
            stage, "decode", lambda tokenizer, rollouts: [str(x) for x in rollouts.response_ids[:, 0].tolist()]
        )

    def sample(self, policy, tokenizer, prompts, group_size, max_tokens, temperature, generator, *_):
        self.calls.append((len(prompts), group_size, temperature))
        self.prompts += prompts
        if temperature == 0.0:
            ids = torch.full((len(prompts), 5), 99)
            return Rollouts(prompts, 1, ids, ids > 0, torch.zeros(ids.shape), torch.zeros(len(ids), dtype=torch.bool))
        numbers = [next(self.next) for _ in prompts]
        lengths = torch.tensor([n + 1 for n in numbers for _ in range(group_size)])
        ids = torch.tensor([10 + n for n in numbers for _ in range(group_size)])[:, None].expand(-1, int(lengths.max()))
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        self.groups = numbers
        logprobs = torch.where(mask, -ids / 100, 0.0)
        return Rollouts(prompts, group_size, torch.where(mask, ids, PAD), mask, logprobs, lengths > 3)

    def score(self, rollouts, texts, problems):
        if rollouts.group_size == 1:
            greedy = torch.tensor([float(problem["greedy"]) for problem in problems])
            return Scored(greedy, {"correctness": greedy})
        right = torch.tensor([float(x) for n in self.groups for x in self.rights[n]])
        return Scored(right + 0.5, {"correctness": right})

    def collect(self, config: RunConfig, problems: int = 10):
        rows = [{"id": i, "greedy": i % 2} for i in range(problems)]
        tokenizer = type("Tokenizer", (), {"pad_token_id": PAD})
        return Sampler(config, rows, [[i + 1] for i in range(problems)], tokenizer, self.score)


def numbers(experience) -> list[int]:
    """Which groups were kept, by their tokens."""
    return [int(text) - 10 for text in experience.texts[::GROUP]]


RIGHT, WRONG, MIXED = [1, 1], [0, 0], [1, 0]


@pytest.mark.parametrize(
    "rights, kept, rounds",
    [
        ([MIXED, MIXED], [0, 1], 1),  # enough at once
        ([RIGHT, MIXED, WRONG, MIXED], [1, 3], 2),  # one of each round
        ([RIGHT, WRONG, MIXED, MIXED], [2, 3], 2),
        ([MIXED, WRONG, MIXED, MIXED], [0, 2], 2),  # the third one is too many
        ([WRONG, WRONG, RIGHT, RIGHT, WRONG, MIXED], [0, 5], 3),  # three rounds, one mixed: filled up with the first
        ([RIGHT, WRONG] * 3, [0, 1], 3),  # none: the batch of plain sampling
    ],
)
def test_dynamic_sampling_keeps_mixed_groups_and_fills_up_after_the_last_round(monkeypatch, rights, kept, rounds):
    written = Written(monkeypatch, rights)
    got = written.collect(dynamic())(None, None, Phases())
    assert numbers(got) == kept and got.rounds == rounds == len(written.calls)
    mixed = sum(group == MIXED for group in rights[: rounds * WANTED])
    assert got.mixed_share == pytest.approx(mixed / (rounds * WANTED))


def test_every_generated_token_counts_whether_kept_or_not(monkeypatch):
    """Group n has two responses of n + 1 tokens: 2 x (1 + 2 + 3 + 4) in two rounds, of which 2 x (2 + 4) are kept."""
    got = Written(monkeypatch, [RIGHT, MIXED, WRONG, MIXED]).collect(dynamic())(None, None, Phases())
    assert got.generated_tokens == 20 and got.generated_responses == 8
    assert got.rollouts.response_tokens == 12


def test_what_is_kept_stays_together(monkeypatch):
    """Tokens, masks, log-probabilities, rewards, prompts and problems of groups 1 and 3, of different lengths."""
    written = Written(monkeypatch, [RIGHT, MIXED, WRONG, [0, 1]])
    got = written.collect(dynamic())(None, None, Phases())
    drawn = PromptOrder(10, 0).take(4)
    assert written.prompts == [[i + 1] for i in drawn]
    assert got.problems == [drawn[1], drawn[3]] and got.rollouts.prompts == [[drawn[1] + 1], [drawn[3] + 1]]
    assert got.rollouts.response_ids.tolist() == [[11, 11, PAD, PAD]] * 2 + [[13] * 4] * 2
    assert got.rollouts.response_mask.sum(dim=1).tolist() == [2, 2, 4, 4]
    torch.testing.assert_close(got.rollouts.sampler_logprobs[:, 0], torch.tensor([-0.11, -0.11, -0.13, -0.13]))
    assert (got.rollouts.sampler_logprobs[~got.rollouts.response_mask] == 0).all()
    assert got.rollouts.truncated.tolist() == [False, False, True, True]
    assert got.rewards.tolist() == [1.5, 0.5, 0.5, 1.5] and got.components["correctness"].tolist() == [1, 0, 0, 1]


def test_groups_are_chosen_by_correctness_and_not_by_the_shaped_reward(monkeypatch):
    """A length penalty makes the rewards of two right answers differ; the group is not mixed all the same."""
    written = Written(monkeypatch, [RIGHT, RIGHT, MIXED, MIXED])
    score = written.score

    def shaped(*args):
        scored = score(*args)
        return replace(scored, rewards=scored.rewards - torch.arange(len(scored.rewards)) / 10)

    written.score = shaped
    assert numbers(written.collect(dynamic())(None, None, Phases())) == [2, 3]


def test_plain_sampling_keeps_everything_in_one_round(monkeypatch):
    written = Written(monkeypatch, [RIGHT, WRONG])
    config = replace(dynamic(), algorithm="grpo", settings={})
    got = written.collect(config)(None, None, Phases())
    assert numbers(got) == [0, 1] and got.rounds == 1 and got.mixed_share == 0 and got.greedy_rewards is None


def test_one_round_is_plain_sampling(monkeypatch):
    got = Written(monkeypatch, [RIGHT, WRONG]).collect(dynamic(max_rounds=1))(None, None, Phases())
    assert numbers(got) == [0, 1] and got.rounds == 1


def test_remax_scores_the_greedy_response_to_each_kept_prompt_and_counts_its_tokens(monkeypatch):
    """2 x (1 + 2) sampled tokens and 2 x 5 greedy ones; the rewards are those of the same problems, in their order."""
    written = Written(monkeypatch, [RIGHT, WRONG])
    config = RunConfig("remax", 0, prompts_per_step=WANTED, group_size=GROUP, minibatches=1, temperature=0.7)
    got = written.collect(config)(None, None, Phases())
    assert written.calls == [(2, 2, 0.7), (2, 1, 0.0)]
    assert got.greedy_rewards.tolist() == [float(i % 2) for i in got.problems]
    assert written.prompts[2:] == got.rollouts.prompts
    assert got.generated_tokens == 6 + 10 and got.generated_responses == 4 + 2
    assert len(got.rewards) == 4 and got.rollouts.response_tokens == 6


def test_the_greedy_baseline_of_a_real_policy_is_the_reward_of_its_greedy_responses():
    tokenizer = tiny_tokenizer()
    policy, config = (
        tiny_model(tokenizer),
        RunConfig(
            "remax",
            0,
            prompts_per_step=3,
            group_size=2,
            minibatches=1,
            max_response_tokens=6,
            rewards={"edit_similarity": 1.0},
        ),
    )
    problems = [{"id": i, "question": "q", "prompt": "p", "answer": f"#### {i}"} for i in range(3)]
    prompts = [[5, 6], [7, 8, 9], [10]]
    collect = Sampler(config, problems, prompts, tokenizer, Rewards(config, tokenizer))
    got = collect(policy, torch.Generator().manual_seed(0), Phases())
    assert got.greedy_rewards.shape == (3,) and sorted(got.problems) == [0, 1, 2]
    order = [prompts[i] for i in got.problems]
    greedy = sample(policy, tokenizer, order, 1, 6, 0.0, torch.Generator())
    expected = collect.score(greedy, stage.decode(tokenizer, greedy), [problems[i] for i in got.problems]).rewards
    torch.testing.assert_close(got.greedy_rewards, expected)
    assert expected.unique().numel() > 1
    assert got.generated_tokens == got.rollouts.response_tokens + greedy.response_tokens


def test_prompts_come_in_shuffled_passes_that_depend_on_the_seed_alone():
    config = RunConfig("grpo", 0, steps=5, prompts_per_step=4)
    schedule = prompt_schedule(10, config)
    flat = [i for chosen in schedule for i in chosen]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert schedule == prompt_schedule(10, RunConfig("ppo", 0, steps=5, prompts_per_step=4))
    assert schedule != prompt_schedule(10, RunConfig("grpo", 1, steps=5, prompts_per_step=4))


def test_the_sampler_deals_prompts_as_the_schedule_says(monkeypatch):
    written = Written(monkeypatch, [MIXED] * 8)
    config = replace(dynamic(), steps=3)
    collect = written.collect(config)
    assert [collect(None, None, Phases()).problems for _ in range(3)] == prompt_schedule(10, config)
