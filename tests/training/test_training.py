"""The machinery: rollouts, log-probabilities, batches, rewards, the reward model, and one training step."""

import copy
from dataclasses import replace

import pytest
import torch
from golden import fixture_a
from tiny import random_rollouts, tiny_model, tiny_tokenizer

from algos import ppo
from algos.pieces.settings import SettingsError
from algos.pieces.types import Totals, make_batch
from algos.training.models.checkpoints import ScalarModel, check_causal_lm, load_policy, resolve_device, save_policy
from algos.training.models.tokens import load_tokenizer
from algos.training.rewards.preferences import preference_row
from algos.training.rewards.reward_model import bradley_terry_loss, pair_accuracy, pair_scores
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised import rejection_sampling
from algos.training.supervised.examples import as_batch, example_batches
from algos.training.supervised.rejection_sampling import accept
from algos.training.update.batch_metrics import batch_metrics, combine
from algos.training.update.optimize import schedule
from algos.training.update.update import with_advantages
from evaluation.tasks.files import write_jsonl

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model(TOKENIZER)


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


def test_correct_responses_that_are_all_cut_off_are_no_data_and_the_message_says_so(monkeypatch, tmp_path, model):
    save_policy(model, TOKENIZER, tmp_path / "policy")
    write_jsonl(tmp_path / "train.jsonl", [{"id": "train/0", "prompt": "p", "question": "q", "answer": "#### 1"}])
    row = {"response": "#### 1 and", "correct": True, "truncated": True, "tokens": 8}
    monkeypatch.setattr(rejection_sampling, "respond", lambda *_: [row] * 4)
    settings = '{"seed": 0, "prompts": 1, "responses": 4, "max_response_tokens": 8, "device": "cpu"}'
    words = [
        "--from",
        str(tmp_path / "policy"),
        "--prompts",
        str(tmp_path / "train.jsonl"),
        "--out",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr("sys.argv", ["rejection_sampling", "--settings", settings, *words])
    wanted = (
        r"none of the 4 .* correct and complete \(100% are cut off at max_response_tokens = 8\), so .* Start from a"
    )
    with pytest.raises(SettingsError, match=wanted):
        rejection_sampling.main()


def test_reward_models_survive_saving(model, tmp_path):
    saved = ScalarModel(copy.deepcopy(model.base_model).float(), "mlp", 0.5, torch.Generator().manual_seed(0))
    saved.offset, saved.gain = 0.25, 2.0
    saved.save(tmp_path)
    loaded = ScalarModel.load(tmp_path, torch.device("cpu"))
    some = as_batch([([5, 6], [7])], TOKENIZER.pad_token_id, torch.device("cpu"))
    torch.testing.assert_close(loaded.batch_scores(some), saved.batch_scores(some))
    assert (loaded.offset, loaded.gain) == (0.25, 2.0)
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


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


def test_an_unusable_device_is_refused_by_name():
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(SettingsError, match="'cuda:99' is not usable"):
        resolve_device("cuda:99")


def test_golden_batch_metrics():  # Fixture A with a KL penalty in its token rewards
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
        "td_error": 0.2693999,  # lambda 0: |-0.1|, 0.3693147, 0.4, |-0.2776856|, |-0.2|
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
