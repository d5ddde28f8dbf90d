"""What a stage does before its work: as little as possible, and the same as before."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import TEXTS, tiny_tokenizer

from algos.packages import is_a_stage
from algos.pieces.settings import SettingsError
from algos.training.models.tokens import encode_prompt, encode_prompts
from algos.training.stage.environment import start_up_seconds
from evaluation.statistics import student

PROJECT = Path(__file__).parents[3]
MODULES = {".".join(p.relative_to(PROJECT).with_suffix("").parts): p for p in PROJECT.glob("*/**/*.py")}
STAGES = [name for name, path in MODULES.items() if "\n    main_guard(main)\n" in path.read_text(encoding="utf-8")]
UNUSED = {"sklearn", "scipy", "pandas", "mlflow", "datasets", "trl"}


@pytest.mark.parametrize("stage", ["algos.training.train", "evaluation.evaluate"])
def test_a_stage_imports_nothing_that_it_does_not_use(stage):
    """By its real command, as a module of the stage's may import transformers before its main begins."""
    command = [sys.executable, "-X", "importtime", "-m", stage, "--help"]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stderr
    imported = set(re.findall(r"\| +(\w+)$", said, re.M))
    assert "transformers" in imported and not imported & UNUSED


def test_a_study_is_planned_without_transformers():
    """Every `snakemake` begins with these imports; its own process builds no model."""
    code = "import sys, pipelines.study, pipelines.digests, pipelines.workflow.resources"
    code += "; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "['torch']\n"


def test_every_stage_is_known_as_one():
    assert len(STAGES) == 10
    assert [name for name in STAGES if not is_a_stage(["python", "-X", "dev", "-m", name, "--out", "x"])] == []
    others = ("algos.training.stage.mirror", "algos.training.sampling.vllm_engine", "evaluation.report", "pytest")
    assert not any(is_a_stage(["python", "-m", name]) for name in others)
    assert not is_a_stage(["python", "-m"]) and not is_a_stage(["python", "a.py"])


def test_garbage_is_collected_once_a_stage_has_imported():
    code = "import gc; from algos.packages import start_quickly; start_quickly(); off = not gc.isenabled()"
    code += "; from algos.training.stage.record import main_guard"
    code += "; main_guard(lambda: print(off, gc.isenabled(), gc.get_freeze_count() > 10_000))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"


def test_what_models_import_when_they_are_made_is_hidden_too():
    code = (
        "import algos.packages as p; p.start_quickly(); from transformers import AutoModelForCausalLM, Qwen2ForCausalLM"
    )
    code += "; AutoModelForCausalLM._model_mapping; import sys; print([n for n in sys.argv if sys.modules.get(n)])"
    done = subprocess.run([sys.executable, "-c", code, *UNUSED], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_prompts_are_encoded_together_as_one_by_one():
    tokenizer = tiny_tokenizer()
    assert encode_prompts(tokenizer, TEXTS) == [encode_prompt(tokenizer, text) for text in TEXTS]
    assert encode_prompts(tokenizer, []) == []
    longest = max(len(encode_prompt(tokenizer, text)) for text in TEXTS)
    assert encode_prompts(tokenizer, TEXTS, longest) == encode_prompts(tokenizer, TEXTS)
    with pytest.raises(SettingsError, match=f"has {longest} tokens, more than max_prompt_tokens = {longest - 1}"):
        encode_prompts(tokenizer, TEXTS, longest - 1)


def test_an_end_that_the_tokenizer_appends_is_cut_off():
    tokenizer = tiny_tokenizer()
    text = TEXTS[0] + tokenizer.eos_token
    assert encode_prompts(tokenizer, [text, TEXTS[1]]) == [encode_prompt(tokenizer, t) for t in (text, TEXTS[1])]
    assert tokenizer.eos_token_id not in encode_prompts(tokenizer, [text])[0]


def test_students_quantile_is_that_of_the_tables():
    for freedom, expected in ((1, 12.7062), (2, 4.30265), (10.5, 2.21400), (100, 1.98397)):
        assert student(freedom) == pytest.approx(expected, rel=1e-4)


def test_a_record_knows_how_long_its_process_took_to_start():
    now = time.time()
    assert start_up_seconds(now) >= start_up_seconds(now - 1) + 0.9 > 0


def test_a_users_own_code_may_import_what_stages_do_not_use(tmp_path):
    (tmp_path / "mine.py").write_text("import scipy.stats, sklearn.metrics\ndef reward(): pass\n")
    code = "from algos import own_code, packages; packages.start_quickly()"
    code += "; own_code.from_file('mine.py:reward', 'reward', object, 'rewards')"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
