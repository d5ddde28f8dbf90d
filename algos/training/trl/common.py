"""What TRL's trainers share here: what a run hands to them, one GPU, no defaults of the model, a quiet terminal."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch

import algos.training.trl.without_vllm  # noqa: F401
from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig

POSITION_TOLERANCE = 1e-2  # of logits in float32


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


def count_positions_by_mask(model, *others) -> None:
    """Give models the positions of their tokens, where they would count the padding on the left that TRL puts there.

    TRL's GRPO, RLOO and GKD leave positions to the model. Rotary ones are relative, and some models count by the mask;
    GPT-2, GPT-Neo and StarCoder 1 count padding, so that every log-probability would be another one than sampled.
    others: models of the same architecture, or None; the first, in float32, is tried for all of them. Raises
    SettingsError for a model that takes no positions and comes out otherwise behind padding.
    """
    if _comes_out_right(model):
        return
    for each in filter(None, (model, *others)):
        _give_positions(each)
    if not _comes_out_right(model):
        raise SettingsError(
            "trainer trl: TRL pads prompts on the left, and behind padding this model gives other log-probabilities; "
            "leave the TRL baseline out."
        )


@torch.no_grad()
def _comes_out_right(model) -> bool:
    """Whether a text has the same logits behind padding as alone."""
    ids = torch.tensor([[3, 4, 5, 6]], device=model.device) % model.get_input_embeddings().weight.shape[0]
    padded, mask = torch.cat([ids[:, :2], ids], dim=1), torch.tensor([[0, 0, 1, 1, 1, 1]], device=model.device)
    alone = model(input_ids=ids, use_cache=False).logits
    behind = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, 2:]
    return torch.allclose(behind, alone, atol=POSITION_TOLERANCE, rtol=POSITION_TOLERANCE)


def _give_positions(model) -> None:
    """Let a model's forward take positions from the mask, if it takes any and is given none."""
    plain = model.forward
    if "position_ids" not in inspect.signature(plain).parameters:
        return

    @functools.wraps(plain)
    def forward(*args, **inputs):
        mask, own = inputs.get("attention_mask"), inputs.get("position_ids")
        if own is None and mask is not None and mask.shape == getattr(inputs.get("input_ids"), "shape", None):
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return plain(*args, **inputs)

    model.forward = forward


def silence(trainer) -> None:
    """No log lines on the terminal: the progress line is printed here, the figures are in metrics.jsonl."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
