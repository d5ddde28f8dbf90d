"""The machinery: rollouts, log-probabilities, batches, rewards, the reward model, and one training step."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import close, fixture_a
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from algos import ALGORITHMS, ppo
from algos.pieces.settings import SettingsError
from algos.pieces.types import Totals, make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import (
    ScalarModel,
    check_causal_lm,
    encode_prompt,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.models.critics import SeparateCritic, SharedCritic
from algos.training.models.logprobs import in_micro_batches, token_logprobs, token_values
from algos.training.models.packing import Layout, shared_row, shares_prompts
from algos.training.rewards.preferences import preference_row
from algos.training.rewards.reward_model import bradley_terry_loss, pair_accuracy, pair_scores
from algos.training.sampling.sampler import decode, sample
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised.examples import as_batch, example_batches
from algos.training.supervised.rejection_sampling import accept
from algos.training.train import check_first_ratio, train
from algos.training.update.batch_metrics import batch_metrics, combine
from algos.training.update.optimize import schedule
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages
from evaluation.tasks.files import read_jsonl, write_jsonl

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
    scores = critic.batch_scores(batch)
    assert shares_prompts(critic.backbone)
    packed = replace(batch, packed=shared_row(batch))
    torch.testing.assert_close(critic.batch_scores(packed), scores)
    torch.testing.assert_close(token_values(critic, packed), values)
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
    assert shares_prompts(model.base_model)
    for layout in (Layout(1), Layout(3), Layout(), Layout(tokens=20), Layout(3, 25), Layout(share_prompts=True)):
        parts = in_micro_batches(lambda part: token_logprobs(model, part, 1.0)[0], batch, layout)
        torch.testing.assert_close(parts, whole.detach(), atol=1e-6, rtol=1e-5)


def test_sampled_log_probabilities_are_the_trainers(model):
    """Left-padded prompts, a key-value cache shared out to groups, rows that leave: the same distribution."""
    rollouts = draw(model, group=16, temperature=0.8, tokens=60)
    batch = make_batch(rollouts, torch.zeros(32), TOKENIZER.pad_token_id)
    assert rollouts.response_mask.sum(1).unique().numel() > 8  # responses of different lengths
    trainer, entropies = token_logprobs(model, batch, 0.8, entropy=True)
    torch.testing.assert_close(trainer.float(), rollouts.sampler_logprobs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropies.float(), rollouts.entropies, atol=1e-5, rtol=1e-4)


def test_the_same_tokens_are_drawn_without_cache_sharing_or_rows_that_leave(model):
    """The plainest sampler there is: a whole forward pass per token and response, each token from its own number."""
    rollouts = draw(model, group=8, tokens=25, seed=3)
    uniforms = torch.rand(16, 25, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for row in range(16):
        ids = list(PROMPTS[row // 8])
        for t in range(25):
            probabilities = torch.softmax(model(torch.tensor([ids])).logits[0, -1].float(), dim=-1)
            cumulative = probabilities.double().cumsum(0) / probabilities.double().sum()
            ids.append(int((cumulative <= uniforms[row, t]).sum()))
            if ids[-1] == TOKENIZER.eos_token_id:
                break
        assert rollouts.response_ids[row][rollouts.response_mask[row]].tolist() == ids[len(PROMPTS[row // 8]) :]


def test_models_whose_cache_is_a_window_are_sampled_with_transformers_own_cache():
    config = MistralConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    windowed = MistralForCausalLM(config).double().eval()
    rollouts = draw(windowed, group=4, tokens=20)
    batch = make_batch(rollouts, torch.zeros(8), TOKENIZER.pad_token_id)
    torch.testing.assert_close(
        token_logprobs(windowed, batch, 1.0)[0].float(), rollouts.sampler_logprobs, atol=1e-5, rtol=1e-4
    )
    assert not shares_prompts(windowed.model)


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
    for temperature in (0.0, 1.0):  # which rows share a pass has no effect on what is drawn
        one, all_ = (
            draw(model, prompts=PROMPTS * 2, group=2, temperature=temperature, rows_at_once=rows) for rows in (1, 100)
        )
        assert torch.equal(one.response_ids, all_.response_ids)
        torch.testing.assert_close(one.sampler_logprobs, all_.sampler_logprobs)


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


def test_golden_bradley_terry_loss():
    chosen, rejected = torch.tensor([1.5, 0.2, 2.0]), torch.tensor([0.5, 0.7, -1.0])
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(0.4453087, abs=1e-6)
    assert pair_accuracy(chosen, rejected) == pytest.approx(2 / 3)
    centered = bradley_terry_loss(chosen, rejected, centering=0.01) - bradley_terry_loss(chosen, rejected)
    assert centered.item() == pytest.approx(0.0193667, abs=1e-6)
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
    some = as_batch([([5, 6], [7])], TOKENIZER.pad_token_id, torch.device("cpu"))
    torch.testing.assert_close(loaded.batch_scores(some), saved.batch_scores(some))
    assert (loaded.offset, loaded.gain) == (0.25, 2.0)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


LAYOUTS = (  # settings of a run that must not change a gradient, and whether responses share their prompt's row
    ({"micro_batch_size": 8}, False),
    ({"micro_batch_size": 1}, False),
    ({"micro_batch_size": 3}, False),
    ({"micro_batch_tokens": 30}, False),
    ({"micro_batch_size": 8}, True),
    ({"micro_batch_size": 3}, True),
    ({"micro_batch_tokens": 20}, True),
    ({"micro_batch_size": 8, "logits_at_once": 200}, False),
    ({"micro_batch_tokens": 40, "logits_at_once": 200}, True),
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_ratio_is_one_on_the_first_step_and_the_layout_does_not_change_the_gradient(algorithm, model, batch):
    """Through the model, as the loop does it: however the batch is cut, shared out and laid out, one gradient."""
    settings = {"kl_coef": 0.1} if algorithm == "grpo" else {}
    results = []
    for layout, share in LAYOUTS:
        config = RunConfig(algorithm, 0, settings, prompts_per_step=2, group_size=4, minibatches=1, **layout)
        chosen, entry = config.hparams, config.algorithm_entry
        critic = ScalarModel(tiny_model(TOKENIZER, 2).base_model, "linear", 0.3, torch.Generator().manual_seed(0))
        reference = tiny_model(TOKENIZER, 1)
        learner = Learner(copy.deepcopy(model), None, None, reference=reference, share_prompts=share)
        if chosen.has_critic:
            learner.critic = SeparateCritic(critic)
        if chosen.has_critic and chosen.critic == "shared":
            learner.critic = SharedCritic(learner.policy, chosen.critic_head, chosen.critic_detach)
        backbones = learner.policy.base_model, reference.base_model, critic.backbone
        assert not share or shares_prompts(*backbones)
        ready, _ = prepare(replace(batch, greedy_rewards=torch.tensor([1.0, 5.0])), learner, config, chosen)
        ready = replace(ready, sampler_logprobs=ready.old_logprobs)
        metrics = accumulate_gradients(with_advantages(ready, entry, chosen), learner, config, chosen)
        check_first_ratio(metrics)
        assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)
        assert float(metrics.get("clip_fraction", 0)) == 0
        found = gradients(learner.policy)
        if chosen.has_critic:
            found |= {f"critic.{k}": v for k, v in gradients(learner.critic).items()}
        results.append(found)
    for other in results[1:]:
        for name, expected in results[0].items():
            torch.testing.assert_close(other[name], expected, atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in results[0].values()) > 1e-3


def test_a_wrong_ratio_on_the_first_step_stops_the_run():
    for off in ({"ratio_max": 1.5, "ratio_min": 1.0}, {"ratio_max": 1.0, "ratio_min": 0.99}):
        with pytest.raises(RuntimeError, match="must be 1"):
            check_first_ratio(off)
    check_first_ratio({"value_loss": 1.0})  # a step of the critic's warm-up has no ratio


def test_totals_count_no_empty_response():
    mask = torch.tensor([[True, True], [False, False]])
    assert Totals.of(mask) == Totals(1, 2)


def test_schedules():
    linear = OptimizerConfig(schedule="linear", warmup_steps=2)
    assert [round(schedule(linear, s, 6), 3) for s in range(7)] == [0.333, 0.667, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule(OptimizerConfig(schedule="cosine"), 5, 10) == pytest.approx(0.5)
    assert schedule(OptimizerConfig(), 9, 10) == 1.0


def test_supervised_batches_pass_over_all_examples_before_repeating():
    batches = list(example_batches(list(range(64)), steps=16, batch_size=8, seed=0))
    assert sorted(i for batch in batches[:8] for i in batch) == list(range(64))
    assert sorted(i for batch in batches[8:] for i in batch) == list(range(64))


def test_metrics_combine_by_mean_minimum_and_maximum():
    steps = [{"a": 1.0, "r_min": 0.5, "r_max": 2.0}, {"a": 3.0, "r_min": 0.7, "r_max": 1.5}]
    assert combine(steps) == {"a": 2.0, "r_min": 0.5, "r_max": 2.0}


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


def test_golden_batch_metrics():  # Fixture A with the token rewards of section 3.4
    a = fixture_a(0.0)
    rollouts = random_rollouts(TOKENIZER, [[5]], 2, [3, 2])
    batch = replace(
        make_batch(rollouts, a.rewards, TOKENIZER.pad_token_id),
        old_logprobs=a.old,
        ref_logprobs=a.ref,
        values=a.values,
        sampler_logprobs=a.old,
    )
    batch = with_advantages(batch, ppo.ALGORITHM, ppo.PPOConfig(kl_coef=0.1))
    metrics = batch_metrics(batch, rollouts, torch.ones(2, 3), a.rewards, ppo.PPOConfig(kl_coef=0.1))
    expected = {
        "explained_variance": 0.0797014,
        "advantage_std": 1.0,
        "advantage_high": 1.0048312,
        "advantage_low": -1.2997974,
        "return_mean": 0.6186956,  # (1.0118490 + 1.0493147 + 1 + 0.0323144) / 5
        "td_error": 0.2693999,  # lambda 0 of section 3.2: |-0.1|, 0.3693147, 0.4, |-0.2776856|, |-0.2|
        "kl_to_ref_sequence": -0.4581454,  # old - ref: (log 1/2 + log 4/5) / 2
        "kl_to_ref_k1": -0.1832581,
        "response_tokens": 2.5,
        "response_tokens_right": 3.0,
        "response_tokens_wrong": 2.0,
        "entropy": 1.0,
        "degenerate_groups": 0.0,
        "groups_all_right": 0.0,
        "groups_all_wrong": 0.0,
        "kept_responses": 1.0,
        "sampler_gap_mean": 0.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for reward, share in ((0.0, "groups_all_wrong"), (1.0, "groups_all_right")):
        same = batch_metrics(
            replace(batch, rewards=torch.full((2,), reward)),
            rollouts,
            torch.ones(2, 3),
            torch.full((2,), reward),
            ppo.PPOConfig(kl_coef=0.1),
        )
        assert same["degenerate_groups"] == same[share] == 1.0


class OneState(torch.nn.Module):
    """A policy whose logits are the same everywhere: its parameters."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log())
        self.base_model = lambda input_ids, use_cache: SimpleNamespace(
            last_hidden_state=self.logits.expand(*input_ids.shape, 3)
        )

    def get_output_embeddings(self):
        return torch.nn.Identity()


