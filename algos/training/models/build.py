"""A model that a study starts from: loaded from a path or hub id, or built, with a tokenizer trained on the task.

By hand:
    python -m algos.training.models.build --name base --settings '{"hidden_size": 128}' --texts FILE --out DIR
"""

from dataclasses import asdict
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import build_model, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.imports import import_model
from algos.training.models.tokens import load_tokenizer, train_tokenizer
from algos.training.stage.record import Record, component_memory, load_settings, main_guard, stage_parser, use_threads
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.rows import check_prompts, check_rows


def tokenizer_for(config: ModelConfig, texts: str, checkpoint: str | None):
    """The tokenizer of the checkpoint if there is one, else a new one, trained on prompt and answer of the rows."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint)
    rows = read_jsonl(texts)
    check_rows(rows, texts, gold=False)
    check_prompts(rows, texts, ids=False)
    if any(not isinstance(row["prompt"], str) for row in rows):
        raise SettingsError("prompt.chat needs a model with a chat template: give the model a path.")
    return train_tokenizer((text for row in rows for text in (row["prompt"], row["answer"])), config.vocab_size)


def make(config: ModelConfig, name: str, seed: int, texts: str, checkpoint: str | None):
    """The model and its tokenizer, as the settings say."""
    if config.built:
        tokenizer = tokenizer_for(config, texts, checkpoint)
        return build_model(config, tokenizer, seed), tokenizer
    if checkpoint is not None:
        raise SettingsError(f"{name}: a loaded model has its own tokenizer; leave out the other one.")
    rows = read_jsonl(texts)
    check_prompts(rows, texts, ids=False)
    chat = any(not isinstance(row["prompt"], str) for row in rows)
    try:
        return import_model(config, chat)
    except SettingsError as error:
        raise SettingsError(f"{name}: {config.source}: {error}") from None


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
