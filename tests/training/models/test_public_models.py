"""Tiny random models of the public architectures: each is imported and comes out right, or is refused by name.

Right: greedy sampling of prompts of different length equals transformers' generate of each alone, and the
log-probabilities that training uses equal those of a plain forward pass, prompts shared or not.
"""

import pytest
import torch
from tiny import random_rollouts, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.models.checkpoints import ScalarModel, load_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.logprobs import token_logprobs
from algos.training.models.packing import Layout, shares_prompts
from algos.training.models.tokens import load_tokenizer
from algos.training.sampling.sampler import sample
from evaluation.matrix.architectures import ARCHITECTURES, imported, saved

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
TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 9, 17, 4, 30, 8, 21], [11, 6, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(REFUSED)))
def test_a_model_comes_out_right(name, folder):
    path = imported(name, TOKENIZER, folder)
    model, tokenizer = load_policy(path, torch.device("cpu")), load_tokenizer(path)
    generator = torch.Generator().manual_seed(0)
    rollouts = sample(model, tokenizer, PROMPTS, 2, 12, 0.0, generator)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=12,
        )[0, len(prompt) :]  # fmt: skip
        for response in (2 * row, 2 * row + 1):
            assert rollouts.response_ids[response][rollouts.response_mask[response]].tolist() == alone.tolist()

    rollouts = random_rollouts(tokenizer, PROMPTS, 2, [5, 3, 6, 2])
    batch = make_batch(rollouts, torch.zeros(4), tokenizer.pad_token_id)
    model.train()  # dropout must be off in training passes
    layouts = [Layout(), Layout(responses=3)] + [Layout(share_prompts=True)] * shares_prompts(model.base_model)
    for layout in layouts:
        for rows, part in layout.micro_batches(batch):
            logprobs, _ = token_logprobs(model, part, 1.0)
            for i, row in enumerate(rows.tolist()):
                prompt, length = PROMPTS[row // 2], int(rollouts.response_mask[row].sum())
                ids = torch.tensor(prompt + rollouts.response_ids[row, :length].tolist())
                logits = model.eval()(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
                model.train()
                plain = logits.log_softmax(dim=-1).gather(1, ids[len(prompt) :, None]).squeeze(1)
                torch.testing.assert_close(logprobs[i, :length], plain, atol=2e-4, rtol=2e-4)


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
