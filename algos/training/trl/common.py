"""What TRL's trainers share here: what a run hands to them, one GPU, no defaults of the model, a quiet terminal."""

from dataclasses import dataclass
from typing import Any

import torch

import algos.training.trl.without_vllm  # noqa: F401
from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig


@dataclass(frozen=True)
class Work:
    """What a run hands to a trainer of TRL."""

    config: RunConfig
    policy: Any
    policy_path: str
    reference_path: str  # the checkpoint of the reference policy
    tokenizer: Any
    rows: list[dict]  # the problems of all steps, in order
    out: str
    device: torch.device


def refuse_other_gpus(device: torch.device) -> None:
    """Raise SettingsError if TRL would compute on a GPU that the run did not ask for."""
    if device.type == "cuda" and (torch.cuda.device_count() > 1 or device.index not in (None, 0)):
        raise SettingsError(
            "trainer trl: TRL takes every visible GPU; set CUDA_VISIBLE_DEVICES to one, device to cuda."
        )


def sample_plainly(model, tokenizer) -> None:
    """Replace the model's own generation settings, whose penalties would change the distribution sampled from."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )


def silence(trainer) -> None:
    """No log lines on the terminal: the progress line is printed here, the figures are in metrics.jsonl."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
