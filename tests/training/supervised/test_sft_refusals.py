"""What SFT refuses before it trains, by our trainer and by TRL's."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import save_policy
from algos.training.supervised.config import SupervisedConfig
from algos.training.supervised.sft import train
from evaluation.tasks.files import write_jsonl


@pytest.mark.parametrize("trainer", ["own", "trl"])
def test_an_example_longer_than_the_models_positions_is_refused(tmp_path, trainer):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, dtype=torch.float32)
    model.config.max_position_embeddings = 16
    save_policy(model, tokenizer, tmp_path / "start")
    rows = [{"prompt": "7+5", "question": "7+5", "answer": "=" * length} for length in (4, 40)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = from_dict(SupervisedConfig, {"seed": 0, "steps": 1, "batch_size": 1, "trainer": trainer, "device": "cpu"})
    message = r"the longest prompt and its response make \d+ tokens, but the model counts 16 positions"
    with pytest.raises(SettingsError, match=message):
        train(config, str(tmp_path / "start"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
