"""What a job asks of its machine: GPUs, memory in MB, minutes. A cluster plans by it, and ends a job that takes more.

Snakemake asks for every job whenever it plans, so these are closed forms of the settings and the model's shape, on the
safe side; `python -m pipelines memory` predicts a stage's memory exactly. The allowances below are choices. A profile's
`set-resources` has the last word.
"""

import json
import os
from pathlib import Path

from algos.training.config import LOGITS_AT_ONCE
from algos.training.models import gguf
from algos.training.models.config import ModelConfig
from evaluation.memory.closed_form import Copies, Kept, Shape, built_shape, model_states
from pipelines.study import Study
from pipelines.workflow.work import Work

MB = 10**6
PROCESS = 1500 * MB  # Python and its libraries
CUDA = 4000 * MB  # of the host: CUDA's libraries and context
MARGIN = 1.5
UNKNOWN = 16_000  # MB for a model whose size is not known before it is loaded
START = 30  # minutes of any job: start-up, loading, a slow file system
PATIENCE = 3  # times the expected seconds of the computation
FLOPS = {"cpu": 1e10, "cuda": 1e13}  # a second; on the CPU of one thread
LAYER = 2e-3  # seconds of one layer for the next token, however many responses there are


def gpus(device: str, granted: int) -> int | None:
    """With `device: auto` one where the command, the profile or the machine grants some. None: nothing is asked for."""
    return 1 if device.startswith("cuda") or (device == "auto" and granted > 0) else None


def memory(work: Work, shape: Shape | None, gpu: int | None) -> int:
    """MB of the host. shape: of the policy, of which all models of a stage are; None: there is no model."""
    if shape is None:
        return round(PROCESS / MB)
    weights = 4 * shape.parameters
    copies = Copies(policy=work.trained * shape.parameters, reference=work.frozen * shape.parameters)
    states = model_states(copies, "float32", "adamw").total()
    if gpu:  # weights pass through the host's memory, and what is offloaded stays there
        return round((PROCESS + CUDA + 2 * weights + (states if work.offload else 0)) / MB)
    cache = work.rows * work.length * shape.kv_bytes_per_token(4)
    elements = work.at_once * shape.vocabulary
    logits = 3 * 4 * (elements if work.logits_at_once else min(elements, LOGITS_AT_ONCE))
    activations = 2 * shape.activation_bytes(work.at_once, work.checkpointing)  # 2: of 32 bits
    return round((PROCESS + weights + MARGIN * (states + max(activations + logits, cache))) / MB)


def minutes(work: Work, shape: Shape | None, gpu: int | None, threads: int) -> int:
    if shape is None:
        return START
    per_learned = 2 * (work.trained + work.frozen) + 6 * work.trained
    flops = shape.parameters * (2 * work.sampled + per_learned * work.learned)
    seconds = flops / (FLOPS["cuda"] if gpu else FLOPS["cpu"] * threads) + work.positions * shape.layers * LAYER
    return START + round(PATIENCE * seconds / 60)


def policy_shape(study: Study, name: str, checkpoint: str) -> Shape:
    """The shape of a stage's models. Raises FileNotFoundError for a loaded model whose checkpoint is not there yet."""
    model = study.model(study.origin(name))
    return built_shape(model) if model.built else saved_shape(checkpoint)


def saved_shape(checkpoint: str) -> Shape:
    """The shape of a model on disk, as config.json and the size of its weights tell it; nothing is imported."""
    weights = sum(entry.stat().st_size for entry in os.scandir(checkpoint) if entry.name.endswith(".safetensors"))
    written = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    config = written.get("text_config", written)
    parameters = weights // (4 if written.get("dtype", "float32") == "float32" else 2)
    hidden = _first(config, 4096, "hidden_size", "n_embd", "d_model")
    heads = _first(config, 32, "num_attention_heads", "n_head", "n_heads")
    numbers = (config.get("num_key_value_heads") or heads) * (config.get("head_dim") or hidden // heads)
    layers = _first(config, 32, "num_hidden_layers", "n_layer", "n_layers")
    return Shape(
        parameters=parameters,
        backbone_parameters=parameters,
        adafactor_floats=0,
        linear_edges=0,
        layers=layers,
        hidden=hidden,
        cache=(Kept(2 * numbers),) * layers,
        vocabulary=config["vocab_size"],
    )


def _first(config: dict, default: int, *names: str) -> int:
    return next((config[name] for name in names if name in config), default)


def model_memory(model: ModelConfig) -> int:
    """MB of making a model; UNKNOWN for one from the hub, whose size is known once it is loaded."""
    if model.built:
        return round(PROCESS / MB)
    path = Path(model.path) if model.path else gguf.source(model)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    times = 2 if model.path else 8  # 16 bits become 32, 4 bits become 32
    return round((PROCESS + MARGIN * times * size) / MB) if size else UNKNOWN
