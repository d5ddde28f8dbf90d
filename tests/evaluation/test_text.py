"""The loss on a text beside the task, and the scores of a model before any training."""

import json

import pandas as pd
import pytest
import torch
from synthetic import rl, stage, study, write_results
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import save_policy
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.pages import nats
from evaluation.report import write
from evaluation.text import paragraphs, text_loss

PROBLEMS = [{"id": "test/0", "prompt": "Question: 1+1\nAnswer:\n", "question": "?", "answer": "#### 2"}]


def test_the_loss_of_a_text_is_the_mean_of_its_tokens():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    wanted = []
    for text in ("7+5=12", "Mia has 7 apples."):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        wanted.append(model(input_ids=ids, labels=ids).loss.item())
    assert text_loss(model, tokenizer, ["7+5=12", "Mia has 7 apples."]) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(SettingsError, match="'7' is one token"):
        text_loss(model, tokenizer, ["7"])


def test_blank_lines_divide_paragraphs_and_a_file_must_have_some(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one\ntwo\n\n\n three\n\n", encoding="utf-8")
    assert paragraphs(file) == ["one\ntwo", "three"]
    file.write_bytes(b"\n \n")
    with pytest.raises(SettingsError, match=r"text.txt' has no text"):
        paragraphs(str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"text.txt' cannot be read"):
        paragraphs(str(file))
    with pytest.raises(
        ValueError, match=r"text must be a file, such as evaluation/english.txt; there is no 'absent.txt'"
    ):
        EvaluationConfig(text="absent.txt")


def test_an_evaluation_with_a_text_scores_its_paragraphs(tmp_path):
    tokenizer = tiny_tokenizer()
    save_policy(tiny_model(tokenizer, 0, torch.float32), tokenizer, tmp_path / "base" / "checkpoint")
    config = EvaluationConfig(samples=2, max_response_tokens=4, device="cpu", text="evaluation/english.txt")
    evaluate(tmp_path / "base", PROBLEMS, config, tmp_path / "out", 1)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    losses = scores["per_problem"]["text_loss"]
    assert len(losses) == 24 and scores["overall"]["text_loss"] == pytest.approx(sum(losses) / 24)


def test_a_loaded_model_is_a_row_and_the_start_of_what_begins_with_it(tmp_path):
    base = {**stage("model", None, seeds=[7], score=0.1), "edges": {}, "trainer": None}
    made = write_results(tmp_path, study(base=base, grpo=rl("base", score=0.9)))
    for number, file in enumerate(sorted(tmp_path.rglob("scores.json"))):  # models/base is the first
        scores = json.loads(file.read_text())
        scores["per_problem"]["text_loss"] = [2.0 + number, 4.0 + number]
        right = [0.25 * number] * 4  # a gain of 25, 50 and 75 points of the three seeds
        scores["per_problem"] |= dict.fromkeys(("other_mean@2", "other_greedy", "pass@4", "mean@4"), right)
        file.write_text(json.dumps(scores))
    write(tmp_path, made, tmp_path / "report")
    rows = pd.read_csv(tmp_path / "report" / "comparison.csv").set_index("stage")
    assert list(rows.index) == ["base", "grpo"] and rows.loc["grpo", "against_start"] == "higher"
    assert rows.loc["base", "text_loss"] == 3.0
    assert rows.loc["grpo", "text_loss_minus_start"] == pytest.approx(2.0)  # 1, 2 and 3 more
    for name in ("other_mean@2", "other_greedy", "pass@4"):
        assert rows.loc["grpo", name] == rows.loc["grpo", f"{name}_minus_start"] == pytest.approx(0.5)
        assert 0 < rows.loc["grpo", f"{name}_low"] < 0.5 and pd.isna(rows.loc["base", f"{name}_minus_start"])
    assert pd.isna(rows.loc["base", "train_seconds"]) and rows.loc["grpo", "train_seconds"] > 0
    assert nats(rows.loc["base"], "text_loss").startswith("3.000 [")
    # changes of 1, 2 and 3 nats, the same in both paragraphs: s_seed / sqrt(3) = 0.577, times t(2) = 4.303
    assert nats(rows.loc["grpo"], "text_loss_minus_start") == "+2.000 [-0.484, +4.484]"
    assert "one seed" not in (tmp_path / "report" / "report.html").read_text()  # a loaded model has no seeds
    assert "<td>base</td>" in (tmp_path / "report" / "report.html").read_text()
