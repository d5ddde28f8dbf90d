"""The model matrix: the published table is whole and without failures; a sample of it comes out again."""

import pandas as pd
import pytest

from algos.pieces.settings import SettingsError
from evaluation.matrix.__main__ import cell, failures, row, write
from evaluation.matrix.architectures import ARCHITECTURES
from evaluation.matrix.cells import STAGES, check_finite
from evaluation.pages import PROJECT

SAMPLE = ("evaluation", "sft", "rl", "rl with critic", "reward model", "distillation")


def test_the_published_table_has_every_model_and_stage_and_no_failure():
    table = pd.read_csv(PROJECT / "results" / "published" / "models" / "matrix.csv")
    assert list(table["model"]) == list(ARCHITECTURES) and list(table.columns[2:]) == list(STAGES)
    assert failures(table) == []


def test_a_model_that_works_and_one_that_is_refused_come_out_again():
    works = row("deepseek_v3", {stage: STAGES[stage] for stage in SAMPLE})
    assert works.pop("model") == "deepseek_v3" and works.pop("import") == "works"
    assert all(text.startswith("equal, ") for text in works.values()), works
    refused = row("mamba", STAGES)
    assert refused["import"].startswith("refused: it keeps a recurrent state")
    assert {refused[stage] for stage in STAGES} == {"refused at import"}


@pytest.mark.parametrize(
    "name, stage",
    [
        ("qwen2_moe", "TRL sft"),  # TRL's own default is a load-balancing loss
        ("gpt2", "TRL rl"),  # its positions are absolute, and TRL pads prompts on the left
        ("gpt2", "TRL distillation"),
    ],
)
def test_trl_computes_what_we_compute(name, stage):
    assert row(name, {stage: STAGES[stage]})[stage].startswith("equal, ")


def raising(error: Exception):
    def run(_) -> float:
        raise error

    return run


@pytest.mark.parametrize(
    "run, text",
    [
        (lambda _: 1e-6, "equal, 1e-06"),
        (lambda _: 0.5, "unequal, 5e-01"),
        (lambda _: float("nan"), "unequal, nan"),
        (raising(SettingsError("lora: no.")), "refused: lora: no."),
        (raising(KeyError("x")), "crashed: KeyError: 'x'"),
    ],
)
def test_a_cell_is_equal_or_refused_or_a_failure(run, text):
    assert cell(None, run) == text
    failed = failures(pd.DataFrame([{"model": "m", "import": "works", "rl": text}]))
    assert failed == ([] if text.startswith(("equal", "refused")) else [f"m, rl: {text}"])


def test_a_model_that_is_tried_again_replaces_its_row_alone(tmp_path):
    path = tmp_path / "matrix.csv"
    write([{"model": "qwen2", "import": "works", "rl": "unequal, nan"}], path)
    write([{"model": "llama", "import": "works", "rl": "equal, 0e+00"}], path)
    table = write([{"model": "qwen2", "import": "works", "rl": "equal, 1e-06"}], path)
    assert table.to_dict("records") == pd.read_csv(path).to_dict("records")
    assert table[["model", "rl"]].values.tolist() == [["llama", "equal, 0e+00"], ["qwen2", "equal, 1e-06"]]


def test_losses_that_are_not_finite_are_no_success():
    check_finite({"policy_loss": 0.1, "response_tokens_right": float("nan")})
    with pytest.raises(FloatingPointError, match="value_loss is nan"):
        check_finite({"value_loss": float("nan")})
