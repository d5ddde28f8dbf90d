"""The benchmark of a loaded model, and of the engines that sample it."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.tokens import encode_prompts, load_tokenizer
from algos.training.sampling.engines import TransformersEngine
from algos.training.sampling.sampler import sample
from evaluation.bench import parts, sampling
from evaluation.tasks.files import read_jsonl


def figures(rows) -> dict:
    return {row["quantity"]: row["value"] for row in rows}


@pytest.fixture
def loaded(tmp_path):
    """A benchmark of a tiny model in a folder, with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    save_policy(tiny_model(tokenizer, 0, torch.float32), tokenizer, tmp_path / "model")
    folder = tmp_path / "scratch"
    folder.mkdir()
    bench = parts.Bench(folder, steps=1, device_name="cpu", toy=True)
    bench.loaded, bench.model = True, {"path": str(tmp_path / "model")}
    bench.prompt = {"chat": True, "template": "Question: {question}"}
    bench.run = {**bench.run, "max_response_tokens": 6}
    return bench


def test_a_loaded_model_is_measured_with_its_own_weights_and_template(loaded):
    workload = loaded.workload(problems=4)
    tokenizer, policy = load_tokenizer(workload.policy), load_policy(workload.policy, torch.device("cpu"))
    prompt = read_jsonl(workload.prompts)[0]["prompt"]
    assert prompt[0]["content"].startswith("Question: ")
    rollouts = sample(policy, tokenizer, encode_prompts(tokenizer, [prompt]), 8, 12, 1.0, torch.Generator())
    assert rollouts.truncated.all() and rollouts.response_tokens == 8 * 12  # end-of-sequence is no token of the model
    assert torch.equal(policy.lm_head.weight, tiny_model(tiny_tokenizer(), 0, torch.float32).lm_head.weight)
    assert workload.shape.hidden_size == 16 and workload.shape.layers == 2
    with pytest.raises(SettingsError, match="a loaded model has one shape"):
        loaded.workload(hidden_size=32)


def test_a_step_of_a_loaded_model_beside_trl(loaded):
    assert {"ratio", "step_seconds", "update_mfu"} <= set(figures(parts.against_trl(loaded, "grpo")))


@pytest.mark.parametrize("installed", [None, "vllm"])
def test_engines_take_turns_on_the_same_problems(loaded, monkeypatch, installed):
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(  # vLLM takes twenty seconds to start; test_vllm_stages.py samples with it
        sampling, "opened", lambda config, policy, tokenizer, *_: TransformersEngine(tokenizer)
    )
    rows = list(sampling.engines(loaded))
    sides = ["generate", "transformers", *([installed] if installed else [])]
    rates = [row["case"].rpartition(", ")[2] for row in rows if row["quantity"] == "tokens_per_second"]
    assert rates == sides and [row["quantity"] for row in rows].count("ratio") == len(sides) - 1
    assert {"correct", "correct_flexible", "format"} <= {row["quantity"] for row in rows}


def test_generate_ends_a_response_with_its_first_end_token(loaded):
    workload = loaded.workload(length=3, problems=4)
    tokenizer, policy = load_tokenizer(workload.policy), load_policy(workload.policy, torch.device("cpu"))
    tokenizer.end_ids = [tokenizer.eos_token_id, *range(3, 60)]  # about half of all tokens end a response
    responses = sampling.generated(policy, tokenizer, [[5, 6], [7]], 8, 12)
    assert len(responses) == 16 and 1 < sum(map(len, responses)) < 16 * 12
    for ids in responses:
        assert not set(ids[:-1]) & set(tokenizer.end_ids)
        assert ids[-1] in tokenizer.end_ids or len(ids) == 12
