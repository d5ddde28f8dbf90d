"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): from a folder with train.jsonl and test.jsonl, or from the hub.

The test split is the official test split. The dev split is held out of the official train split, so that nothing is
ever tuned on test. Demonstrations are the train split's own solutions without their calculator annotations `<<a*b=c>>`.
"""

import random
import re
from pathlib import Path

from algos.pieces.settings import SettingsError, settings
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.rows import check_rows, distinct

CALCULATOR = re.compile(r"<<[^<>]*>>")


@settings
class GSM8KConfig:
    path: str | None = None  # folder with train.jsonl and test.jsonl; null: download from the hub
    hub_id: str = "openai/gsm8k"  # dataset on the hub, used when path is null
    hub_config: str = "main"
    hub_revision: str | None = None  # a commit of the dataset, so that the same rows are loaded next year

    def __post_init__(self):
        for file in self.files:
            if not file.is_file():
                raise SettingsError(
                    f"path: {file} does not exist; it must be a folder with train.jsonl and test.jsonl, one object "
                    "with question and answer a line."
                )

    @property
    def files(self) -> list[Path]:
        """The user's own files."""
        return [] if self.path is None else [Path(self.path) / f"{split}.jsonl" for split in ("train", "test")]


def _rows(config: GSM8KConfig, split: str) -> list[dict]:
    if config.path is not None:
        path = Path(config.path) / f"{split}.jsonl"
        rows = read_jsonl(path)
        check_rows(rows, str(path))  # before shuffling, so that the message names the line
        return distinct(rows, str(path))
    from datasets import load_dataset  # a slow import, which only downloads need

    rows = load_dataset(config.hub_id, config.hub_config, split=split, revision=config.hub_revision)
    return distinct([dict(row) for row in rows], f"{config.hub_id}, {split}")


def _clean(row: dict) -> dict:
    answer = row.get("answer")
    return {
        "question": row.get("question"),
        "answer": CALCULATOR.sub("", answer) if isinstance(answer, str) else answer,
    }


def load(config: GSM8KConfig, sizes: dict[str, int | None], seed: int) -> dict[str, list[dict]]:
    """Splits train, dev, test and demonstrations; a size of null takes all, 10 % of the train file going to dev."""
    pool = [_clean(row) for row in _rows(config, "train")]
    test = [_clean(row) for row in _rows(config, "test")]
    random.Random(seed).shuffle(pool)
    dev_size = sizes["dev"] if sizes["dev"] is not None else len(pool) // 10
    wanted = {
        "dev": (dev_size, len(pool)),
        "test": (sizes["test"], len(test)),
        "train": (sizes["train"], len(pool) - dev_size),
        "demonstrations": (sizes["demonstrations"], len(pool) - dev_size),
    }
    for split, (size, available) in wanted.items():
        if size is not None and size > available:
            raise ValueError(f"{split} asks for {size} problems, the data has {available}")
    train = pool[dev_size:][: sizes["train"]]
    return {
        "train": train,
        "dev": pool[:dev_size],
        "test": test[: sizes["test"]],
        "demonstrations": train[: sizes["demonstrations"]],
    }
