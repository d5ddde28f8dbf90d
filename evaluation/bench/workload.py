"""A model with random weights, and prompts, on disk as a study would leave them; the response lengths are known.

Nothing is downloaded. Forced lengths: end-of-sequence lies outside the model's vocabulary, so every response has
max_response_tokens. Natural lengths: the probability of end-of-sequence is about the same at every token, so
that lengths are geometric.
"""

import random
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.build import make
from algos.training.models.checkpoints import save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.tokens import encode_prompts, load_tokenizer, train_tokenizer
from evaluation.config import PromptSettings
from evaluation.data import write_splits
from evaluation.memory.closed_form import LLAMA, QWEN, model_config, shape_config
from evaluation.tasks import TaskSettings, load_task
from evaluation.tasks.files import read_jsonl, write_jsonl

NEVER = "<|never|>"  # the end-of-sequence that no model can say
LETTERS = ("abcdefghijklmnop", "абвгдежзийклмноп")  # two scripts, so that the reward `language` varies
FAMILIES = {"qwen2": QWEN, "llama": LLAMA}
COMMON = 8.0  # norm of the vector that all embeddings have in common, when lengths are natural


@dataclass(frozen=True)
class Shape:
    """Shape of a model like Qwen2 or Llama. The defaults are those of the default study's base model."""

    vocab_size: int = 320
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 4
    intermediate_size: int = 352
    tied: bool = True  # input and output embeddings are one matrix
    max_positions: int = 4096
    family: str = "qwen2"  # or "llama", which has no biases

    def config(self, tokenizer):
        """transformers' configuration; the tokenizer's end-of-sequence may lie outside the vocabulary."""
        config = shape_config(
            {**FAMILIES[self.family], "max_position_embeddings": self.max_positions},
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.key_value_heads,
            self.vocab_size,
            self.tied,
        )
        config.update({"pad_token_id": tokenizer.pad_token_id, "initializer_range": self.hidden_size**-0.5})
        return config


def known_shape(name: str) -> Shape:
    """One of the shapes that evaluation.memory knows by name."""
    sizes = model_config(name)
    return Shape(
        sizes.vocab_size,
        sizes.hidden_size,
        sizes.num_hidden_layers,
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
        sizes.intermediate_size,
        sizes.tie_word_embeddings,
        family=sizes.model_type,
    )


SHAPES = {
    "study": Shape(),
    "toy": Shape(vocab_size=120, hidden_size=16, layers=2, heads=2, key_value_heads=2, intermediate_size=32),
    **{name: known_shape(name) for name in ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b")},
}


@dataclass(frozen=True)
class Workload:
    """What a run starts from, on disk."""

    shape: Shape
    policy: Path  # checkpoint, tokenizer included
    prompts: Path  # problems, JSONL
    prompt_tokens: float  # mean over the problems
    weights: bool = True  # False: the checkpoint has a configuration alone; who loads it gets new random weights


def task_workload(
    out: Path, task: dict, problems: int, shape: Shape, length: float | None = None, seed: int = 0
) -> Workload:
    """Problems of a study's task, a tokenizer trained on it, a model of the shape; length: mean tokens; None: forced.

    The shape's vocabulary is the most that the tokenizer may have, and shrinks to what it has.
    """
    sizes = {"train": problems, "dev": 1, "test": 1, "demonstrations": 2000}
    splits = load_task(from_dict(TaskSettings, {**task, **sizes}, "task"))
    prompt = PromptSettings().prompt
    texts = (text for row in splits["demonstrations"] for text in (prompt(row["question"]), row["answer"]))
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    rows = [{"id": f"train/{i}", "prompt": prompt(r["question"]), **r} for i, r in enumerate(splits["train"])]
    shape = replace(shape, vocab_size=len(tokenizer))
    if length is None:
        tokenizer.add_special_tokens({"eos_token": NEVER})  # its id is one above the model's last
    shape.config(tokenizer).save_pretrained(out / "policy")
    model = random_model(out / "policy", seed=seed)
    tokenizer.save_pretrained(out / "policy")
    tokenizer = load_tokenizer(
        out / "policy"
    )  # as the runs do: read again it is a Qwen2Tokenizer, which cuts otherwise
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    if length is not None:
        end_with_probability(model, tokenizer, 1 / length, prompts[:64])
    save_policy(model, tokenizer, out / "policy")
    write_jsonl(out / "prompts.jsonl", rows)
    return Workload(shape, out / "policy", out / "prompts.jsonl", sum(map(len, prompts)) / len(prompts))


def pretrained_workload(
    out: Path, model: dict, task: dict, prompt: dict, problems: int, forced: bool = True
) -> Workload:
    """A model of a study and its task's problems; forced: its responses end at the limit alone.

    Raises SettingsError for a model that the suite does not take, or whose shape the arithmetic does not know.
    """
    sizes = {"train": problems, "dev": 1, "test": 1, "demonstrations": 1}
    write_splits(from_dict(TaskSettings, {**task, **sizes}, "task"), from_dict(PromptSettings, prompt, "prompt"), out)
    loaded, tokenizer = make(from_dict(ModelConfig, model, "model"), "model", 0, str(out / "train.jsonl"), None)
    shape = shape_of(loaded.config.get_text_config())
    if forced:
        tokenizer.add_special_tokens({"eos_token": NEVER})  # its id is one above those that the model can say
        ends = tokenizer.eos_token_id
        if ends < shape.vocab_size:
            raise SettingsError("the model has spare rows in its embedding, so the length of a response is not forced.")
        loaded.config.eos_token_id = loaded.generation_config.eos_token_id = ends
    save_policy(loaded, tokenizer, out / "policy")
    tokenizer = load_tokenizer(out / "policy")
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in read_jsonl(out / "train.jsonl")])
    return Workload(shape, out / "policy", out / "train.jsonl", sum(map(len, prompts)) / len(prompts))


