"""From a rollout batch to optimizer steps, on a tiny transformer: who moves, by what, and when it stops."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import gradients, random_rollouts, tiny_model, tiny_tokenizer

from algos.pieces.kl import kl_full
from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.assemble import Checkpoints
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel, load_policy, save_policy
from algos.training.models.critics import SeparateCritic, SharedCritic, make_critic
from algos.training.models.logprobs import policy_outputs, token_logprobs, token_values
from algos.training.sampling.sampler import sample
from algos.training.stage.config import OptimizerConfig
from algos.training.update import update as stage
from algos.training.update.optimize import make_optimizer
from algos.training.update.update import (
    Learner,
    accumulate_gradients,
    kept,
    kl_after_update,
    minibatch_rows,
    prepare,
    update,
    with_advantages,
    with_selected,
)

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
LENGTHS = [4, 7, 1, 5, 6, 3, 7, 2]
REWARDS = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])


def run_config(algorithm: str, settings: dict | None = None, **changes) -> RunConfig:
    changes = {"minibatches": 1, "prompts_per_step": 2, "group_size": 4, "micro_batch_size": 3, **changes}
    return RunConfig(algorithm, 0, settings or {}, **changes)


def learner_of(config: RunConfig, reference: bool = False) -> Learner:
    policy = tiny_model(TOKENIZER)
    learner = Learner(policy, *make_optimizer(policy, config.optimizer, 10))
    settings = config.hparams
    if settings.has_critic:
        if settings.critic == "shared":
            learner.critic = SharedCritic(policy, settings.critic_head, settings.critic_detach)
            for parameter in learner.critic.parameters():  # a head of zero would pass no gradient on
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
        else:
            model = tiny_model(TOKENIZER, 2).base_model
            learner.critic = SeparateCritic(ScalarModel(model, "linear", 0.3, torch.Generator().manual_seed(0)))
        learner.critic_optimizer, learner.critic_scheduler = make_optimizer(learner.critic, config.optimizer, 10)
    if reference:
        learner.reference = tiny_model(TOKENIZER, 1).requires_grad_(False)
    return learner


def ready(config: RunConfig, learner: Learner, rollouts=None, **changes):
    """A batch with everything that the losses need."""
    rollouts = rollouts or random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS)
    batch = replace(make_batch(rollouts, REWARDS, TOKENIZER.pad_token_id), **changes)
    batch, _ = prepare(batch, learner, config, config.hparams)
    return with_advantages(batch, config.algorithm_entry, config.hparams)


def state(module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def moved(module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(x, before[name]) for name, x in module.state_dict().items())


def policy_gradient(config: RunConfig, learner: Learner, batch) -> dict[str, torch.Tensor]:
    accumulate_gradients(batch, learner, config, config.hparams)
    return gradients(learner.policy)


def test_every_response_is_in_one_minibatch_of_each_epoch():
    config = run_config("grpo", minibatches=4, epochs=2)
    rows = [r.tolist() for r in minibatch_rows(8, config, torch.Generator().manual_seed(0))]
    assert len(rows) == 8 and all(len(r) == 2 for r in rows)
    first, second = ([i for r in epoch for i in r] for epoch in (rows[:4], rows[4:]))
    assert sorted(first) == sorted(second) == list(range(8)) and first != second


def test_minibatches_of_prompts_hold_all_of_their_responses():
    config = run_config("grpo", prompts_per_step=4, group_size=3, minibatches=2, epochs=2, minibatch_of="prompts")
    rows = [r.tolist() for r in minibatch_rows(12, config, torch.Generator().manual_seed(0))]
    assert len(rows) == 4 and all(len(r) == 6 for r in rows)
    assert all(len({i // 3 for i in r}) == 2 for r in rows)
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(12)) and rows[0] != rows[2]


# who moves


def test_while_warming_up_the_critic_alone_is_trained():
    config = run_config("ppo", {"value_warmup": 1}, minibatches=2, optimizer=OptimizerConfig(learning_rate=1e-3))
    learner = learner_of(config)
    batch, generator = ready(config, learner), torch.Generator().manual_seed(0)
    policy, critic = state(learner.policy), state(learner.critic)
    steps = update(batch, learner, config, config.hparams, generator, warming_up=True)
    assert not moved(learner.policy, policy) and moved(learner.critic, critic)
    assert len(steps) == 2 and all("value_loss" in step and "policy_loss" not in step for step in steps)
    assert learner.scheduler.last_epoch == 0 and learner.critic_scheduler.last_epoch == 2
    update(batch, learner, config, config.hparams, generator)
    assert moved(learner.policy, policy)


@pytest.mark.parametrize("algorithm, reaches", [("ppo_shared", True), ("ppo_shared_mlp", False), ("ppo", False)])
def test_the_value_loss_reaches_the_backbone_only_of_a_shared_critic_that_is_not_detached(algorithm, reaches):
    """Policy gradients with the critic, minus those of the same advantages without it."""
    config = run_config(algorithm)
    learner = learner_of(config)
    batch = ready(config, learner)
    both = policy_gradient(config, learner, batch)
    learner.policy.zero_grad(set_to_none=True)
    head = gradients(learner.critic)
    assert head and max(float(g.abs().max()) for g in head.values()) > 1e-4  # the head always learns
    learner.critic = None
    alone = policy_gradient(config, learner, batch)
    differs = any(not torch.allclose(both[name], alone[name], atol=1e-8) for name in alone)
    assert differs is reaches


def test_a_shared_critic_that_is_warming_up_leaves_the_backbone_alone():
    config = run_config("ppo_shared", {"value_warmup": 1})
    learner = learner_of(config)
    accumulate_gradients(ready(config, learner), learner, config, config.hparams, warming_up=True)
    assert not gradients(learner.policy) and gradients(learner.critic)


def test_a_shared_critics_parameters_are_its_heads_alone():
    config = run_config("ppo_shared")
    learner = learner_of(config)
    assert {name for name, _ in learner.critic.named_parameters()} == {"score.weight", "score.bias"}
    batch = ready(config, learner)
    states = policy_outputs(learner.policy, batch, 1.0).states
    torch.testing.assert_close(learner.critic.values(batch, states), learner.critic.values(batch))


@pytest.fixture
def folder(tmp_path):
    """A policy and a reward model on disk."""
    save_policy(tiny_model(TOKENIZER, 7, torch.float32), TOKENIZER, tmp_path / "policy")
    reward_model = tiny_model(TOKENIZER, 1, torch.float32).base_model
    model = ScalarModel(reward_model, "linear", 0.5, torch.Generator().manual_seed(0))
    model.gain, model.offset = 2.0, 0.25
    model.save(tmp_path / "reward_model")
    return tmp_path


def critic_of(folder, seed: int = 0, reward_model: bool = True, **settings):
    policy = load_policy(folder / "policy", torch.device("cpu"))
    config = run_config("ppo", settings).hparams
    path = str(folder / "reward_model") if reward_model else None
    return make_critic(config, policy, Checkpoints(str(folder / "policy"), path), seed, "float32"), policy


def test_critics_start_from_the_policy_from_nothing_or_from_the_reward_model(folder):
    batch = make_batch(random_rollouts(TOKENIZER, PROMPTS, 4, LENGTHS), REWARDS, TOKENIZER.pad_token_id)
    critic, policy = critic_of(folder)
    assert not moved(critic.model.backbone, policy.base_model.state_dict())  # its own copy, with equal weights
    assert {p.data_ptr() for p in critic.parameters()}.isdisjoint(p.data_ptr() for p in policy.parameters())
    fresh, again, other = (critic_of(folder, seed, critic_init="fresh")[0] for seed in (0, 0, 1))
    assert moved(fresh.model.backbone, policy.base_model.state_dict()) and not moved(fresh, again.state_dict())
    assert moved(fresh, other.state_dict())
    from_reward_model, _ = critic_of(folder, critic_init="reward_model")
    reward_model = ScalarModel.load(folder / "reward_model", torch.device("cpu"))
    normalized = ((token_values(reward_model, batch) - 0.25) * 2.0).where(batch.response_mask, torch.zeros(()))
    torch.testing.assert_close(from_reward_model.values(batch), normalized)
    assert from_reward_model.values(batch).abs().max() > 0
    for start in (critic, fresh):  # a head of zero: the first advantages are the rewards
        assert (start.values(batch) == 0).all()


@pytest.mark.parametrize("head, parameters", [("linear", 17), ("mlp", 16 * 17 + 17)])  # hidden size 16
def test_the_head_is_the_one_that_is_set(folder, head, parameters):
    critic, _ = critic_of(folder, critic_head=head)
    assert sum(p.numel() for p in critic.model.score.parameters()) == parameters
    shared = critic_of(folder, critic_head=head, critic="shared")[0]
    assert sum(p.numel() for p in shared.parameters()) == parameters


def test_a_critic_from_a_reward_model_needs_one(folder):
    with pytest.raises(SettingsError, match="critic_init is reward_model, but no reward model was given"):
        critic_of(folder, reward_model=False, critic_init="reward_model")


# when it stops


def drifting(settings: dict, **changes):
    """Steps on a batch that the policy itself sampled, at a learning rate that takes it away from it."""
    config = run_config(
        "grpo",
        {"clip_low": 1e6, "clip_high": 1e6, **settings},
        epochs=6,
        optimizer=OptimizerConfig(learning_rate=3e-2),
        **changes,
    )
    learner = learner_of(config)
    generator = torch.Generator().manual_seed(0)
    rollouts = sample(learner.policy, TOKENIZER, PROMPTS, 4, 12, 1.0, generator)
    batch = ready(config, learner, rollouts)
    return update(batch, learner, config, config.hparams, generator)


def test_updates_end_once_the_kl_to_the_old_policy_exceeds_one_and_a_half_times_its_target():
    free = [step["approx_kl_k3"] for step in drifting({})]
    assert len(free) == 6 and abs(free[0]) < 1e-9 and 0.01 < free[1] < max(free)
    for target in (free[1] / 1.51, free[1] / 1.49, max(free)):
        until = next((i + 1 for i, kl in enumerate(free) if kl > 1.5 * target), 6)
        assert [step["approx_kl_k3"] for step in drifting({"target_kl": target})] == pytest.approx(free[:until])


def test_the_wrong_sign_would_never_end_them():
    """mean(new - old), as one reads at times, is below 0 exactly when the policy has drifted away: -k1."""
    steps = drifting({"target_kl": 0.01})
    assert 1 < len(steps) < 6 and steps[-1]["approx_kl_k3"] > 0.015
    assert -steps[-1]["approx_kl_k1"] < 0


def test_without_drift_all_updates_are_made():
    config = run_config("grpo", {"target_kl": 1e-4}, epochs=3, optimizer=OptimizerConfig(learning_rate=1e-12))
    learner = learner_of(config)
    steps = update(ready(config, learner), learner, config, config.hparams, torch.Generator().manual_seed(0))
    assert len(steps) == 3


# terms over the whole vocabulary, against a plain forward pass over each sequence alone


def all_logprobs(model, batch, i: int, temperature: float):
    """(T_i, V) of response i's tokens."""
    start, length = int(batch.prompt_lengths[i]), int(batch.response_mask[i].sum())
    logits = model(batch.sequence_ids[i : i + 1, : start + length]).logits[0]
    return torch.log_softmax(logits[start - 1 : start + length - 1] / temperature, dim=-1)


