"""Preference pairs of the user's own: checked row by row, grouped by prompt, split into train and held_out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import ScalarModel
from algos.training.models.packing import Layout
from algos.training.rewards.config import PreferenceConfig
from algos.training.rewards.preferences import read_rows, rows_of_pairs
from algos.training.rewards.reward_model import encode_rows, measure, score_examples
from evaluation.tasks.files import read_jsonl, write_jsonl

CPU = torch.device("cpu")
GOOD = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}


def pairs_file(folder: Path, *rows: dict) -> str:
    write_jsonl(folder / "pairs.jsonl", rows)
    return str(folder / "pairs.jsonl")


def test_pairs_of_one_prompt_become_one_row(tmp_path):
    path = pairs_file(tmp_path, GOOD, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, {**GOOD, "rejected": "4"})
    first, second = rows_of_pairs(path)
    assert (first["prompt"], first["responses"], first["pairs"]) == ("1+1?", ["2", "3", "4"], [[0, 1], [0, 2]])
    assert (second["id"], second["responses"], second["pairs"]) == ("pairs/1", ["4", "5"], [[0, 1]])


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"prompt": "1+1?", "chosen": "2"}, "row 2: 'rejected' must be a text that is not empty, got None"),
        ({**GOOD, "chosen": 2}, "row 2: 'chosen' must be a text"),
        ({**GOOD, "prompt": ""}, "row 2: 'prompt' must be a text or a list of chat messages, got ''"),
        ({**GOOD, "prompt": ["1+1?"]}, "row 2: 'prompt' must be"),
        ({**GOOD, "rejected": "2"}, "row 2: 'chosen' and 'rejected' are the same text"),
    ],
)
def test_a_bad_pair_is_refused_by_row(tmp_path, bad, message):
    with pytest.raises(SettingsError, match=message):
        rows_of_pairs(pairs_file(tmp_path, GOOD, bad))


def test_too_few_prompts_to_hold_one_out_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"pairs.jsonl has 1 different prompts; held_out_share 0.25"):
        read_rows(pairs_file(tmp_path, GOOD), PreferenceConfig(seed=0))


def test_the_command_splits_a_file_of_pairs_by_prompt(tmp_path):
    path = pairs_file(tmp_path, *({**GOOD, "prompt": f"1+{i}?"} for i in range(8)))
    command = [sys.executable, "-m", "algos.training.rewards.preferences", "--settings", '{"seed": 0}']
    command += ["--pairs", path, "--out", str(tmp_path / "out"), "--name", "mine/seed0", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    train, held_out = (read_jsonl(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "held_out"))
    assert len(train) == 6 and len(held_out) == 2 and "correct" not in train[0]
    assert {row["prompt"] for row in train + held_out} == {f"1+{i}?" for i in range(8)}
    assert [row["prompt"] for row in held_out] != ["1+0?", "1+1?"]  # drawn from the whole file
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["name"], record["status"]) == ("mine/seed0", "finished")


def test_a_reward_model_is_measured_against_the_users_pairs_alone():
    tokenizer = tiny_tokenizer()
    model = ScalarModel(tiny_model(tokenizer, dtype=torch.float32).base_model, "linear", 0.5)
    rows = [{"prompt": prompt, "responses": ["2", "3"]} for prompt in ("1+1?", "1-1=")]
    encoded, layout = encode_rows(rows, tokenizer), Layout(share_prompts=False)
    (low, high), other = (
        score_examples(model, examples, tokenizer.pad_token_id, CPU, layout).argsort().tolist() for examples in encoded
    )
    rows[0]["pairs"], rows[1]["pairs"] = [[high, low]], [other, other, other[::-1]]
    metrics = measure(model, rows, encoded, tokenizer.pad_token_id, CPU, layout)
    assert metrics["pair_accuracy_rater"] == pytest.approx((1 + 1 / 3) / 2) and "pair_accuracy_gold" not in metrics
    assert (metrics["held_out_prompts"], metrics["held_out_pairs"]) == (2, 4)


def test_pairs_are_read_from_jsonl_alone(tmp_path):
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingsError, match=r"pairs.parquet: pairs are read from a JSONL file"):
        rows_of_pairs(str(tmp_path / "pairs.parquet"))
