"""Memory: the closed forms against the worked numbers, the counter by hand, the prediction against the measurement."""

import pytest
import torch

from evaluation import memory_model as model
from evaluation.settings import SettingsError

# closed forms


def test_bytes_per_parameter():
    """Mixed AdamW: 2 + 2 + 4 + 8 = 16, 18 with float32 gradients; plain float32 4 + 4 + 8; 8-bit 2 + 2 + 4 + 2."""
    rows = {
        ("mixed", "adamw"): (16, 2),
        ("mixed_float32_gradients", "adamw"): (18, 2),
        ("float32", "adamw"): (16, 4),
        ("bfloat16", "adamw"): (8, 2),
        ("mixed", "adamw_8bit"): (10, 2),
        ("bfloat16", "adamw_8bit"): (6, 2),
        ("mixed", "adafactor"): (8, 2),
    }
    assert {key: model.bytes_per_parameter(*key) for key in rows} == rows


TABLE = {  # GB at 7e9 parameters, and the percentages against PPO with four models
    (4, 2): ([84, 70, 56, 42, 28], [-16.7, -33.3, -50, -66.7]),
    (2, 2): ([56, 42, 42, 28, 14], [-25, -25, -50, -75]),
    (4, 4): ([112, 84, 84, 56, 28], [-25, -25, -50, -75]),
    (16, 2): ([252, 238, 140, 126, 112], [-5.6, -44.4, -50, -55.6]),
    (18, 2): ([280, 266, 154, 140, 126], [-5, -45, -50, -55]),
    (10, 2): ([168, 154, 98, 84, 70], [-8.3, -41.7, -50, -58.3]),
    (8, 2): ([140, 126, 84, 70, 56], [-10, -40, -50, -60]),
}


def test_the_worked_table():
    assert list(model.ASSUMPTIONS.values()) == list(TABLE)
    for (t, f), (sizes, percentages) in TABLE.items():
        assert [model.states(setup, t, f) / model.GB for setup in model.SETUPS] == sizes
        savings = [-100 * model.saving(setup, t, f) for setup in list(model.SETUPS)[1:]]
        assert [round(s, 1) for s in savings] == percentages


def test_identities_of_the_savings():
    """t / (2t + 2f) without the critic, a third iff t = 2f; half without critic and reward model, whatever t and f."""
    for t, f in [(4, 2), (2, 2), (16, 2), (18, 2), (7, 3), (1000, 1)]:
        assert model.saving("GRPO + RM", t, f) == pytest.approx(t / (2 * t + 2 * f))
        assert 0.25 <= model.saving("GRPO + RM", t, f) < 0.5
        assert (abs(model.saving("GRPO + RM", t, f) - 1 / 3) < 1e-12) == (t == 2 * f)
        assert model.saving("GRPO + rules", t, f) == pytest.approx(0.5)
        assert model.saving("GRPO + rules", t, f, "PPO + rules") == pytest.approx(t / (2 * t + f))
    assert round(100 * model.saving("GRPO + rules", 16, 2, "PPO + rules"), 1) == 47.1


@pytest.mark.parametrize(
    "name, parameters, adafactor, kv_kib",
    [
        ("qwen2.5-0.5b", 494_032_768, 774_272, 12),
        ("qwen2.5-1.5b", 1_543_714_304, None, 28),
        ("qwen2.5-7b", 7_615_616_512, 3_167_744, 56),
        ("llama-2-7b", 6_738_415_616, 2_836_992, 512),
    ],
)
def test_known_shapes(name, parameters, adafactor, kv_kib):
    shape = model.named_shape(name)
    assert shape.parameters == parameters
    assert adafactor is None or shape.adafactor_floats == adafactor
    assert shape.kv_bytes_per_token() == kv_kib * 1024


def test_activations_logits_and_cache_of_known_shapes():
    """8,192 tokens; the cache of 64 sequences of 1,024."""
    rows = {"llama-2-7b": (36.5, 2.1, 1.05, 34.4), "qwen2.5-0.5b": (6.0, 0.35, 4.98, 0.8)}
    for name, (full, recomputed, logits, cache) in rows.items():
        shape = model.named_shape(name)
        assert shape.activation_bytes(8192) / model.GB == pytest.approx(full, rel=0.01)
        kept = shape.activation_bytes(8192, checkpointing=True) - 34 * 8192 * shape.hidden  # what layers leave behind
        assert kept / model.GB == pytest.approx(recomputed, rel=0.03)
        assert shape.logits_bytes(8192) / model.GB == pytest.approx(logits, rel=0.005)
        assert 65536 * shape.kv_bytes_per_token() / model.GB == pytest.approx(cache, rel=0.01)
    moments = model.model_states(model.Copies(model.named_shape("llama-2-7b").parameters), "mixed", "adamw")
    assert moments["policy", "optimiser"] / model.GB == pytest.approx(53.9, rel=0.001)
    assert 4 * model.named_shape("llama-2-7b").adafactor_floats / 1e6 == pytest.approx(11.3, abs=0.05)
    assert 8 * model.named_shape("qwen2.5-0.5b").parameters / model.GB == pytest.approx(3.95, abs=0.005)


def test_model_states_add_up_to_the_table():
    """PPO with four models at 16/2: 252 GB."""
    states = model.model_states(model.Copies(7e9, 7e9, 7e9, 7e9), "mixed", "adamw")
    assert states.total() == 252e9
    assert states["policy", "weights"] == 14e9 and states["critic", "optimiser"] == 56e9
    lora = model.model_states(model.Copies(7e9, 0, 7e9), "mixed", "adamw", lora_share=0.01)
    assert lora.total() == pytest.approx(7e9 * (2 + 16 * 0.01))  # the base is the reference


def test_flops_per_generated_token():
    """10 + 12 K, 8 + 12 K, 8 + 6 K, 6 + 6 K, 2 + 6 K."""
    rows = [(True, True, True), (True, True, False), (False, True, True), (False, True, False)]
    assert [model.flops_per_token(*row) for row in rows] == [22, 20, 14, 12]
    assert model.flops_per_token(False, False, False, old_logprobs=False) == 8
    for epochs, against_reward_model, against_rules in [(1, 45.5, 40.0), (2, 47.1, 43.8), (4, 48.3, 46.4)]:
        ours = model.flops_per_token(False, True, False, epochs)
        for others, expected in [((True, True, True), against_reward_model), ((True, True, False), against_rules)]:
            assert round(100 * (1 - ours / model.flops_per_token(*others, epochs)), 1) == expected


def test_sizes_and_models_that_are_none():
    assert model.model_size("7B") == 7e9 and model.model_size("350m") == 350e6
    assert model.model_size("qwen2.5-0.5b") is None
    with pytest.raises(SettingsError, match=r"size must be above 0, got '0B'"):
        model.model_size("0B")
    with pytest.raises(
        SettingsError, match=r"'/no/such' cannot be read .* write a size such as 7B, one of qwen2.5-0.5b"
    ):
        model.model_config("/no/such")
    with pytest.raises(SettingsError, match=r"'mixd' is unknown. Did you mean 'mixed'"):
        model.bytes_per_parameter("mixd", "adamw")
