"""The loss of a checkpoint on a text that is not of the task: it rises where training has cost language."""

from pathlib import Path

import torch

from algos.pieces.settings import SettingsError
from algos.training.models.logprobs import token_logprobs
from algos.training.supervised.examples import as_batch
from evaluation.config import text_file


def paragraphs(path: str | Path) -> list[str]:
    """The paragraphs of a UTF-8 file, which blank lines divide. Raises SettingsError if there are none."""
    try:
        text = text_file(str(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"evaluation.text: {path!r} cannot be read: {error}.") from None
    found = [part.strip() for part in text.split("\n\n") if part.strip()]
    if not found:
        raise SettingsError(f"evaluation.text: {path!r} has no text.")
    return found


@torch.no_grad()
def text_loss(policy, tokenizer, texts: list[str]) -> list[float]:
    """The mean negative log-probability of each text's tokens but the first, in nats a token.

    Raises SettingsError for a text that is a single token.
    """
    losses = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) < 2:
            raise SettingsError(f"evaluation.text: {text!r} is one token, so that nothing is left to predict.")
        batch = as_batch([(ids[:1], ids[1:])], tokenizer.pad_token_id, policy.device)
        logprobs, _ = token_logprobs(policy, batch, temperature=1.0)
        losses.append(-float(logprobs[batch.response_mask].mean()))
    return losses