def shape_of(config) -> Shape:
    """The shape of a model with gated feed-forward layers, as the arithmetic of work.py counts it."""
    try:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        experts = [name for name in vars(config) if name in ("num_experts", "num_local_experts", "n_routed_experts")]
        if experts or width * config.num_attention_heads != config.hidden_size:
            raise SettingsError(
                f"the benchmark counts the arithmetic of models like Llama and Qwen2; a {config.model_type} model has "
                f"{experts[0] if experts else 'heads of another width'}."
            )
        return Shape(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.intermediate_size,
            config.tie_word_embeddings,
            config.max_position_embeddings,
        )
    except AttributeError as error:
        raise SettingsError(
            f"the benchmark counts the arithmetic of models like Llama and Qwen; a {config.model_type} model has no "
            f"{error.name}."
        ) from None


def synthetic_workload(out: Path, shape: Shape, problems: int, prompt_tokens: int, seed: int = 0) -> Workload:
    """Prompts of exactly prompt_tokens tokens from a vocabulary of the shape's size, one word a token; forced lengths.

    No weights are written: 7 billion of them take longer to write and read than to make.

    Half of the words are Latin and half Cyrillic, so that the reward `language` of random text varies.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|unknown|>"]
    words = [_word(i) for i in range(shape.vocab_size - len(special))]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=special[0], unk_token=special[1], clean_up_tokenization_spaces=False
    )
    generator = random.Random(seed)
    rows = [
        {
            "id": f"train/{i}",
            "question": str(i),
            "prompt": " ".join(generator.choices(words, k=prompt_tokens)),
            "answer": f"#### {i}",
        }
        for i in range(problems)
    ]
    tokenizer.add_special_tokens({"eos_token": NEVER})
    tokenizer.save_pretrained(out / "policy")
    shape.config(tokenizer).save_pretrained(out / "policy")
    write_jsonl(out / "prompts.jsonl", rows)
    return Workload(shape, out / "policy", out / "prompts.jsonl", prompt_tokens, weights=False)


def word_tokenizer(checkpoint):
    """The tokenizer of a synthetic_workload, which transformers.AutoTokenizer would take for Qwen's."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(checkpoint))


@contextmanager
def reading(workload: Workload, device: torch.device):
    """Meanwhile a checkpoint without weights is read as a model with random ones, made on the device."""
    if workload.weights:
        yield
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def model(path, *_, dtype, output_loading_info=False, **__):
        made = random_model(path, dtype, device)
        return (made, {"missing_keys": []}) if output_loading_info else made

    def tokenizer(path, *_, **__):
        return word_tokenizer(path)

    with (
        patch.object(AutoModelForCausalLM, "from_pretrained", model),
        patch.object(AutoTokenizer, "from_pretrained", tokenizer),
    ):
        yield


def random_model(checkpoint, dtype="float32", device: torch.device | str = "cpu", seed: int = 0):
    """A causal LM of a checkpoint's configuration, its weights random and made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device(device), torch.random.fork_rng(devices=[torch.device(device)] if "cuda" in str(device) else []):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _word(number: int) -> str:
    """A word of its own for every number: hexadecimal in letters, even ones Latin, odd ones Cyrillic."""
    return "".join(LETTERS[number % 2][int(digit, 16)] for digit in f"{number // 2:x}")


@torch.no_grad()
def end_with_probability(model, tokenizer, probability: float, prompts: list[list[int]]) -> None:
    """Change the tied embeddings so that end-of-sequence has about this probability after any token.

    One vector is added to all embeddings, and every state then points along this vector. End-of-sequence gets more or
    less of the vector, as bisection finds. The part that all tokens have in common changes no probability.
    """
    table = model.get_input_embeddings().weight  # (V, H)
    common = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0))
    common *= COMMON / common.norm()
    table += common
    states = torch.cat([model.base_model(torch.tensor([ids])).last_hidden_state[0, -8:] for ids in prompts])  # (N, H)
    others = states @ table.T  # (N, V)
    others[:, tokenizer.eos_token_id] = -torch.inf
    others, base = others.logsumexp(dim=-1), states @ table[tokenizer.eos_token_id]
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        found = torch.sigmoid(base + middle * (states @ common) - others).mean()
        low, high = (middle, high) if found < probability else (low, middle)
    table[tokenizer.eos_token_id] += middle * common
