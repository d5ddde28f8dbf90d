"""A model from a folder, the hub or a GGUF file, made fit for a study or refused in one true sentence.

Its special tokens are settled here, once for all stages: which token ends a response, which others stop one, and which
pads. What the stages rely on is tried: that its logits are its head applied to its states, and that prompts of
different length, sampled side by side, come out as they do alone.
"""

import re
from contextlib import suppress
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts
from algos.training.models import gguf
from algos.training.models.checkpoints import load_policy, without_dropout
from algos.training.models.config import ModelConfig
from algos.training.models.kv_cache import check_keys_and_values
from algos.training.models.tokens import end_ids, first_line, load_tokenizer, set_ends, set_padding, turn_end
from algos.training.sampling.sampler import sample

PROBES = ([1, 2, 3, 4, 5, 6, 7], [3, 5, 4])  # prompts of different length
TOLERANCE = 2e-3  # of log-probabilities in float32, alone and side by side
DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier_scale")


def import_model(config: ModelConfig, chat: bool) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer. chat: whether the study's prompts are chat messages."""
    if config.path is not None:
        model = load_policy(config.path, torch.device("cpu"), revision=config.revision)
        tokenizer = load_tokenizer(config.path, config.revision)
    else:
        model, tokenizer = gguf.load(gguf.source(config))
        without_dropout(model)
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops] if stops is not None else []
    _check_weights(model)
    _settle_tokens(model, tokenizer, stops, chat)
    _check_vocabulary(model, tokenizer)
    try:
        _check_head(model)
        _check_sampling(model, tokenizer)
    except SettingsError:
        raise
    except Exception as error:  # whatever a model's own code raises
        raise SettingsError(f"it cannot be sampled from ({type(error).__name__}: {first_line(error)}).") from None
    return model, tokenizer


def _settle_tokens(model, tokenizer, stops: list[int], chat: bool) -> None:
    """The end of a response is the token that closes an assistant's turn, where prompts are chat messages."""
    own = tokenizer.eos_token_id
    if isinstance(templates := tokenizer.chat_template, dict):  # several by name
        tokenizer.chat_template = templates.get("default")
        if chat and tokenizer.chat_template is None:
            raise SettingsError(f"its chat templates are called {', '.join(templates)}; one must be called default.")
    if chat:
        if tokenizer.chat_template is None:
            raise SettingsError("prompt.chat is true, but the model's tokenizer has no chat template; set it to false.")
        tokenizer.chat_template = DATE.sub(lambda call: repr(datetime.now().strftime(call[2])), tokenizer.chat_template)
        if (closing := turn_end(tokenizer)) is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(closing)
    set_ends(tokenizer, [own, *stops])
    set_padding(tokenizer)
    ends = end_ids(tokenizer)
    for settings in (model.config, model.config.get_text_config(), model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
        with suppress(StrictDataclassError):  # some configs must have a token here; without it none is ever put
            settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends


def _check_weights(model) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise SettingsError(f"its weight {name} holds NaN or infinity.")


def _check_vocabulary(model, tokenizer) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise SettingsError(
            f"its tokenizer has {len(tokenizer)} tokens, but its embedding {rows} rows; resize the embedding, or take "
            "the tokenizer that belongs to it."
        )


@torch.no_grad()
def _check_head(model) -> None:
    """The logits must be the output head applied to the last states: log-probabilities are computed from these."""
    config = model.config.get_text_config()
    for name in SCALED:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise SettingsError(f"its logits are scaled or soft-capped ({name}); such models are not supported.")
    kinds = getattr(config, "layer_types", None) or []
    if blocks := [kind for kind in kinds if kind.endswith("_sparse") or "compressed" in kind]:
        raise SettingsError(
            f"its attention counts blocks from the first token, padding or not ({blocks[0]}); it is not supported."
        )
    probe = torch.tensor([PROBES[0]]) % model.get_input_embeddings().weight.shape[0]
    direct = model(input_ids=probe, use_cache=False).logits
    try:
        applied = model.get_output_embeddings()(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
    except (AttributeError, TypeError, RuntimeError):  # no such states, or of another width
        applied = torch.full_like(direct, torch.nan)
    if applied.shape != direct.shape or not torch.allclose(direct.float(), applied.float(), atol=1e-3, rtol=1e-3):
        raise SettingsError("its logits are not its output head applied to its last states; it is not supported.")


def _check_sampling(model, tokenizer) -> None:
    """Two responses to each of two prompts of different length must be sampled as each is alone and in one pass.

    Every second token ends a response, so that rows leave the batch.
    """
    rows = min(model.get_input_embeddings().weight.shape[0], len(tokenizer))
    prompts = [[i % rows for i in prompt] for prompt in PROBES]
    with torch.no_grad():
        output = model(input_ids=torch.tensor([prompts[0]]), use_cache=True)
    check_keys_and_values(getattr(output, "past_key_values", None), getattr(output, "cache_params", None))
    together = _sampled(model, tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        _compare(model, prompt, together, row)


def _sampled(model, tokenizer, prompts: list[list[int]]) -> Rollouts:
    ends = list(range(0, model.get_input_embeddings().weight.shape[0], 2))
    stops = SimpleNamespace(pad_token_id=tokenizer.pad_token_id, eos_token_id=ends[0], end_ids=ends)
    return sample(model, stops, prompts, 2, 5, 1.0, torch.Generator().manual_seed(0))


@torch.no_grad()
def _compare(model, prompt: list[int], together: Rollouts, row: int) -> None:
    """The sampler's log-probabilities of a prompt's two responses are those of one pass over prompt and response."""
    for response in (2 * row, 2 * row + 1):
        ids = together.response_ids[response][together.response_mask[response]].tolist()
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        difference = float((alone - together.sampler_logprobs[response, : len(ids)]).abs().max())
        if not difference < TOLERANCE:
            raise SettingsError(
                "prompts of different length, sampled side by side, come out otherwise than alone (log-probabilities "
                f"differ by {difference:.2g}): it does not leave out padding or later tokens."
            )
