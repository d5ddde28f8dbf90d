"""Tokenizers: trained, loaded, and what they make of prompts and responses."""

from contextlib import contextmanager
from pathlib import Path

from algos.pieces.settings import SettingsError

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"


def first_line(error: Exception) -> str:
    """What an error says, in one line without its end; with the next line, where the first one announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said.rstrip(" .:")


@contextmanager
def readable(what: str, wanted: str):
    """While it is open, what transformers cannot read raises SettingsError, which says what is wanted."""
    try:
        yield
    except Exception as error:  # whatever a library raises at a malformed file
        reason = (
            f"{error} is missing, or not known to transformers" if isinstance(error, KeyError) else first_line(error)
        )
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own (auto_map), which is never run"
        elif "ignore_mismatched_sizes" in str(error):
            reason = "its weights have other shapes than its config.json says"
        raise SettingsError(f"{what} cannot be read: {reason}. It must be {wanted}.") from None


def train_tokenizer(texts, vocab_size: int):
    """A byte-level BPE tokenizer with single digits, trained on the texts. Every number is a sequence of digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def load_tokenizer(path: str | Path, revision: str | None = None):
    """The tokenizer of a checkpoint, with a padding token and the ids that end a response (`end_ids`).

    Raises SettingsError if the checkpoint holds none, or one that could not end a response.
    """
    from transformers import AutoTokenizer

    with readable(f"the tokenizer of {str(path)!r}", "a folder with tokenizer.json, or a hub id"):
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
        if not tokenizer("1 a", add_special_tokens=False)["input_ids"]:  # without files transformers makes an empty one
            raise ValueError("its files are missing")
    if tokenizer.eos_token_id is None:
        raise SettingsError(f"the tokenizer of {path} has no end-of-sequence token, so no response could ever end.")
    set_ends(tokenizer, _stops(path, revision))
    set_padding(tokenizer)
    return tokenizer


def _stops(path: str | Path, revision: str | None) -> list[int]:
    """The end tokens that a checkpoint's generation config names."""
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(str(path), revision=revision or "main").eos_token_id
    except OSError as error:  # it has none
        if (Path(path) / "generation_config.json").is_file():
            raise SettingsError(f"{path}/generation_config.json cannot be read: {first_line(error)}.") from None
        return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def set_ends(tokenizer, others: list[int]) -> None:
    """The tokenizer's own end of a response comes first, and is the one that training teaches."""
    if wrong := [stop for stop in others if not isinstance(stop, int)]:
        raise SettingsError(f"its generation config's eos_token_id holds {wrong[0]!r}, which is not the id of a token.")
    known = [stop for stop in others if 0 <= stop < len(tokenizer)]
    tokenizer.end_ids = list(dict.fromkeys([tokenizer.eos_token_id, *known]))


def end_ids(tokenizer) -> list[int]:
    """The ids of the tokens that end a response, the taught one first."""
    return getattr(tokenizer, "end_ids", None) or [tokenizer.eos_token_id]


def set_padding(tokenizer) -> None:
    """A padding token that ends no response. Masks come from lengths, so that any other token serves.

    A token of ordinary text would become a special one, and text around it would be cut otherwise; so a reserved token
    is taken where there is one, and the last and rarest of the vocabulary where there is none.
    """
    ends = {tokenizer.eos_token_id, *end_ids(tokenizer)}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        reserved = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        spare = [*tokenizer.all_special_ids, *reserved, *reversed(range(len(tokenizer)))]
        taken = {*ends, tokenizer.bos_token_id}
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(i for i in spare if i not in taken))


def turn_end(tokenizer) -> int | None:
    """The id of the token with which the chat template closes an assistant's turn; None if it closes it with none."""
    said = "The answer."
    turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": said}]
    ids = tokenizer(rendered(tokenizer, turns, tokenize=False).rpartition(said)[2], add_special_tokens=False)[
        "input_ids"
    ]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in ids if i in special), None)


def rendered(tokenizer, turns: list[dict], **options):
    """The messages in the tokenizer's chat template, which is of the model's maker: it runs in Jinja's sandbox.

    Raises SettingsError if the template fails.
    """
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except Exception as error:  # whatever a template raises
        raise SettingsError(f"its chat template fails: {first_line(error)}.") from None


def encode_prompt(tokenizer, prompt: str | list[dict], max_tokens: int | None = None) -> list[int]:
    """Token ids of a prompt: text as it is, a list of chat messages through the tokenizer's chat template.

    Raises SettingsError for a prompt of more than max_tokens tokens.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]  # with the beginning-of-sequence token of models that have one
        if ids and ids[-1] in end_ids(tokenizer):
            ids = ids[:-1]
    else:
        if tokenizer.chat_template is None:
            raise SettingsError("prompt.chat is true, but the model's tokenizer has no chat template; set it to false.")
        ids = rendered(tokenizer, prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    _check_length(ids, prompt, max_tokens)
    return list(ids)


def _check_length(ids: list[int], prompt: str | list[dict], max_tokens: int | None) -> None:
    if max_tokens is not None and len(ids) > max_tokens:
        raise SettingsError(
            f"a prompt has {len(ids)} tokens, more than max_prompt_tokens = {max_tokens}: {str(prompt)[:80]!r}"
        )


def encode_prompts(tokenizer, prompts: list[str | list[dict]], max_tokens: int | None = None) -> list[list[int]]:
    """encode_prompt of each; texts in one call of the tokenizer, which is ten times faster than one by one."""
    if not prompts or any(not isinstance(prompt, str) for prompt in prompts):
        return [encode_prompt(tokenizer, prompt, max_tokens) for prompt in prompts]
    ends = end_ids(tokenizer)
    encoded = [ids[:-1] if ids and ids[-1] in ends else ids for ids in tokenizer(prompts)["input_ids"]]
    for ids, prompt in zip(encoded, prompts, strict=True):
        _check_length(ids, prompt, max_tokens)
    return encoded


def encode_response(tokenizer, text: str) -> list[int]:
    """Token ids of a worked solution, end-of-sequence included."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
