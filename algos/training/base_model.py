"""The model that a study starts from: loaded from a path or hub id, or built with a tokenizer trained on the task's text.

By hand: python -m algos.training.base_model --settings '{"hidden_size": 128}' --texts demonstrations.jsonl --out DIR
"""

import argparse

import torch

from algos.training.config import ModelConfig, parse
from algos.training.models import build_model, load_policy, load_tokenizer, save_policy, train_tokenizer
from algos.training.record import load_settings, main_guard
from evaluation.settings import SettingsError, read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, help="base_model or student section of the study, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", nargs="+", required=True, help="rows whose prompt and answer train the tokenizer")
    parser.add_argument("--tokenizer", help="take this checkpoint's tokenizer instead of training one")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    config = parse(ModelConfig, load_settings(args.settings), "model")
    if config.path is not None:
        model, tokenizer = load_policy(config.path, torch.device("cpu")), load_tokenizer(config.path)
    else:
        if args.tokenizer:
            tokenizer = load_tokenizer(args.tokenizer)
        else:
            rows = [row for path in args.texts for row in read_jsonl(path)]
            if any(not isinstance(row["prompt"], str) for row in rows):
                raise SettingsError("prompt.chat needs a model with a chat template: give base_model.path.")
            tokenizer = train_tokenizer((text for row in rows for text in (row["prompt"], row["answer"])), config.vocab_size)
        model = build_model(config, tokenizer, args.seed)
    save_policy(model, tokenizer, args.out)


if __name__ == "__main__":
    main_guard(main)
