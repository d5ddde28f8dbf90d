"""Policy, critic, reward model and tokenizer: built, loaded, saved. Weights only as safetensors.

A model computes in the run's dtype. Saved weights have float32 or more: the masters, where a weight has one."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from algos.pieces.settings import SettingsError
from algos.training.models.config import ModelConfig
from algos.training.models.lora import merged
from algos.training.models.packing import forward, plain
from algos.training.models.tokens import readable
from algos.training.update.optimize import master_of
from evaluation.tasks.files import parsed, write_json

A_MODEL = "a folder with config.json and safetensors weights, or a hub id"


def resolve_device(name: str) -> torch.device:
    """auto: CUDA where there is one. Raises SettingsError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device: {name!r} is not usable here ({error}); write auto, cpu or cuda.") from None
    return device


def build_model(config: ModelConfig, tokenizer, seed: int):
    """A new Qwen2-style causal LM with random weights, of the given shape."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            use_cache=True,
            initializer_range=config.initializer_range or config.hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def check_index(folder: Path) -> None:
    """Raise SettingsError if an index of the weights' files names a file that does not lie beside it."""
    for index in folder.glob("*.safetensors.index.json"):
        named = parsed(index.read_text(encoding="utf-8", errors="replace"), str(index))
        for name in named.get("weight_map", {}).values() if isinstance(named, dict) else ():
            if Path(str(name)).name != name:
                raise SettingsError(f"{index} names {name!r}, which is not a file of its folder.")


def check_causal_lm(path: str, revision: str | None = None) -> None:
    """Raise SettingsError unless path is a folder or hub id of a causal language model that transformers knows."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_index(Path(path))
    with readable(f"model {path!r}", A_MODEL):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    architectures = config.architectures or []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if known is None or not any("CausalLM" in a or "LMHead" in a or a == known for a in architectures or [known]):
        raise SettingsError(
            f"model {path!r} is no causal language model (model_type {config.model_type!r}, architectures "
            f"{architectures}); choose one whose architecture ends in ForCausalLM."
        )
    if getattr(config, "auto_map", None) and architectures and _plain(known) not in map(_plain, architectures):
        raise SettingsError(
            f"model {path!r} needs code of its own for {architectures[0]} (auto_map), which is never run."
        )
    for part in (config, config.get_text_config()):
        if quantized := getattr(part, "quantization_config", None):
            method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise SettingsError(
                f"model {path!r} is quantized ({method}), and training needs weights that are not: take the model in "
                "bfloat16 or float32, and leave quantization_config out of its config.json."
            )


def _plain(architecture: str) -> str:
    """A name as it is compared: MPTForCausalLM and transformers' MptForCausalLM are one architecture."""
    return architecture.replace("_", "").casefold()


