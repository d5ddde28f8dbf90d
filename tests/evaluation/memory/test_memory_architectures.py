"""Memory of architectures: the cache is the model's own, layers of several kinds add up, the step is that of a run."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from evaluation.matrix.architectures import tiny_config
from evaluation.memory import dry_run
from evaluation.memory.check import TOLERANCE
from evaluation.memory.closed_form import shape_of
from evaluation.memory.dry_run import Workload
from evaluation.memory.layers import kinds
from evaluation.memory.live_tensors import Peak

TOKENS = {"vocab_size": 120, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
CACHES = {  # numbers of a token in each of two layers
    "llama": 2 * 2 * 8,  # 2 of 4 heads have keys and values
    "qwen3_moe": 2 * 2 * 8,
    "falcon": 2 * 8,  # all heads share them
    "falcon-grouped": 2 * 4 * 8,  # 2 of 4 heads have them, and the cache repeats them for all
    "gpt_bigcode": 2 * 8,
    "deepseek_v2": 8 + 4,  # a latent vector of 8, and the 4 numbers of the key that turn with the position
    "deepseek_v3": 8 + 4,
    "mistral-window": 2 * 2 * 8,  # of 3 tokens, as the window of 4 has the current one in it
    "gpt_oss": 2 * 2 * 8,  # a window of 4 in one of two layers
}
WINDOWS = {"mistral-window": (3, 3), "gpt_oss": (3, 7)}  # tokens of 7 that are kept


@pytest.mark.parametrize("name", CACHES)
def test_the_cache_has_the_bytes_of_the_models_own(name):
    config = tiny_config(name, **TOKENS)
    shape, model = shape_of(config), AutoModelForCausalLM.from_config(config).eval()
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    for tokens in (1, 3, 7):
        past = model(input_ids=torch.ones(2, tokens, dtype=torch.long), use_cache=True).past_key_values
        real = sum(x.numel() * x.itemsize for layer in past.layers for x in (layer.keys, layer.values))
        assert 2 * shape.kv_bytes(tokens, 4) == real
    assert shape.kv_bytes(7, 1) == CACHES[name] * sum(WINDOWS.get(name, (7, 7)))


@pytest.mark.parametrize("name", ["mamba", "jamba", "lfm2"])
def test_a_recurrent_state_is_refused_as_by_the_import(name):
    with pytest.raises(SettingsError, match="it keeps a recurrent state between tokens, not only keys and values"):
        shape_of(tiny_config(name, **TOKENS))


def workload(name: str, algorithm: str = "grpo", rewards: str = "correctness", **sizes) -> Workload:
    run = RunConfig(
        algorithm, 0, prompts_per_step=1, group_size=2, minibatches=1, max_response_tokens=8, device="cpu",
        rewards={rewards: 1.0},
    )  # fmt: skip
    return Workload(run, tiny_config(name, **TOKENS, **sizes), 8)


@pytest.mark.parametrize(
    "case",
    [
        workload("deepseek_v3"),  # a latent cache, a dense layer and one of experts
        workload("gpt_oss"),  # experts, and windows in every second layer
        workload("opt", "ppo", "reward_model"),  # heads as wide as the last states, which are projected
    ],
    ids=lambda case: case.model.model_type,
)
def test_an_architectures_step_is_measured_as_predicted(case):
    predicted, measured = dry_run.predict(case), dry_run.measure(case)
    for phase, peak in measured.items():
        assert predicted[phase].bytes == pytest.approx(peak.bytes, rel=TOLERANCE), phase


KINDS = {  # layers, and the numbers of layers of the models that are run in their place
    "deepseek_v3": ({"num_hidden_layers": 61, "first_k_dense_replace": 3}, {4, 5}),  # the 4th and 5th have experts
    "gemma3_text": ({"num_hidden_layers": 26, "layer_types": None}, {2, 3, 11, 12}),  # the 6th and 12th see all
    "gpt_oss": ({"num_hidden_layers": 24}, {2, 3, 4}),  # every second one sees all
    "qwen2": ({"num_hidden_layers": 28}, {2, 3}),
    "mixtral": ({"num_hidden_layers": 4}, {4}),
}


@pytest.mark.parametrize("name", KINDS)
def test_layers_of_several_kinds_are_extrapolated_each_by_its_own(name, monkeypatch):
    """A stand-in for the step: 100 bytes, 1,000 for each kind of layer, and for each layer as its kind has them."""
    sizes, counts = KINDS[name]
    deep = workload(name, **sizes)
    of, run = kinds(deep.model), set()
    bytes_of = {kind: 7 + 4 * number for number, kind in enumerate(dict.fromkeys(of))}

    def step(shallow: Workload) -> dict[str, Peak]:
        layers = kinds(shallow.model)
        run.add(len(layers))
        assert layers == of[: len(layers)]  # the first layers of the deep model
        size = 100 + 1000 * len(set(layers)) + sum(bytes_of[kind] for kind in layers)
        places = Counter({("policy", "activations"): size})
        return {"update": Peak(size, places, size, moments={"forward": (size, places)})}

    monkeypatch.setattr(dry_run, "_predict", step)
    peak = dry_run.predict(deep)["update"]
    whole = 100 + 1000 * len(bytes_of) + sum(bytes_of[kind] for kind in of)
    assert (peak.bytes, peak.start_bytes, run) == (whole, whole, counts)
