"""Tiny random models of the public architectures: each is imported and comes out right, or is refused by name.

Right: greedy sampling of prompts of different length equals transformers' generate of each alone, and the
log-probabilities that training uses equal those of a plain forward pass, prompts shared or not. The other kinds of
stage are in `python -m evaluation.matrix`.
"""

import pytest
import torch
from tiny import random_rollouts

from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from evaluation.matrix.architectures import ARCHITECTURES, imported, saved, tokenizer
from evaluation.matrix.cells import Tried, logprobs, sampling

TOLERANCE = 1e-4  # of log-probabilities
RECURRENT = "it keeps a recurrent state between tokens, not only keys and values; such models are not supported"
REFUSED = {
    "mamba": RECURRENT,
    "mamba2": RECURRENT,
    "lfm2": RECURRENT,
    "jamba": RECURRENT,
    "qwen3_next": RECURRENT,
    "gemma2": r"its logits are scaled or soft-capped \(final_logit_softcapping\)",
    "cohere": r"its logits are scaled or soft-capped \(logit_scale\)",
    "granite": r"its logits are scaled or soft-capped \(logits_scaling\)",
}
TOKENIZER = tokenizer()
PROMPTS = [[5, 9, 17, 4, 30, 8, 21], [11, 6, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(REFUSED)))
def test_a_model_comes_out_right(name, folder):
    tried = Tried(imported(name, TOKENIZER, folder), folder)
    assert sampling(tried) < TOLERANCE and logprobs(tried) < TOLERANCE


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(REFUSED)))
def test_a_model_takes_a_scalar_head(name, folder):
    critic = ScalarModel.from_policy(saved(name, TOKENIZER, folder), "linear", 0.1, torch.device("cpu"))
    batch = make_batch(random_rollouts(TOKENIZER, PROMPTS, 2, [5, 3, 6, 2]), torch.zeros(4), 0)
    scores = critic.batch_scores(batch)
    assert scores.shape == (4,) and torch.isfinite(scores).all()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_model_that_would_be_wrong_is_refused(name, folder):
    with pytest.raises(SettingsError, match=REFUSED[name]):
        import_model(ModelConfig(path=str(saved(name, TOKENIZER, folder))), chat=False)