def load_policy(path: str | Path, device: torch.device, dtype: str = "float32", revision: str | None = None):
    """A causal LM without dropout, and without generation settings but its special tokens. Raises SettingsError."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_causal_lm(str(path), revision)
    loaded: Any
    with readable(f"model {str(path)!r}", A_MODEL):
        loaded = AutoModelForCausalLM.from_pretrained(
            str(path),
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise SettingsError(f"model {path}: its weights lack {missing[0]}, {len(missing)} tensors in all.")
    model.to(device)
    without_dropout(model)
    for name, usual in (("return_dict", True), ("output_attentions", False), ("output_hidden_states", False)):
        if getattr(model.config, name, usual) != usual:
            setattr(model.config, name, usual)
    if getattr(model.config, "output_router_logits", False):  # TRL would add a load-balancing loss that nobody else has
        model.config.output_router_logits = False
    stops = model.generation_config  # without penalties, which would change the distribution that is sampled from
    model.generation_config = GenerationConfig(
        bos_token_id=stops.bos_token_id, eos_token_id=stops.eos_token_id, pad_token_id=stops.pad_token_id
    )
    return model


def positions_of(model) -> int | None:
    """The most tokens that a model's positions can count; None where the config names no limit.

    LongRoPE turns all keys otherwise once one text of a batch is longer than the original context (arXiv:2402.13753;
    transformers decides by the longest), so that a text would depend on its neighbours: that context is the limit.
    """
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(part for part in rope.values() if isinstance(part, dict))):  # for all layers, or by their type
        if part.get("rope_type") == "longrope":
            original = getattr(config, "original_max_position_embeddings", None)
            limits.append(part.get("original_max_position_embeddings", original))
    return min((limit for limit in limits if limit is not None), default=None)


def check_positions(model, longest: int, what: str, name: str = "model") -> None:
    """Raise SettingsError if a model has fewer positions than so many tokens; what and name: for the message."""
    limit = positions_of(model)
    if limit is not None and longest > limit:
        raise SettingsError(
            f"{what} make {longest} tokens, but the {name} counts {limit} positions; make them shorter."
        )


def check_response_fits(model, prompt: int, response: int, name: str = "model") -> None:
    """check_positions of a prompt of so many tokens and a response of at most so many."""
    check_positions(model, prompt + response, f"the longest prompt and max_response_tokens = {response}", name)


def import_model(path: str | Path) -> None:
    """Import the code of a checkpoint's model without loading its weights.

    Memory is measured from the end of this call on, so that the memory of the code is left out. Raises SettingsError
    if the checkpoint is no causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    check_causal_lm(str(path))
    MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(str(path), trust_remote_code=False))]


