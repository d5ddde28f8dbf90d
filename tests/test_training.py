"""The machinery: rollouts, log-probabilities, batches, rewards, the reward model, and one training step."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import fixture_a
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import ppo
from algos.training import train as loop
from algos.training.config import OptimiserConfig, RunConfig
from algos.training.logprobs import in_micro_batches, token_logprobs, token_values
from algos.training.models import (
    ScalarModel,
    check_causal_lm,
    encode_prompt,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.optimise import schedule
from algos.training.preferences import preference_row
from algos.training.rejection import accept
from algos.training.reward_model import bradley_terry_loss, pair_accuracy, pair_scores
from algos.training.rewards import Rewards
from algos.training.rollouts import decode, sample
from algos.training.supervised import example_batches
from algos.training.types import Totals, make_batch
from evaluation.settings import SettingsError

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]


@pytest.fixture
def model():
    return tiny_model(TOKENIZER)


@pytest.fixture
def batch():
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    return make_batch(rollouts, torch.arange(8, dtype=torch.float64), TOKENIZER.pad_token_id)


def draw(model, prompts=PROMPTS, group=4, tokens=10, temperature=1.0, seed=0, **options):
    return sample(model, TOKENIZER, prompts, group, tokens, temperature, torch.Generator().manual_seed(seed), **options)


def test_log_probabilities_are_those_of_a_plain_forward_pass_over_each_sequence_alone(model, batch):
    logprobs, entropies = token_logprobs(model, batch, 0.7, entropy=True)
    for i, length in enumerate(LENGTHS):
        start = int(batch.prompt_lengths[i])
        alone = torch.log_softmax(model(batch.sequence_ids[i : i + 1, : start + length]).logits[0] / 0.7, dim=-1)
        for t in range(length):  # the logits at position start - 1 + t predict token t
            row = alone[start - 1 + t]
            assert logprobs[i, t].item() == pytest.approx(row[batch.response_ids[i, t]].item(), abs=1e-5)
            assert entropies[i, t].item() == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-5)
        assert (logprobs[i, length:] == 0).all()


def test_values_are_read_at_the_states_before_each_token_and_scores_at_the_last_token(model, batch):
    critic = ScalarModel(copy.deepcopy(model.base_model), "mlp", 0.5, torch.Generator().manual_seed(0))
    values = token_values(critic, batch)
    scores = critic.sequence_scores(batch.sequence_ids, batch.lengths)
    for i, length in enumerate(LENGTHS):
        start = int(batch.prompt_lengths[i])
        alone = critic.score(critic.backbone(batch.sequence_ids[i : i + 1, : start + length]).last_hidden_state)[
            0, :, 0
        ]
        torch.testing.assert_close(
            values[i, :length].double(), alone[start - 1 : start + length - 1], atol=1e-5, rtol=1e-5
        )
        assert scores[i].item() == pytest.approx(alone[-1].item(), abs=1e-5)


def test_what_stands_in_the_padding_has_no_effect(model, batch):
    logprobs, _ = token_logprobs(model, batch, 1.0)
    beyond = torch.arange(batch.sequence_ids.shape[1]) >= batch.lengths[:, None]
    other = replace(
        batch,
        sequence_ids=torch.where(beyond, 17, batch.sequence_ids),
        response_ids=torch.where(batch.response_mask, batch.response_ids, 17),
    )
    torch.testing.assert_close(token_logprobs(model, other, 1.0)[0], logprobs)


def test_micro_batches_give_the_same_values_in_the_same_places(model, batch):
    whole, _ = token_logprobs(model, batch, 1.0)
    for size in (1, 3, 8):
        parts = in_micro_batches(lambda part: token_logprobs(model, part, 1.0)[0], batch, size)
        torch.testing.assert_close(parts, whole.detach(), atol=1e-6, rtol=1e-5)


def test_sampled_log_probabilities_are_the_trainers(model):
    """Left-padded prompts, a key-value cache shared out to groups, rows that leave: the same distribution."""
    rollouts = draw(model, temperature=0.8, tokens=30)
    batch = make_batch(rollouts, torch.zeros(8), TOKENIZER.pad_token_id)
    assert rollouts.response_mask.sum(1).unique().numel() > 2  # responses of different lengths
    trainer, _ = token_logprobs(model, batch, 0.8)
    torch.testing.assert_close(trainer.float(), rollouts.sampler_logprobs, atol=1e-5, rtol=1e-4)


def test_responses_end_with_their_first_end_of_sequence(model):
    rollouts = draw(model, tokens=40)
    for ids, mask, truncated in zip(rollouts.response_ids, rollouts.response_mask, rollouts.truncated, strict=True):
        kept = ids[mask].tolist()
        assert truncated == (TOKENIZER.eos_token_id not in kept)
        assert TOKENIZER.eos_token_id not in kept[:-1]
        assert (ids[~mask] == TOKENIZER.pad_token_id).all()
    assert (~rollouts.truncated).any()


def test_sampling_is_deterministic_and_chunks_keep_the_order(model):
    first, again, other = draw(model), draw(model), draw(model, seed=1)
    assert torch.equal(first.response_ids, again.response_ids)
    assert first.response_ids.shape != other.response_ids.shape or not torch.equal(
        first.response_ids, other.response_ids
    )
    greedy = [draw(model, prompts=PROMPTS * 2, group=1, temperature=0.0, rows_at_once=rows) for rows in (1, 100)]
    assert torch.equal(greedy[0].response_ids, greedy[1].response_ids)


def test_greedy_sampling_equals_transformers_generate(model):
    got = draw(model, prompts=[PROMPTS[0]], group=1, temperature=0.0, tokens=8)
    expected = model.generate(
        torch.tensor([PROMPTS[0]]),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )[0, len(PROMPTS[0]) :]
    assert got.response_ids[0][got.response_mask[0]].tolist() == expected.tolist()


def test_sampled_tokens_have_the_models_frequencies(model):
    rollouts = draw(model, prompts=[PROMPTS[1]], group=20_000, tokens=1, rows_at_once=20_000)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([PROMPTS[1]])).logits[0, -1], dim=-1)
    counts = torch.bincount(rollouts.response_ids[:, 0], minlength=len(p)) / 20_000
    assert (counts - p).abs().max() < 5 * (p * (1 - p) / 20_000).sqrt().max()


def test_text_survives_the_tokenizer():
    rollouts = random_rollouts(TOKENIZER, [encode_prompt(TOKENIZER, "7+5=")], 1, [1])
    ids = TOKENIZER("7+5=12\n#### 12", add_special_tokens=False)["input_ids"]
    rollouts = replace(
        rollouts, response_ids=torch.tensor([ids]), response_mask=torch.ones(1, len(ids), dtype=torch.bool)
    )
    assert decode(TOKENIZER, rollouts) == ["7+5=12\n#### 12"]
    digits = TOKENIZER.convert_ids_to_tokens(TOKENIZER("2048", add_special_tokens=False)["input_ids"])
    assert digits == ["2", "0", "4", "8"]


def test_a_prompt_over_the_limit_is_refused():
    with pytest.raises(SettingsError, match="more than max_prompt_tokens = 3"):
        encode_prompt(TOKENIZER, "7+5=12", 3)


def test_rewards_are_weighted_and_logged_apart():
    rollouts = random_rollouts(TOKENIZER, [[5], [6]], 2, [1, 1, 1, 1])
    score = Rewards({"correctness": 1.0, "format": 0.1}, TOKENIZER.pad_token_id)
    total, parts = score(rollouts, ["#### 5", "#### 6", "6", "#### 6"], ["5", "6"])
    torch.testing.assert_close(total, torch.tensor([1.1, 0.1, 0.0, 1.1]))
    assert parts["correctness"].tolist() == [1, 0, 0, 1] and parts["format"].tolist() == [1, 1, 0, 1]
    with pytest.raises(SettingsError, match="reward_model"):
        Rewards({"reward_model": 1.0}, 0)


def test_learned_rewards_are_normalised_clipped_and_low_for_partial_responses(model):
    reward_model = ScalarModel(copy.deepcopy(model.base_model), "linear", 0.5, torch.Generator().manual_seed(0))
    rollouts = random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    raw = Rewards({"reward_model": 1.0}, TOKENIZER.pad_token_id, reward_model).learned(rollouts)
    reward_model.offset, reward_model.gain = raw.mean().item(), 1 / raw.std().item()
    normal = Rewards({"reward_model": 1.0}, TOKENIZER.pad_token_id, reward_model).learned(rollouts)
    assert normal.mean().item() == pytest.approx(0, abs=1e-5) and normal.std().item() == pytest.approx(1, abs=1e-5)
    cut = replace(rollouts, truncated=torch.ones(8, dtype=torch.bool))
    assert (Rewards({"reward_model": 1.0}, TOKENIZER.pad_token_id, reward_model).learned(cut) <= -1).all()
    assert (
        Rewards({"reward_model": 1.0}, TOKENIZER.pad_token_id, reward_model, clip=0.5).learned(rollouts).abs().max()
        <= 0.5
    )


def test_golden_bradley_terry_loss():
    chosen, rejected = torch.tensor([1.5, 0.2, 2.0]), torch.tensor([0.5, 0.7, -1.0])
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(0.4453087, abs=1e-6)
    assert pair_accuracy(chosen, rejected) == pytest.approx(2 / 3)
    centred = bradley_terry_loss(chosen, rejected, centring=0.01) - bradley_terry_loss(chosen, rejected)
    assert centred.item() == pytest.approx(0.0193667, abs=1e-6)
    for d, expected in ((0.0, 0.6931472), (1.0, 0.3132617), (2.0, 0.1269280), (-1.0, 1.3132617)):
        score = torch.tensor([d], requires_grad=True)
        loss = bradley_terry_loss(score, torch.zeros(1))
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        if d == 1.0:
            assert score.grad.item() == pytest.approx(-0.2689414, abs=1e-6)


def test_the_pairs_of_a_prompt_weigh_one_together():
    rows = [{"pairs": [[0, 1], [0, 2]]}, {"pairs": [[1, 0]]}]
    chosen, rejected, weights = pair_scores([torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5.0, 4.0])], rows, "pairs")
    assert (chosen - rejected).tolist() == [2.0, 1.0, -1.0]
    assert weights.tolist() == [0.25, 0.25, 0.5]


def test_preference_pairs_put_right_before_wrong_and_flips_turn_them_round():
    import random

    def response(text, correct, truncated=False):
        return {"response": text, "correct": correct, "truncated": truncated}

    problem = {"id": "train/0", "prompt": "p"}
    responses = [
        response("a", True),
        response("b", False),
        response("a", True),
        response("c", False),
        response("d", True, True),
    ]
    row = preference_row(problem, responses, 0.0, random.Random(0))
    assert row["responses"] == ["a", "b", "c"] and row["pairs"] == row["gold_pairs"] == [[0, 1], [0, 2]]
    assert preference_row(problem, responses, 1.0, random.Random(0))["pairs"] == [[1, 0], [2, 0]]


def test_rejection_sampling_keeps_different_complete_correct_responses_up_to_the_cap():
    def response(text, correct=True, truncated=False):
        return {"response": text, "correct": correct, "truncated": truncated}

    problem = {"id": "train/0", "prompt": "p", "question": "q"}
    responses = [
        response("x", False),
        response("a"),
        response("a"),
        response("t", True, True),
        response("b"),
        response("c"),
    ]
    assert [row["answer"] for row in accept(problem, responses, 2)] == ["a", "b"]


def test_reward_models_survive_saving(model, tmp_path):
    saved = ScalarModel(copy.deepcopy(model.base_model).float(), "mlp", 0.5, torch.Generator().manual_seed(0))
    saved.offset, saved.gain = 0.25, 2.0
    saved.save(tmp_path)
    loaded = ScalarModel.load(tmp_path, torch.device("cpu"))
    ids, lengths = torch.tensor([[5, 6, 7, 0]]), torch.tensor([3])
    torch.testing.assert_close(loaded.sequence_scores(ids, lengths), saved.sequence_scores(ids, lengths))
    assert (loaded.offset, loaded.gain) == (0.25, 2.0)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "gspo"])
def test_the_ratio_is_one_on_the_first_step_and_micro_batches_do_not_change_the_gradient(algorithm, model, batch):
    """Through the model, as the loop does it: 1, 3 and 8 responses a pass give one gradient."""
    settings = {"kl_coef": 0.1} if algorithm == "grpo" else {}
    results = []
    for size in (1, 3, 8):
        config = RunConfig(
            algorithm, 0, settings, prompts_per_step=2, group_size=4, minibatches=1, micro_batch_size=size
        )
        policy, reference = copy.deepcopy(model), tiny_model(TOKENIZER, 1)
        critic = (
            ScalarModel(tiny_model(TOKENIZER, 2).base_model, "linear", 0.3, torch.Generator().manual_seed(0))
            if config.algorithm_entry.has_critic
            else None
        )
        ready, _ = loop.prepare(batch, policy, reference, critic, config)
        ready = replace(ready, advantages=config.algorithm_entry.advantages(ready, config.algorithm_config))
        if critic is not None:
            ready = replace(ready, returns=config.algorithm_entry.returns(ready, config.algorithm_config))
        metrics = loop.accumulate_gradients(ready, policy, critic, config)
        loop.check_first_ratio(metrics)
        assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5) and float(metrics["clip_fraction"]) == 0
        results.append(
            {**gradients(policy), **({f"critic.{k}": v for k, v in gradients(critic).items()} if critic else {})}
        )
    for other in results[1:]:
        for name, expected in results[0].items():
            torch.testing.assert_close(other[name], expected, atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in results[0].values()) > 1e-3


def test_a_wrong_ratio_on_the_first_step_stops_the_run():
    with pytest.raises(RuntimeError, match="must be 1"):
        loop.check_first_ratio({"ratio_max": 1.5, "ratio_min": 1.0})


def test_prompts_come_in_shuffled_passes_that_depend_on_the_seed_alone():
    config = RunConfig("grpo", 0, steps=5, prompts_per_step=4)
    schedule_ = loop.prompt_schedule(10, config)
    flat = [i for chosen in schedule_ for i in chosen]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert schedule_ == loop.prompt_schedule(10, RunConfig("ppo", 0, steps=5, prompts_per_step=4))
    assert schedule_ != loop.prompt_schedule(10, RunConfig("grpo", 1, steps=5, prompts_per_step=4))


def test_every_response_is_in_one_minibatch_of_each_epoch():
    config = RunConfig("grpo", 0, prompts_per_step=2, group_size=4, minibatches=4, epochs=2)
    rows = [r.tolist() for r in loop.minibatch_rows(8, config, torch.Generator().manual_seed(0))]
    assert len(rows) == 8 and all(len(r) == 2 for r in rows)
    first, second = ([i for r in epoch for i in r] for epoch in (rows[:4], rows[4:]))
    assert sorted(first) == sorted(second) == list(range(8))


def test_totals_count_no_empty_response():
    mask = torch.tensor([[True, True], [False, False]])
    assert Totals.of(mask) == Totals(1, 2)


def test_schedules():
    linear = OptimiserConfig(schedule="linear", warmup_steps=2)
    assert [round(schedule(linear, s, 6), 3) for s in range(7)] == [0.333, 0.667, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule(OptimiserConfig(schedule="cosine"), 5, 10) == pytest.approx(0.5)
    assert schedule(OptimiserConfig(), 9, 10) == 1.0


def test_supervised_batches_pass_over_all_examples_before_repeating():
    batches = list(example_batches(list(range(64)), steps=16, batch_size=8, seed=0))
    assert sorted(i for batch in batches[:8] for i in batch) == list(range(64))
    assert sorted(i for batch in batches[8:] for i in batch) == list(range(64))


def test_metrics_combine_by_mean_minimum_and_maximum():
    steps = [{"a": 1.0, "r_min": 0.5, "r_max": 2.0}, {"a": 3.0, "r_min": 0.7, "r_max": 1.5}]
    assert loop.combine(steps) == {"a": 2.0, "r_min": 0.5, "r_max": 2.0}


def test_models_come_from_a_local_path_as_safetensors_and_only_causal_ones(model, tmp_path):
    save_policy(model.float(), TOKENIZER, tmp_path / "lm")
    loaded = load_policy(tmp_path / "lm", torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model.float()(ids).logits)
    assert load_tokenizer(tmp_path / "lm").eos_token_id == TOKENIZER.eos_token_id

    from transformers import BertConfig, BertForMaskedLM

    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(SettingsError, match=r"bert.* is no causal language model .*BertForMaskedLM.*ForCausalLM"):
        check_causal_lm(str(tmp_path / "bert"))
    with pytest.raises(SettingsError, match="cannot be read"):
        check_causal_lm(str(tmp_path / "nothing"))


def test_chat_prompts_go_through_the_tokenizers_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Question: {{ m['content'] }}\n{% endfor %}Answer:"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "7+5"}]) == encode_prompt(
        tokenizer, "Question: 7+5\nAnswer:"
    )


def test_an_unusable_device_is_refused_by_name():
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(SettingsError, match="'cuda:99' is not usable"):
        resolve_device("cuda:99")


def test_golden_explained_variance_and_entropy():
    a = fixture_a(0.0)
    rollouts = random_rollouts(TOKENIZER, [[5]], 2, [3, 2])
    batch = replace(
        make_batch(rollouts, a.rewards, TOKENIZER.pad_token_id), old_logprobs=a.old, ref_logprobs=a.ref, values=a.values
    )
    config = ppo.PPOConfig(kl_coef=0.1)
    batch = replace(batch, advantages=ppo.advantages(batch, config), returns=ppo.returns(batch, config))
    metrics = loop.batch_metrics(batch, rollouts, torch.zeros(2, 3), a.rewards)
    assert metrics["explained_variance"] == pytest.approx(0.0797014, abs=1e-6)
    assert metrics["advantage_std"] == pytest.approx(1.0, abs=1e-6) and metrics["degenerate_groups"] == 0
    assert metrics["groups_all_right"] == metrics["groups_all_wrong"] == 0

    class Fixed(torch.nn.Module):  # one state with probabilities [0.5, 0.3, 0.2]: H = 1.0296530
        def forward(self, input_ids, use_cache):
            logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
            return SimpleNamespace(last_hidden_state=logits.expand(*input_ids.shape, 3))

    policy = SimpleNamespace(base_model=Fixed(), get_output_embeddings=lambda: torch.nn.Identity())
    small = replace(batch, response_ids=batch.response_ids.clamp(max=2))
    logprobs, entropies = token_logprobs(policy, small, 1.0, entropy=True)
    assert entropies[0, 0].item() == pytest.approx(1.0296530, abs=1e-6) and entropies[1, 2] == 0
    assert logprobs[0, 0].exp().item() == pytest.approx([0.5, 0.3, 0.2][small.response_ids[0, 0]], abs=1e-6)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "gspo"])
def test_finite_differences_of_each_loss_equal_its_gradient(algorithm):
    """Fixture A, whose ratios are away from the clip boundaries, with padding left out of the perturbation."""
    a = fixture_a(0.0)
    config = RunConfig(algorithm, 0, {"kl_coef": 0.04} if algorithm == "grpo" else {}).algorithm_config
    advantages = torch.tensor([[1.0], [-0.7]], dtype=torch.float64)
    if algorithm == "ppo":
        advantages = advantages.expand(2, 3)
    loss = RunConfig(algorithm, 0).algorithm_entry.loss

    def value(x):
        return loss(x, a.old, advantages, a.mask, config, a.totals, ref_logprobs=a.ref)[0]

    assert torch.autograd.gradcheck(value, (a.new.clone().requires_grad_(True),))
    if algorithm == "ppo":
        returns = ppo.returns(a, ppo.PPOConfig(kl_coef=0.1))
        assert torch.autograd.gradcheck(
            lambda v: ppo.value_loss(v, a.values, returns, a.mask, config, a.totals)[0],
            ((a.values + 0.07).requires_grad_(True),),
        )