def test_golden_entropy_and_its_gradient(batch):  # p = [0.5, 0.3, 0.2]: H = 1.0296530, dH/dz = -p (log p + H)
    policy = OneState()
    small = replace(batch, response_ids=batch.response_ids % 3)
    logprobs, entropies = token_logprobs(policy, small, 1.0, entropy=True)
    assert entropies[0, 0].item() == pytest.approx(1.0296530, abs=1e-6) and entropies[2, 1] == 0
    assert logprobs[0, 0].exp().item() == pytest.approx([0.5, 0.3, 0.2][small.response_ids[0, 0]], abs=1e-6)
    (entropies.sum() / batch.response_mask.sum()).backward()
    close(policy.logits.grad, [-0.1682529, 0.0522959, 0.1159570])


# the loop


@pytest.fixture
def loop(tmp_path):
    """Runs the loop on a tiny policy and eight problems; returns its record and the lines of its metrics."""
    save_policy(tiny_model(TOKENIZER, 0, torch.float32), TOKENIZER, tmp_path / "policy")
    rows = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(8)]
    write_jsonl(tmp_path / "train.jsonl", rows)

    def run(algorithm: str, settings: dict | None = None, **changes):
        changes = {"steps": 3, "prompts_per_step": 4, "group_size": 2, "minibatches": 2, **changes}
        config = RunConfig(
            algorithm,
            0,
            settings or {},
            max_response_tokens=8,
            device="cpu",
            rewards={"correctness": 1.0, "edit_similarity": 1.0},
            **changes,
        )
        train(config, str(tmp_path / "policy"), str(tmp_path / "train.jsonl"), str(tmp_path / "out"))
        return json.loads((tmp_path / "out" / "run.json").read_text()), read_jsonl(tmp_path / "out" / "metrics.jsonl")

    return run


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
