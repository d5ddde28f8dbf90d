"""What a stage does before its work: as little as possible, and the same as before."""

import subprocess
import sys
import time

import pytest
from tiny import TEXTS, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.tokens import encode_prompt, encode_prompts
from algos.training.stage.environment import start_up_seconds
from evaluation.statistics import student

IMPORTS = """
from algos.training.stage import record
record._start_quickly()
import algos.training.train, evaluation.evaluate
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM
AutoModelForCausalLM._model_mapping
import sys
print([name for name in ("sklearn", "scipy", "pandas", "mlflow", "datasets", "trl") if sys.modules.get(name)])
"""


def test_a_stage_imports_nothing_that_it_does_not_use():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
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


def test_a_library_that_needs_more_gets_it():
    code = """
from algos.training.stage import record
record._start_quickly(); record.show_all_packages()
import scipy, sklearn
"""
    subprocess.run([sys.executable, "-c", code], check=True)
