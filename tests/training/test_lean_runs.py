"""Settings that make a run smaller or faster, and what they must not change: gradients, weights, scores, the start."""

import pytest
import torch
from lean import CPU, PROMPTS, TOKENIZER, batch_of, loop_in, run_config
from tiny import gradients, tiny_model

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.critics import SeparateCritic
from algos.training.models.logprobs import token_logprobs
from algos.training.models.passes import compile_passes, recompute_activations
from algos.training.sampling.sampler import sample
from algos.training.stage.config import OptimizerConfig
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages


@pytest.fixture
def loop(tmp_path):
    return loop_in(tmp_path)


def step_gradients(change) -> dict[str, torch.Tensor]:
    """Policy and critic gradients of one step of PPO in float32; change(backbone) comes before."""
    policy = tiny_model(TOKENIZER, 0, torch.float32)
    critic = ScalarModel(
        tiny_model(TOKENIZER, 2, torch.float32).base_model, "linear", 0.3, torch.Generator().manual_seed(0)
    )
    for backbone in (policy.base_model, critic.backbone):
        change(backbone)
    config = run_config(settings={"entropy_coef": 0.1})
    learner = Learner(policy, None, None, SeparateCritic(critic))
    batch, _ = prepare(batch_of(), learner, config, config.hparams)
    batch = with_advantages(batch, config.algorithm_entry, config.hparams)
    metrics = accumulate_gradients(batch, learner, config, config.hparams)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0, abs=1e-5)
    return gradients(policy) | {f"critic.{k}": v for k, v in gradients(critic).items()}


@pytest.fixture(scope="module")
def plain_gradients():
    found = step_gradients(lambda backbone: None)
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3
    return found


def test_gradient_checkpointing_leaves_the_gradients_and_runs_each_layer_again(plain_gradients):
    calls = []

    def count(backbone):
        recompute_activations(backbone)
        backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    found = step_gradients(count)
    assert found.keys() == plain_gradients.keys()
    for name, expected in plain_gradients.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)
    # 3 micro-batches, 2 models: a pass without gradients each, then one that keeps nothing, and one more backward
    assert len(calls) == 18 and calls.count(False) == 6


def test_gradient_checkpointing_leaves_sampling_and_evaluation_mode(plain_gradients):
    policy, other = (tiny_model(TOKENIZER, 0, torch.float32) for _ in range(2))
    recompute_activations(other.base_model)
    token_logprobs(other, batch_of(), 1.0)[0].sum().backward()
    drawn = [sample(p, TOKENIZER, PROMPTS, 4, 10, 1.0, torch.Generator().manual_seed(0)) for p in (policy, other)]
    assert torch.equal(drawn[0].response_ids, drawn[1].response_ids)
    assert torch.equal(drawn[0].sampler_logprobs, drawn[1].sampler_logprobs)  # with its cache
    assert not any(m.training for m in other.base_model.layers[0].children())


def test_gradient_checkpointing_needs_layers_that_can_run_again():
    with pytest.raises(SettingsError, match="gradient_checkpointing: Linear has no layers"):
        recompute_activations(torch.nn.Linear(2, 2))


def test_compiled_passes_leave_the_gradients(plain_gradients):
    found = step_gradients(lambda backbone: compile_passes(backbone, CPU))
    for name, expected in plain_gradients.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingsError, match=r"compile: .* there is no no-such-compiler; set it to false"):
        compile_passes(tiny_model(TOKENIZER).base_model, CPU)


# all of them together, and what cannot be


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "ppo_shared"])
def test_the_loop_runs_with_all_of_them(loop, algorithm):
    record, lines = loop(
        algorithm,
        {"kl_coef": 0.1, "kl_estimator": "k3" if algorithm == "grpo" else "k1"},
        steps=2,
        dtype="bfloat16",
        gradient_checkpointing=True,
        lora=LoraSettings(rank=4),
        optimizer=OptimizerConfig("adamw", learning_rate=1e-2),
    )
    assert record["status"] == "finished" and all(line["grad_norm"] > 0 for line in lines)
    assert lines[0]["kl_to_ref_sequence"] == 0 and lines[1]["kl_to_ref_sequence"] != 0
    assert "reference" not in record["memory"]


REFUSED = [
    (
        {"algorithm": "trpo", "minibatches": 1, "gradient_checkpointing": True},
        "gradient_checkpointing must be false, got",
    ),
    ({"algorithm": "trpo", "minibatches": 1, "compile": True}, "trpo needs second .* compile must be false, got true"),
    ({"algorithm": "grpo", "offload": ["policy"]}, r"offload\[0\]: 'policy' is unknown.* Allowed: behavior, critic"),
    ({"algorithm": "grpo", "lora": {"rank": 0}}, "lora.rank must be above 0, got 0"),
    ({"algorithm": "grpo", "lora": {"ranks": 2}}, "lora, key: 'ranks' is unknown. Did you mean 'rank'"),
    (
        {"algorithm": "ppo", "settings": {"critic_layers": 0}},
        "critic_layers must be above 0, or null, got 0",
    ),
    (
        {"algorithm": "ppo_shared", "settings": {"critic_layers": 1}},
        "critic shared stands on the policy's backbone, whole: critic_layers must be null, got 1",
    ),
    (
        {"algorithm": "ppo", "settings": {"critic_init": "reward_model", "critic_layers": 1}},
        "critic_init reward_model says what the critic starts from: critic_layers must be null, got 1",
    ),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_what_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(RunConfig, {"seed": 0, **values}, "stages.x")