def difference_of_gradients(algorithm: str, settings: dict, temperature: float) -> tuple[dict, dict, object]:
    """What the settings add to the policy's gradient; the batch."""
    found = []
    for chosen in (settings, {}):
        config = run_config(algorithm, chosen, temperature=temperature)
        learner = learner_of(config, reference=True)
        batch = ready(config, learner)
        found.append(policy_gradient(config, learner, batch))
    return {name: found[0][name] - found[1][name] for name in found[0]}, batch, learner


@pytest.mark.parametrize(
    "settings, term",
    [
        ({"entropy_coef": 0.5}, lambda p, q: -0.5 * -(p.exp() * p).sum(-1)),
        ({"kl_coef": 0.5, "kl_estimator": "full"}, lambda p, q: 0.5 * (p.exp() * (p - q)).sum(-1)),
        (
            {"kl_coef": 0.5, "kl_estimator": "full", "kl_direction": "forward"},
            lambda p, q: 0.5 * (q.exp() * (q - p)).sum(-1),
        ),
    ],
    ids=["entropy", "reverse", "forward"],
)
def test_terms_over_the_vocabulary_have_the_gradient_of_a_direct_computation(settings, term):
    """GRPO's aggregation: mean over responses of the mean over tokens, at temperature 0.8."""
    got, batch, learner = difference_of_gradients("grpo", settings, 0.8)
    policy = tiny_model(TOKENIZER)
    total = sum(
        term(all_logprobs(policy, batch, i, 0.8), all_logprobs(learner.reference, batch, i, 0.8).detach()).mean() / 8
        for i in range(8)
    )
    total.backward()
    expected = gradients(policy)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4)
    assert not gradients(learner.reference)


