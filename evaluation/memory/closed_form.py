"""Memory and compute in closed form: bytes per parameter, model states, key-value cache, FLOPs per generated token.

Sources: ZeRO (arXiv:1910.02054) for mixed precision, 8-bit moments (arXiv:2110.02861), Adafactor (arXiv:1804.04235),
activations (arXiv:2205.05198). GB is 1e9 bytes. A saving means nothing without its assumptions: bytes per trained (t)
and per frozen (f) parameter, which models there are, and what stands beside the states; activations, logits and the
cache do not shrink with the critic.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from algos.pieces.settings import SettingsError, one_of
from algos.training.models import gguf
from algos.training.models.lora import adaptable
from evaluation.memory.layers import Kept, kept, weightless

GB = 1e9
GIB = 2**30
MODELS = ("policy", "critic", "reference", "reward_model", "behavior")
STATES = ("weights", "gradients", "optimizer", "master")


@dataclass(frozen=True)
class Precision:
    """Bytes per parameter of a trained model without its optimizer state, and of a frozen one."""

    weights: float
    gradients: float
    master: float  # float32 copy that the optimizer updates
    moments: float  # bytes of one AdamW moment
    frozen: float


PRECISIONS = {
    "float32": Precision(4, 4, 0, 4, 4),
    "mixed": Precision(2, 2, 4, 4, 2),  # bfloat16 weights and gradients, float32 master: ZeRO's 16 bytes with AdamW
    "mixed_float32_gradients": Precision(2, 4, 4, 4, 2),
    "bfloat16": Precision(2, 2, 0, 2, 2),  # loses small updates at a rate of 1e-6
}
OPTIMIZER_BYTES = {  # per parameter; adafactor's n + m floats per n x m matrix round to 0
    "adamw": lambda precision: 2 * precision.moments,
    "adamw_8bit": lambda precision: 2,
    "adafactor": lambda precision: 0,
}


def bytes_per_parameter(precision: str, optimizer: str) -> tuple[float, float]:
    """(t, f): bytes per trained and per frozen parameter. mixed with adamw is (16, 2)."""
    one_of(precision, PRECISIONS, "precision")
    one_of(optimizer, OPTIMIZER_BYTES, "optimizer")
    p = PRECISIONS[precision]
    return p.weights + p.gradients + p.master + OPTIMIZER_BYTES[optimizer](p), p.frozen


# the worked table: model states of four equal models

ASSUMPTIONS = {  # (t, f)
    "weights and gradients, no optimizer": (4, 2),
    "bf16 weights only": (2, 2),
    "fp32 weights only": (4, 4),
    "AdamW mixed": (16, 2),
    "AdamW, fp32 gradients": (18, 2),
    "8-bit Adam": (10, 2),
    "Adafactor + master": (8, 2),
}
SETUPS = {  # trained and frozen models
    "PPO, 4 models": (2, 2),
    "PPO + rules": (2, 1),
    "GRPO + RM": (1, 2),
    "GRPO + rules": (1, 1),
    "GRPO + rules, no ref": (1, 0),
}


def states(setup: str, trained: float, frozen: float, parameters: float = 7e9) -> float:
    """Bytes of model states of a setup at t and f bytes per parameter."""
    models = SETUPS[setup]
    return parameters * (models[0] * trained + models[1] * frozen)


def saving(setup: str, trained: float, frozen: float, against: str = "PPO, 4 models") -> float:
    """Share of model states that a setup does without, 0..1."""
    return 1 - states(setup, trained, frozen) / states(against, trained, frozen)


# shapes

QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_position_embeddings": 32768}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096}


def _shape(base, hidden, intermediate, layers, heads, kv_heads, vocabulary, tied) -> dict:
    return {
        **base,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


SHAPES = {  # their config.json, as far as memory depends on it
    "qwen2.5-0.5b": _shape(QWEN, 896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": _shape(QWEN, 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-7b": _shape(QWEN, 3584, 18944, 28, 28, 4, 152064, False),
    "smollm2-135m": _shape(LLAMA, 576, 1536, 30, 9, 3, 49152, True),
    "llama-2-7b": _shape(LLAMA, 4096, 11008, 32, 32, 32, 32000, False),
}


def shape_config(*sizes):
    """transformers' config of a shape, named as _shape does."""
    from transformers import AutoConfig

    shape = _shape(*sizes)
    return AutoConfig.for_model(shape.pop("model_type"), **shape)


