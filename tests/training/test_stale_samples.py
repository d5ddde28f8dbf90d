"""sync_every: whose weights sample in which step, what ratios are divided by, and what is checked."""

import copy
from dataclasses import replace

import pytest
import torch
from lean import CPU, folder_of

from algos.pieces import correction
from algos.pieces.settings import SettingsError
from algos.training.assemble import Checkpoints, make_run, warnings
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.logprobs import in_micro_batches, token_logprobs
from algos.training.run import Run
from algos.training.sampling.behavior import frozen_copy, own_tensors
from algos.training.sampling.engine import StaleWeights
from algos.training.sampling.engines import TransformersEngine
from algos.training.sampling.sampler import sample
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import component_memory
from algos.training.trl.check import check
from algos.training.update.needs import ratio_denominator

PROBLEMS = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


def config_of(algorithm: str = "grpo", settings: dict | None = None, **changes) -> RunConfig:
    changes = {
        "rewards": {"edit_similarity": 1.0},
        "steps": 5,
        "prompts_per_step": 4,
        "group_size": 2,
        "minibatches": 2,
        "sync_every": 3,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        **changes,
    }
    return RunConfig(algorithm, 0, settings or {}, max_response_tokens=8, device="cpu", **changes)


def made(folder, config: RunConfig) -> Run:
    torch.manual_seed(0)
    return make_run(config, Checkpoints(str(folder / "policy"), str(folder / "reward_model")), PROBLEMS, CPU)


def watched(run: Run) -> tuple[list, list]:
    """The policy before each step, with the state of the generator; and the batch of each update."""
    before, batches, update = [], [], run.update

    def step():
        generator = torch.Generator().set_state(run.state.generator.get_state())
        before.append((copy.deepcopy(run.state.learner.policy), generator))
        return Run.step(run)

    run.step = step
    run.update = lambda batch: batches.append(batch) or update(batch)
    return before, batches


def logprobs(run: Run, policy, batch) -> torch.Tensor:
    layout = run.state.learner.layout(run.config)
    with torch.no_grad():
        return in_micro_batches(lambda part: token_logprobs(policy, part, run.config.temperature)[0], batch, layout)