def test_a_full_kl_in_the_reward_is_computed_at_rollout_time():
    config = run_config("rloo", {"kl_coef": 0.5, "kl_estimator": "full"}, temperature=0.8)
    learner = learner_of(config, reference=True)
    batch = ready(config, learner)
    exact = torch.stack(
        [
            kl_full(all_logprobs(learner.policy, batch, i, 0.8), all_logprobs(learner.reference, batch, i, 0.8)).sum()
            for i in range(8)
        ]
    )
    torch.testing.assert_close(batch.full_kl.sum(dim=1), exact.detach(), atol=1e-5, rtol=1e-5)
    rewards = (REWARDS - 0.5 * exact.detach().float()).view(2, 4)
    expected = (rewards - rewards.mean(dim=1, keepdim=True)) * 4 / 3
    torch.testing.assert_close(batch.advantages.view(2, 4).float(), expected, atol=1e-4, rtol=1e-4)


# which responses count


def test_what_is_kept():
    truncated = torch.tensor([True, False, False, True])
    correct = torch.tensor([1.0, 1.0, 0.0, 0.0])
    grpo, masked, raft = (
        run_config(name, settings).hparams
        for name, settings in (("grpo", {}), ("grpo", {"mask_truncated": True}), ("raft", {}))
    )
    assert kept(grpo, truncated, correct, 2) is None
    assert kept(masked, truncated, correct, 2).tolist() == [False, True, True, False]
    assert kept(raft, truncated, correct, 2).tolist() == [True, True, False, False]
    both = run_config("raft", {"mask_truncated": True}).hparams
    assert kept(both, truncated, correct, 2).tolist() == [False, True, False, False]
    dapo = run_config("dapo", {}).hparams
    assert (
        kept(dapo, truncated, correct, 2).tolist() == [False] * 4
    )  # two groups of one kind, which only fill the batch
    assert kept(dapo, truncated, correct, 4).tolist() == [True] * 4


