"""A tiny Qwen2 with a tokenizer and a chat template like Qwen2.5's, taught to answer with one of a few numbers."""

import json
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from algos.training.models.checkpoints import save_policy
from algos.training.stage.config import OptimizerConfig
from algos.training.supervised import sft
from algos.training.supervised.config import SupervisedConfig
from evaluation.tasks.files import write_jsonl

END, TURN_END = "<|endoftext|>", "<|im_end|>"
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def few_answers(rows: list[dict], count: int, answers: list[str] | None = None) -> tuple[list[dict], list[str]]:
    """The first rows with one of these gold answers, by default the three most frequent ones; and the answers."""
    golds = [row["answer"].rpartition("#### ")[2] for row in rows]
    answers = answers or [gold for gold, _ in Counter(golds).most_common(3)]
    return [row for row, gold in zip(rows, golds, strict=True) if gold in answers][:count], answers


def tokenizer_of(texts: list[str], chat: bool) -> Qwen2Tokenizer:
    """Byte-level pieces of these texts; the instruct models end with another token than the base models."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    pieces = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=pieces["vocab"],
        merges=[tuple(pair) for pair in pieces["merges"]],
        eos_token=TURN_END if chat else END,
        extra_special_tokens=["<|im_start|>", TURN_END],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def qwen(folder: Path, texts: list[str], chat: bool) -> Path:
    """The folder of a random model: grouped queries, biases, tied embeddings, as in Qwen2.5's small ones."""
    tokenizer = tokenizer_of(texts, chat)
    ends = tokenizer.convert_tokens_to_ids([TURN_END, END] if chat else [END])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=ends[0], pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    save_policy(model, tokenizer, folder)
    return folder


def answering_qwen(folder: Path, prompts: list, responses: list[str], chat: bool) -> Path:
    """The folder of a model that gives one of the responses to any of the prompts."""
    texts = [prompt if isinstance(prompt, str) else prompt[0]["content"] for prompt in prompts]
    start = qwen(folder / "random", texts + 50 * responses, chat)
    rows = [{"prompt": prompt, "question": "?", "answer": text} for prompt in prompts for text in responses]
    write_jsonl(folder / "taught.jsonl", rows)
    adam = OptimizerConfig(learning_rate=1.0e-2, warmup_steps=5)
    config = SupervisedConfig(seed=0, steps=60, batch_size=16, optimizer=adam, device="cpu")
    sft.train(config, str(start), str(folder / "taught.jsonl"), str(folder / "taught"))
    return folder / "taught" / "checkpoint"