def model_config(name: str):
    """transformers' config of a named shape, a folder or a hub id. Raises SettingsError naming what is allowed."""
    from transformers import AutoConfig

    known = name.lower().removeprefix("qwen/").removesuffix("-instruct")  # the hub id of a known shape needs no hub
    if known in SHAPES and not Path(name).is_dir():
        shape = dict(SHAPES[known])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"model: {name!r} cannot be read ({str(error).splitlines()[0]}); write a size such as 7B, one of "
            f"{', '.join(SHAPES)}, a folder with config.json, or a hub id."
        ) from None


def built_config(shape):
    """transformers' config of a study's own model, a training ModelConfig."""
    sizes = (shape.hidden_size, shape.intermediate_size, shape.layers, shape.heads, shape.heads, shape.vocab_size)
    return shape_config(QWEN, *sizes, True)


def config_of(model):
    """transformers' config of a training ModelConfig, or of a named shape, a folder or a hub id."""
    if isinstance(model, str):
        return model_config(model)
    if model.built:
        return built_config(model)
    if model.path:
        return model_config(model.path)
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = gguf.source(model)
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]  # which the file does not name
    return config


def model_size(name: str) -> float | None:
    """Parameters of a bare size such as 7B, 0.5B or 350M; None for anything else. Raises SettingsError for 0."""
    number, unit = name[:-1], name[-1:].upper()
    if unit not in ("B", "M"):
        return None
    try:
        size = float(number) * (1e9 if unit == "B" else 1e6)
    except ValueError:
        return None
    if not 0 < size < float("inf"):
        raise SettingsError(f"model: a size must be above 0, got {name!r}; write 7B or 350M.")
    return size


@dataclass(frozen=True)
class Shape:
    """What memory depends on of a causal language model."""

    parameters: int
    backbone_parameters: int  # without the output head, unless it is the input embedding
    adafactor_floats: int  # of the second moment
    linear_edges: int  # rows + columns of all matrices that adapters can change
    layers: int
    hidden: int
    cache: tuple[Kept, ...]  # of each layer that has one of its own
    vocabulary: int

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Keys and values of one token in every layer."""
        return self.kv_bytes(1, bytes_per_number)

    def kv_bytes(self, tokens: int, bytes_per_number: int = 2) -> int:
        """Keys and values of a text of so many tokens: of all, or of those that a layer's window holds."""
        return bytes_per_number * sum(layer.numbers * layer.tokens(tokens) for layer in self.cache)

    def lora_parameters(self, rank: int) -> int:
        """Of adapters (arXiv:2106.09685) on every linear layer and expert: rank x (n + m) for an n x m matrix."""
        return rank * self.linear_edges

    def activation_bytes(self, tokens: int, checkpointing: bool = False) -> float:
        """Rule of thumb for a 16-bit model with fused attention: 34 h per token and layer; recomputed: 2 h, and one
        layer's 34 h at work (arXiv:2205.05198)."""
        per_token = (2 * self.layers + 34) if checkpointing else 34 * self.layers
        return per_token * tokens * self.hidden

    def logits_bytes(self, tokens: int) -> int:
        """One float32 tensor of logits; with its softmax and its gradient it is two or three."""
        return 4 * tokens * self.vocabulary


