"""A checkpoint's folder: edited, and imported as a study imports it."""

import json
from pathlib import Path

import torch

from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.tokens import load_tokenizer


def edit(path: Path, **values) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def imported(folder: Path, chat: bool = False):
    """The model and the tokenizer that the stages load."""
    model, tokenizer = import_model(ModelConfig(path=str(folder)), chat)
    save_policy(model, tokenizer, folder / "imported")
    return load_policy(folder / "imported", torch.device("cpu")), load_tokenizer(folder / "imported")