def test_the_kl_after_the_updates_is_that_of_the_moved_policy():
    """0 before any step; afterwards mean of ratio - 1 - log ratio over the tokens that count."""
    config = run_config("ppo_penalty", {}, optimizer=OptimizerConfig(learning_rate=1e-3))
    learner = learner_of(config)
    batch = ready(config, learner)
    assert kl_after_update(batch, learner, config) == pytest.approx(0, abs=1e-9)
    update(batch, learner, config, config.hparams, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_ratio = (token_logprobs(learner.policy, batch, 1.0)[0] - batch.old_logprobs)[batch.response_mask]
    expected = (log_ratio.exp() - 1 - log_ratio).mean().item()
    assert expected > 0 and kl_after_update(batch, learner, config) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_responses_that_are_not_kept_count_neither_in_the_loss_nor_in_its_divisor(size):
    """RAFT's step is that of the negative log-likelihood of the correct responses, by token."""
    config = run_config("raft", micro_batch_size=size)
    learner = learner_of(config)
    batch = ready(config, learner, keep=REWARDS == 1)
    metrics = accumulate_gradients(batch, learner, config, config.hparams)
    rows = (REWARDS == 1).nonzero().squeeze(1)
    loss = -batch.old_logprobs[rows][batch.response_mask[rows]].mean()
    assert float(metrics["policy_loss"]) == pytest.approx(loss.item(), abs=1e-6)
    got = gradients(learner.policy)
    policy = tiny_model(TOKENIZER)
    only = batch.select(rows)
    (-policy_outputs(policy, only, 1.0).logprobs[only.response_mask].mean()).backward()
    for name, value in gradients(policy).items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4)


def test_an_algorithm_selects_by_the_entropies_of_the_policy_at_the_temperature():
    config = run_config("top_entropy", {"entropy_share": 0.3, "dynamic_sampling": False}, temperature=0.8)
    learner = learner_of(config)
    batch = ready(config, learner)
    selected = with_selected(batch, learner, config, config.hparams).selected
    entropies = policy_outputs(learner.policy, batch, 0.8, entropy=True).entropies
    limit = entropies[batch.loss_mask].quantile(0.7)
    assert torch.equal(selected & batch.loss_mask, (entropies >= limit) & batch.loss_mask)


def test_a_minibatch_without_anything_kept_is_a_step_without_a_gradient():
    config = run_config("raft", optimizer=OptimizerConfig(learning_rate=1e-2))
    learner = learner_of(config)
    before = state(learner.policy)
    batch = ready(config, learner, keep=torch.zeros(8, dtype=torch.bool))
    (step,) = update(batch, learner, config, config.hparams, torch.Generator().manual_seed(0))
    assert step["grad_norm"] == 0 and not moved(learner.policy, before)


def test_minibatches_are_whitened_apart_where_that_is_the_scale(monkeypatch):
    seen, accumulate = [], stage.accumulate_gradients
    monkeypatch.setattr(
        stage, "accumulate_gradients", lambda part, *rest: (seen.append(part), accumulate(part, *rest))[1]
    )
    config = run_config("ppo", {"scale": "whiten_minibatch"}, minibatches=2)
    learner = learner_of(config)
    update(ready(config, learner), learner, config, config.hparams, torch.Generator().manual_seed(0))
    for part in seen:
        inside = part.advantages[part.response_mask]
        assert inside.mean().item() == pytest.approx(0, abs=1e-5) and inside.std().item() == pytest.approx(1, abs=1e-4)
