"""Log-probabilities, values and scores through the model: against plain passes, with padding, in any layout."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import close
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos import ALGORITHMS
from algos.pieces.types import make_batch
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.critics import SeparateCritic, SharedCritic
from algos.training.models.logprobs import in_micro_batches, token_logprobs, token_values
from algos.training.models.packing import Layout, shared_row, shares_prompts
from algos.training.run import check_first_ratio
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages

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
