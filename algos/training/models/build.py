"""A model that a study starts from: loaded from a path or hub id, or built, with a tokenizer trained on the task.

By hand:
    python -m algos.training.models.build --name base --settings '{"hidden_size": 128}' --texts FILE --out DIR
"""

from dataclasses import asdict
from pathlib import Path

import torch

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import build_model, load_policy, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.tokens import load_tokenizer, train_tokenizer
from algos.training.stage.record import Record, component_memory, load_settings, main_guard, stage_parser, use_threads
from evaluation.tasks.files import read_jsonl


def load_hub_or_folder(config: ModelConfig):
    """The model and tokenizer of config.path. Raises SettingsError if they end a response with different tokens."""
    assert config.path is not None
    model = load_policy(config.path, torch.device("cpu"), revision=config.revision)
    tokenizer = load_tokenizer(config.path, config.revision)
    stops = model.generation_config.eos_token_id
    first = stops[0] if isinstance(stops, list) else stops
    if first is not None and first != tokenizer.eos_token_id:
        raise SettingsError(
            f"{config.path}: its turns end with {tokenizer.convert_ids_to_tokens(first)!r}, but its tokenizer's "
            f"end-of-sequence is {tokenizer.eos_token!r}; set eos_token in the tokenizer's config."
        )
    return model, tokenizer


def tokenizer_for(config: ModelConfig, texts: str, checkpoint: str | None):
    """The tokenizer of the checkpoint if there is one, else a new one, trained on prompt and answer of the rows."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    rows = read_jsonl(texts)
    if any(not isinstance(row["prompt"], str) for row in rows):
        raise SettingsError("prompt.chat needs a model with a chat template: give the model a path.")
    return train_tokenizer((text for row in rows for text in (row["prompt"], row["answer"])), config.vocab_size)


def make(config: ModelConfig, name: str, seed: int, texts: str, checkpoint: str | None):
    """The model and its tokenizer, as the settings say."""
    if config.path is None:
        tokenizer = tokenizer_for(config, texts, checkpoint)
        return build_model(config, tokenizer, seed), tokenizer
    if checkpoint is not None:
        raise SettingsError(f"{name}.path: a loaded model has its own tokenizer; leave out the other one.")
    try:
        return load_hub_or_folder(config)
    except SettingsError as error:
        raise SettingsError(f"{name}.path: {error}") from None


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--texts", required=True, metavar="FILE", help="rows: prompt and answer train the tokenizer")
    parser.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer of this checkpoint instead")
    args = parser.parse_args()
    use_threads(args.threads)
    name = args.name or "model"
    config = from_dict(ModelConfig, load_settings(args.settings), name)
    model, tokenizer = make(config, name, args.seed, args.texts, args.tokenizer)
    record = Record(args.out, "model", asdict(config), args.threads, name=args.name, seed=args.seed)
    record.log(0, {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)})
    save_policy(model, tokenizer, Path(args.out) / "checkpoint")
    record.finish(
        model_commit=getattr(model.config, "_commit_hash", None), memory=component_memory(policy=(model, None))
    )


if __name__ == "__main__":
    main_guard(main)