def without_dropout(model: nn.Module) -> None:
    """Dropout off in every pass, training ones too, else the ratio is not 1 on the first step; so is router noise.

    Layers keep the probability under many names (attention_dropout, activation_dropout, layerdrop, p, ...), some read
    it from their config in every pass, and TRL loads a reference with the config of the checkpoint.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _without_noise(vars(module))
        if (config := getattr(module, "config", None)) is not None:
            for part in (config, config.get_text_config() if hasattr(config, "get_text_config") else config):
                _without_noise(vars(part))


def _without_noise(values: dict) -> None:
    for name, value in values.items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float):
            values[name] = 0.0


def scalar_head(width: int, head: str, init_std: float, generator: torch.Generator | None = None) -> nn.Module:
    """linear: width -> 1; mlp: width -> width -> tanh -> 1. The last layer has weights of std init_std and bias 0.

    It computes in float32 even on bfloat16 states, so that values and scores are not rounded to 8 bits.
    """
    last = nn.Linear(width, 1)
    with torch.no_grad():
        last.bias.zero_()
        if init_std:
            last.weight.normal_(0.0, init_std, generator=generator)
        else:
            last.weight.zero_()
    module: nn.Module = last
    if head == "mlp":
        hidden = nn.Linear(width, width)
        with torch.no_grad():
            hidden.weight.normal_(0.0, 1 / math.sqrt(width), generator=generator)
            hidden.bias.zero_()
        module = nn.Sequential(hidden, nn.Tanh(), last)
    module.register_forward_pre_hook(_in_own_dtype)
    return module


def _in_own_dtype(head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].to(next(head.parameters()).dtype),)


@torch.no_grad()
def state_width(backbone) -> int:
    """The width of the last states, which is not hidden_size in every model (OPT-350m projects them)."""
    probe = torch.zeros(1, 1, dtype=torch.long, device=next(backbone.parameters()).device)
    return backbone(input_ids=probe, use_cache=False).last_hidden_state.shape[-1]


def place_head(head: nn.Module, like: Tensor) -> None:
    """Onto a backbone's device and into its dtype, but float32 at least."""
    head.to(dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def fresh_backbone(path: str | Path, seed: int, dtype: str = "float32", layers: int | None = None):
    """A backbone of a checkpoint's shape, or of its first layers, with new random weights."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    without_dropout(backbone)
    return first_layers(backbone, layers)


def first_layers(backbone, count: int | None):
    """The backbone without the layers above the first `count`, its last norm kept; None: all of them.

    Raises SettingsError if it has fewer layers, or none that can be taken away.
    """
    if count is None:
        return backbone
    config, layers = backbone.config, getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise SettingsError(f"critic_layers: {type(backbone).__name__} has no list of layers; set it to null.")
    if count > len(layers):
        raise SettingsError(f"critic_layers is {count}, but the critic's checkpoint has {len(layers)} layers.")
    del layers[count:]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:count]
    return backbone


class ScalarModel(nn.Module):
    """A backbone and a scalar head: a critic, or a reward model. Both heads of Stiennon et al. and of later work.

    The attribute names `backbone`, `score` and `base_model_prefix` are those that TRL's PPO expects.
    """

    base_model_prefix = "backbone"
    is_gradient_checkpointing = False

    def __init__(self, backbone: Any, head: str, init_std: float, generator: torch.Generator | None = None):
        super().__init__()
        self.backbone, self.head, self.config = backbone, head, backbone.config
        self.score = scalar_head(state_width(backbone), head, init_std, generator)
        self.gain, self.offset = 1.0, 0.0  # normalized score = (score - offset) * gain
        place_head(self.score, next(backbone.parameters()))

    @classmethod
    def from_policy(
        cls,
        path: str | Path,
        head: str,
        init_std: float,
        device: torch.device,
        dtype: str = "float32",
        generator: torch.Generator | None = None,
        layers: int | None = None,
    ) -> "ScalarModel":
        """A new head on the backbone of a policy checkpoint, or on its first layers."""
        backbone = first_layers(load_policy(path, torch.device("cpu"), dtype).base_model, layers)
        model = cls(backbone, head, init_std, generator)
        return model.to(device)

    def batch_scores(self, batch) -> Tensor:
        """Scores (B,) of a Batch, read at the last token of each sequence: at no padding, whatever its length."""
        packed = batch.packed or plain(batch)
        return self.scores(forward(self.backbone, packed), packed)

    def scores(self, states: Tensor, packed) -> Tensor:
        """Scores (B,) from the backbone's states (R, L, H) of a batch that was laid out like this."""
        return self.score(states.flatten(0, 1)[packed.last]).squeeze(-1).float()

    def save(self, path: str | Path) -> None:
        path = Path(path)
        save_weights(self.backbone, path)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.score.state_dict().items()}, path / "head.safetensors"
        )
        write_json(path / "head.json", {"head": self.head, "gain": self.gain, "offset": self.offset})

    @classmethod
    def load(cls, path: str | Path, device: torch.device, dtype: str = "float32") -> "ScalarModel":
        from transformers import AutoModel

        path = Path(path)
        if not (path / "head.json").is_file():
            raise SettingsError(f"{path} holds no reward model: head.json is missing.")
        meta = json.loads((path / "head.json").read_text(encoding="utf-8"))
        with readable(f"reward model {str(path)!r}", "a folder with config.json and safetensors weights"):
            backbone = AutoModel.from_pretrained(
                str(path), dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
            )
        model = cls(backbone, meta["head"], init_std=0.0)
        model.score.load_state_dict(load_file(path / "head.safetensors"))
        model.gain, model.offset = meta["gain"], meta["offset"]
        without_dropout(model)
        return model.to(device)


def save_policy(model, tokenizer, path: str | Path) -> None:
    """A checkpoint that every stage, and transformers, loads as a plain model."""
    save_weights(model, path)
    tokenizer.save_pretrained(path)


def save_weights(model, path: str | Path) -> None:
    """plain_state and config."""
    model.save_pretrained(path, state_dict=plain_state(model), safe_serialization=True)
    if model.dtype.itemsize < 4:  # the config names the dtype of the model in memory
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        write_json(Path(path) / "config.json", {**config, "dtype": "float32"})


def plain_state(model) -> dict[str, Tensor]:
    """The weights by name: masters in place of the rounded weights, adapters merged, float32 at least."""
    parameters, raised = dict(model.named_parameters(remove_duplicate=False)), {}
    state = {}
    for name, tensor in model.state_dict().items():
        source = master_of(parameters.get(name, tensor))
        if id(source) not in raised:  # tied weights stay one tensor
            raised[id(source)] = (source, _at_least_float32(source.detach()))
        state[name] = raised[id(source)][1]
    return merged(model, state)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