KINDS = {"plain": {}, "lora": {"lora": LoraSettings(rank=2)}, "bfloat16": {"dtype": "bfloat16"}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_third_step_samples_with_the_policys_weights_and_the_others_with_those(folder, kind):
    run = made(folder, config_of(**KINDS[kind]))
    before, _ = watched(run)
    for step in range(5):
        metrics = run.step()
        rollouts = run.experience.rollouts
        policy, generator = before[step - step % 3][0], before[step][1]
        again = sample(policy, run.inputs.tokenizer, rollouts.prompts, 2, 8, 1.0, generator)
        assert torch.equal(again.response_ids, rollouts.response_ids)
        torch.testing.assert_close(again.sampler_logprobs, rollouts.sampler_logprobs, atol=1e-5, rtol=0)
        assert metrics["staleness"] == step % 3
        assert (metrics["stale_kl"] > 1e-4) == (step % 3 > 0)


def test_with_one_there_is_no_copy_and_the_first_step_is_the_same_with_any(folder):
    plain, stale = made(folder, config_of(sync_every=1)), made(folder, config_of())
    assert plain.state.learner.behavior is None and plain.behavior is plain.state.learner.policy
    first, other = plain.step(), stale.step()
    assert set(other) - set(first) == {"staleness", "stale_kl"} and not set(first) - set(other)
    assert torch.equal(plain.experience.rollouts.response_ids, stale.experience.rollouts.response_ids)
    weights = stale.state.learner.policy.state_dict()  # a copy lies elsewhere in memory, which moves the last bits
    torch.testing.assert_close(plain.state.learner.policy.state_dict(), weights, atol=1e-5, rtol=0)
    plain.step(), stale.step()
    assert not torch.equal(plain.experience.rollouts.response_ids, stale.experience.rollouts.response_ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("old", ["sampler", "recomputed"])
def test_ratios_are_divided_by_the_weights_that_old_logprobs_names(folder, old, dtype):
    run = made(folder, config_of(old_logprobs=old, dtype=dtype))
    before, batches = watched(run)
    for _ in range(3):
        metrics = run.step()
    stale, now = (logprobs(run, before[step][0], batches[2]) for step in (0, 2))
    wanted, other = (stale, now) if old == "sampler" else (now, stale)
    mask = batches[2].response_mask
    torch.testing.assert_close(batches[2].old_logprobs[mask], wanted[mask], atol=1e-5, rtol=0)
    assert (batches[2].old_logprobs - other)[mask].abs().max() > 0.01
    drift = (now - batches[2].sampler_logprobs)[mask].double()
    kl = (drift.exp() - 1 - drift).mean().item()
    if old == "recomputed":  # over the whole batch; against the sampler it is that of the first minibatch
        assert metrics["stale_kl"] == metrics["sampler_kl_k3"] == pytest.approx(kl, rel=1e-4)
        assert "canary_ratio" not in metrics
    else:
        assert kl / 5 < metrics["stale_kl"] < 5 * kl and metrics["sampler_kl_k3"] < kl / 2
        assert metrics["canary_ratio"] <= metrics["canary_limit"]


def test_a_correction_weighs_by_the_policy_before_the_update_over_the_sampler(folder):
    settings = {"correction": "token_mask", "correction_low": 0.0, "correction_high": 1e6}
    run = made(folder, config_of(settings=settings, old_logprobs="recomputed", minibatches=1))
    before, batches = watched(run)
    lines = [run.step() for _ in range(3)]
    batch = batches[2]
    new, old = (logprobs(run, before[step][0], batch) for step in (2, 0))
    mask = batch.response_mask
    expected = (new - old).exp()[mask]
    weights = correction.weights(batch.old_logprobs, batch.sampler_logprobs, mask, run.state.hparams)
    torch.testing.assert_close(weights[mask], expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01
    assert lines[2]["correction_weight"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert lines[2]["ratio_max"] == pytest.approx(1, abs=1e-4)  # one optimizer step: all ratios are those of the first
    assert lines[0]["correction_weight"] == pytest.approx(1, abs=1e-4)


class Counting(TransformersEngine):
    """An engine with weights of its own, as far as the run can tell."""

    exact = False

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.given: list[torch.Tensor] = []

    def synchronize(self, policy) -> None:
        self.given.append(next(policy.parameters()).detach().clone())


def test_an_engine_gets_the_weights_before_every_third_step(folder):
    run = made(folder, config_of())
    run.engine = engine = Counting(run.inputs.tokenizer)
    before, _ = watched(run)
    counts = []
    for _ in range(5):
        run.step()
        counts.append(len(engine.given))
    assert counts == [0, 0, 1, 1, 1]
    assert torch.equal(engine.given[0], next(before[3][0].parameters()))


def test_a_sampler_with_other_weights_than_it_should_hold_fails_the_run(folder):
    run = made(folder, config_of())
    run.step()
    with torch.no_grad():
        next(run.state.learner.behavior.parameters())[5, 5] += 1e-6
    with pytest.raises(StaleWeights, match="not those of the last synchronization: embeddings and head"):
        run.step()
    run = made(folder, config_of(sync_every=2))
    run.renew = lambda: None
    run.step(), run.step()
    with pytest.raises(StaleWeights, match="not the policy's: layer 0, layer 1, embeddings and head"):
        run.step()


def test_on_stale_steps_recomputed_ratios_still_begin_at_one(folder):
    """Old log-probabilities from the wrong weights are found on every step on which the ratio must be 1."""
    run = made(folder, config_of(old_logprobs="recomputed"))
    run.step()
    learner = run.state.learner
    advantages = run.advantages
    run.advantages = lambda batch: advantages(replace(batch, old_logprobs=logprobs(run, learner.behavior, batch)))
    with pytest.raises(RuntimeError, match="the ratio must be 1"):
        run.step()


def test_the_copy_shares_what_is_not_trained(folder):
    config = config_of(**KINDS["lora"])
    run = made(folder, config)
    policy, behavior = run.state.learner.policy, run.state.learner.behavior
    adapters = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in behavior.parameters())
    parameters = {id(p) for p in behavior.parameters()}
    own = [t for t in own_tensors(behavior, policy) if id(t) in parameters]
    assert sum(t.numel() for t in own) == adapters > 0
    assert component_memory(**run.inputs.models)["behavior"]["weights"] == 4 * adapters
    whole = made(folder, config_of()).state.learner.policy
    assert len(own_tensors(frozen_copy(whole), whole)) >= len(list(whole.parameters()))


# what is refused, warned of and recorded


@pytest.mark.parametrize(
    "algorithm, settings, message",
    [
        ("decoupled_ppo", {}, "correction token_mask nothing to correct"),
        ("grpo", {"correction": "sequence_truncate"}, "correction sequence_truncate nothing to correct"),
        ("trpo", {}, "its KL bound is around"),
    ],
)
def test_what_needs_the_weights_before_the_update_says_so(algorithm, settings, message):
    changes = {"minibatches": 1} if algorithm == "trpo" else {}
    with pytest.raises(SettingsError, match=f"{message}.*write old_logprobs: recomputed"):
        config_of(algorithm, settings, **changes)
    config_of(algorithm, settings, old_logprobs="recomputed", **changes)
    config_of(algorithm, settings, sync_every=1, **changes)


def test_dev_problems_are_not_answered_by_the_older_weights_of_vllm():
    with pytest.raises(SettingsError, match="dev_every: 2 with sync_every: 3 and engine vllm would measure"):
        config_of(engine="vllm", dev_every=2)
    config_of(engine="vllm", dev_every=2, sync_every=1)
    config_of(dev_every=2)


def test_trl_is_refused():
    with pytest.raises(SettingsError, match=r"trainer trl: TRL's trainer samples .*, got sync_every 3; set it to 1"):
        check(config_of(trainer="trl", rewards={"correctness": 1.0}))


def test_warnings_know_that_stale_ratios_leave_one_on_the_first_step():
    nothing, uncorrected = "no clipping rule has any effect", "samples are up to 2 rollout batches old"

    def said(*of, **changes) -> str:
        return " ".join(warnings(config_of(*of, **changes), Checkpoints("policy"), CPU))

    assert nothing in said(minibatches=1, sync_every=1) and nothing not in said(minibatches=1)
    assert nothing in said(minibatches=1, old_logprobs="recomputed")
    assert uncorrected in said(old_logprobs="recomputed") and uncorrected in said("reinforce_group", minibatches=1)
    assert uncorrected not in said() + said(old_logprobs="recomputed", settings={"correction": "token_truncate"})
    assert "ratio none with" not in said("reinforce_group", minibatches=1)


def test_the_record_says_whose_the_denominator_is():
    old = "up to 2 rollout batches old"
    for changes, text in (
        ({}, f"reported by the sampler, whose weights are {old}"),
        ({"old_logprobs": "recomputed"}, "recomputed by the trainer, from the weights before the update"),
        ({"dtype": "bfloat16"}, f"recomputed by the trainer, from the sampler's weights, {old}"),
    ):
        assert ratio_denominator(config_of(**changes)) == {"ratio_denominator": text}
