"""Low-rank adapters: they start without effect, only they are trained, checkpoints have them merged."""

import pytest
import torch
from lean import CPU, TOKENIZER, batch_of, folder_of, loop_in, run_config
from tiny import tiny_model

from algos.pieces.settings import SettingsError, from_dict
from algos.training.assemble import Checkpoints, make_learner
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.config import LINEAR_LAYERS
from algos.training.models.logprobs import token_logprobs
from algos.training.models.lora import WithoutAdapters, adaptable, add_adapters, target
from algos.training.sampling.sampler import sample
from algos.training.stage.config import OptimizerConfig
from algos.training.stage.record import component_memory
from algos.training.update.optimize import make_optimizer, optimizer_step
from algos.training.update.update import Learner, accumulate_gradients, prepare, with_advantages
from evaluation.matrix.architectures import build, imported

LORA = LoraSettings(rank=2, alpha=4.0)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


@pytest.fixture
def loop(tmp_path):
    return loop_in(tmp_path)


def adapted(seed: int = 0, settings: LoraSettings = LORA):
    torch.manual_seed(seed)
    return add_adapters(tiny_model(TOKENIZER, 0, torch.float32), settings)


def test_adapters_start_without_effect_and_their_reference_is_the_start():
    policy, start, batch = adapted(), tiny_model(TOKENIZER, 0, torch.float32), batch_of()
    before = token_logprobs(start, batch, 1.0)[0]
    assert torch.equal(token_logprobs(policy, batch, 1.0)[0], before)
    reference = WithoutAdapters(policy)
    config = run_config("grpo", {"kl_coef": 0.1}, optimizer=OptimizerConfig(learning_rate=0.05))
    learner = Learner(policy, *make_optimizer(policy, config.optimizer, 1), reference=reference)
    ready, _ = prepare(batch, learner, config, config.hparams)
    assert torch.equal(ready.old_logprobs, ready.ref_logprobs)  # a KL of exactly 0
    ready = with_advantages(ready, config.algorithm_entry, config.hparams)
    accumulate_gradients(ready, learner, config, config.hparams)
    optimizer_step(policy, learner.optimizer, learner.scheduler, None)
    assert not torch.equal(token_logprobs(policy, batch, 1.0)[0], before)
    assert torch.equal(token_logprobs(reference, batch, 1.0)[0], before)
    frozen = dict(start.named_parameters())
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad is (".lora_" in name)
        if ".lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer.", ".")])


def test_only_adapters_are_trained_and_counted():
    """Rank 2 in 7 layers of each of 2 blocks: 2 (16 + 16) in q, k, v, o, 2 (16 + 32) in the three of the MLP."""
    policy = adapted()
    trained = 2 * (4 * 2 * 32 + 3 * 2 * 48)
    memory = component_memory(policy=(policy, make_optimizer(policy, OptimizerConfig(), 1)[0]))["policy"]
    assert memory["gradients"] == 4 * trained
    assert memory["parameters"] == trained + sum(p.numel() for p in tiny_model(TOKENIZER).parameters())
    some = adapted(settings=LoraSettings(rank=2, targets=("q_proj", "v_proj")))
    assert sum(p.numel() for p in some.parameters() if p.requires_grad) == 2 * 2 * 2 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_have_the_adapters_merged(tmp_path, dtype):
    torch.manual_seed(0)
    policy = add_adapters(tiny_model(TOKENIZER, 0, dtype), LORA)
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            assert parameter.dtype == torch.float32
            torch.nn.init.normal_(parameter, std=0.3)
    save_policy(policy, TOKENIZER, tmp_path)
    loaded = load_policy(tmp_path, CPU)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in tiny_model(TOKENIZER).named_parameters()}
    exact = policy.float()
    torch.testing.assert_close(
        token_logprobs(loaded, batch_of(), 1.0)[0], token_logprobs(exact, batch_of(), 1.0)[0], atol=1e-4, rtol=1e-4
    )


LAYERS = {  # the weights that have an adapter, by what a study file calls them
    "gpt2": {"c_attn", "c_proj", "c_fc"},  # Conv1D
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},  # a linear layer with code of its own
    "mixtral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},  # fused experts
    "qwen2_moe": {*LINEAR_LAYERS, "shared_expert_gate", "gate_up_proj"},  # fused experts beside a plain one
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},
}


@pytest.mark.parametrize("name, dtype", [*((name, "float32") for name in LAYERS), ("mixtral", "bfloat16")])
def test_every_layer_of_an_architecture_has_an_adapter_that_learns_samples_and_is_saved(name, dtype, tmp_path):
    policy = load_policy(imported(name, TOKENIZER, tmp_path), CPU, dtype)
    assert {target(weight) for weight in adaptable(policy)} == LAYERS[name]
    before = token_logprobs(policy, batch_of(), 1.0)[0]
    count = len(adaptable(policy))
    add_adapters(policy, LORA)
    assert torch.equal(token_logprobs(policy, batch_of(), 1.0)[0], before)
    adapters = {n: p for n, p in policy.named_parameters() if ".lora_B" in n}
    assert len(adapters) == count
    (batch_of().response_mask * token_logprobs(policy, batch_of(), 1.0)[0]).sum().backward()
    assert all(adapter.grad.abs().max() > 0 for adapter in adapters.values())
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter, std=0.3)
    save_policy(policy, TOKENIZER, tmp_path / "trained")
    loaded = load_policy(tmp_path / "trained", CPU)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in build(name, TOKENIZER).named_parameters()}
    after, exact = token_logprobs(loaded, batch_of(), 1.0)[0], policy.float()
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, token_logprobs(exact, batch_of(), 1.0)[0], atol=1e-4, rtol=1e-4)
    prompts = [[5, 6, 7, 8], [9, 10]]
    drawn = [sample(m, TOKENIZER, prompts, 2, 8, 1.0, torch.Generator().manual_seed(0)) for m in (exact, loaded)]
    assert torch.equal(drawn[0].response_ids, drawn[1].response_ids)


def test_the_layers_of_models_that_are_built_here_are_those_that_adapters_find():
    adapters = {name.split(".")[-4] for name, _ in adapted().named_parameters() if ".lora_A" in name}
    assert adapters == set(LINEAR_LAYERS)


def test_unknown_targets_are_refused_with_the_models_layers():
    for unknown in ("query", "lm_head", "embed_tokens"):
        with pytest.raises(
            SettingsError, match=rf"lora.targets: '{unknown}' is no linear layer .* down_proj, .* v_proj"
        ):
            adapted(settings=LoraSettings(targets=("q_proj", unknown)))


def test_without_peft_lora_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"stages.x.lora: lora needs peft; pip install"):
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, "lora": {}}, "stages.x")


def test_no_second_model_is_loaded_for_the_reference(folder):
    config = run_config("ppo", {"kl_coef": 0.1}, lora=LORA, rewards={"reward_model": 1.0})
    learner, models = make_learner(config, Checkpoints(str(folder / "policy"), str(folder / "reward_model")), CPU)
    assert set(models) == {"policy", "critic", "reward_model"} and learner.reference.policy is learner.policy
    assert models["reward_model"][0].backbone is None  # that of the policy without its adapters


def test_trpo_steps_with_adapters(loop):
    _, lines = loop("trpo", steps=2, minibatches=1, lora=LoraSettings(rank=4))
    assert all(line["grad_norm"] > 0 for line in lines)