def shape_of(config) -> Shape:
    """The shape of a transformers config, read from a model without weights: no memory."""
    model, past = weightless(config)
    text = config.get_text_config()
    sizes = [tuple(p.shape) for p in model.parameters()]
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        backbone_parameters=sum(p.numel() for p in model.base_model.parameters()),
        adafactor_floats=sum(adafactor_floats(size) for size in sizes),
        linear_edges=sum(adafactor_floats(tuple(weight.shape)) for weight in adaptable(model).values()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        cache=kept(past),
        vocabulary=text.vocab_size,
    )


def built_shape(model) -> Shape:
    """shape_of(built_config(model)), counted without transformers, which takes seconds to import."""
    hidden, between = model.hidden_size, model.intermediate_size
    linear = [(hidden, hidden)] * 4 + [(between, hidden)] * 2 + [(hidden, between)]
    vectors = [(hidden,)] * 5  # biases of query, key and value; two norms
    sizes = [(model.vocab_size, hidden), *model.layers * [*linear, *vectors], (hidden,)]
    parameters = sum(map(math.prod, sizes))
    return Shape(
        parameters=parameters,
        backbone_parameters=parameters,  # the output head is the input embedding
        adafactor_floats=sum(map(adafactor_floats, sizes)),
        linear_edges=model.layers * sum(map(sum, linear)),
        layers=model.layers,
        hidden=hidden,
        cache=(Kept(2 * hidden),) * model.layers,  # a key and a value of each head
        vocabulary=model.vocab_size,
    )


@cache
def named_shape(name: str) -> Shape:
    """shape_of one of SHAPES."""
    return shape_of(model_config(name))


def adafactor_floats(size: tuple[int, ...]) -> int:
    """Second moments of one parameter: rows and columns of each matrix, all elements of a vector."""
    total = math.prod(size)
    return total if len(size) < 2 else total // size[-1] + total // size[-2]


# model states of a run


@dataclass(frozen=True)
class Copies:
    """Parameters of each model of a run; 0: there is none. A shared critic is its head alone."""

    policy: float
    critic: float = 0
    reference: float = 0
    reward_model: float = 0
    behavior: float = 0


def model_states(
    copies: Copies, precision: str, optimizer: str, adafactor_share: float = 0.0, lora_share: float | None = None
) -> Counter[tuple[str, str]]:
    """Bytes by (model, state), gradients held in full.

    adafactor_share  second moments per parameter, next to nothing
    lora_share       trained parameters per parameter of the base, which is frozen and serves as the reference too; the
                     same for the critic; the behavior policy shares the base and has adapters of its own
    """
    t, f = bytes_per_parameter(precision, optimizer)
    p = PRECISIONS[precision]
    places: Counter[tuple[str, str]] = Counter()
    for model in MODELS:
        size = getattr(copies, model)
        if not size or (lora_share is not None and model == "reference"):
            continue
        trained: Any = size if model in ("policy", "critic") else 0  # Any: a Counter's values may be no whole numbers
        places[model, "weights"] = size * (p.weights if trained else f)
        if lora_share is not None and model == "behavior":
            places[model, "weights"] = size * lora_share * p.weights
        if trained:
            if lora_share is not None:
                trained *= lora_share
                places[model, "weights"] = size * f + trained * p.weights
            places[model, "gradients"] = trained * p.gradients
            places[model, "master"] = trained * p.master
            moments = t - p.weights - p.gradients - p.master
            if optimizer == "adafactor":
                moments = 4 * adafactor_share
            places[model, "optimizer"] = trained * moments
    return +places


# compute


def flops_per_token(
    critic: bool,
    reference: bool,
    reward_model: bool,
    epochs: int = 1,
    old_logprobs: bool = True,
    recompute: bool = False,
) -> int:
    """FLOPs per generated token, in units of the parameters N: forward 2, training step 6, equal models.

    old_logprobs: the trainer scores the responses once more. recompute: gradient checkpointing, one more forward pass
    per training step. Right per token; generation is bound by bandwidth, so its share of the time is far larger.
    """
    models, step = 1 + critic, 8 if recompute else 6
    return 2 + 2 * (old_logprobs + reference + critic + reward_model) + epochs * step * models
