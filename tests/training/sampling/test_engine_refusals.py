"""Settings, models, servers and devices that an engine refuses; no vLLM is started."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from engines import DEVICE, EOS, PROMPTS, TOKENIZER, checkpoint_in

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from algos.training.models.checkpoints import load_policy
from algos.training.sampling import vllm_base, vllm_engine
from algos.training.sampling.config import VllmConfig
from algos.training.sampling.engine import Sampling, StaleWeights
from algos.training.sampling.engines import TransformersEngine, make_engine
from algos.training.sampling.vllm_engine import ColocatedEngine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return checkpoint_in(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(checkpoint):
    return load_policy(checkpoint, DEVICE)


def test_sleep_frees_the_gpu_between_phases_and_weights_wake_before_they_are_loaded():
    """The order alone, on a stand-in: sleeping itself needs a GPU."""
    calls = []

    class Llm:
        def wake_up(self, tags):
            calls.append(("wake", *sorted(tags)))

        def sleep(self, level):
            calls.append(("sleep", level))

        def collective_rpc(self, method, args=()):
            calls.append((method,))
            return [{}]

        def reset_prefix_cache(self):
            calls.append(("forget",))
            return True

    engine = ColocatedEngine.__new__(ColocatedEngine)
    engine.llm, engine.sleeps, engine.asleep, engine.tokenizer = Llm(), True, set(), TOKENIZER
    engine.generate = lambda prompts, requests: calls.append(("generate",)) or [[([EOS], [-1.0])] for _ in prompts]
    policy = torch.nn.Module()
    policy.device = torch.device("cpu")
    for _ in range(2):
        engine.sample(policy, [[5]], Sampling(1, 4), torch.Generator())
    engine.synchronize(policy)
    engine.sample(policy, [[5]], Sampling(1, 4), torch.Generator())
    sampling = [("weights_fingerprint",), ("forget",), ("generate",), ("sleep", 1)]
    assert calls == [
        *sampling,
        ("wake", "kv_cache", "weights"),
        *sampling,
        ("wake", "weights"),
        ("take_over",),
        ("weights_fingerprint",),
        ("wake", "kv_cache"),
        *sampling,
    ]


def refusal(**settings) -> str:
    with pytest.raises(SettingsError) as refused:
        from_dict(RunConfig, {"algorithm": "grpo", "seed": 0, **settings}, "stages.x")
    return str(refused.value)


def test_engine_settings_are_refused_by_name(monkeypatch):
    assert "'vlm' is unknown. Did you mean 'vllm'?" in refusal(engine="vlm")
    assert refusal(engine="vllm", trainer="trl").endswith("in its own way. Write engine: transformers.")
    assert "0.01..2.0 only, got 3.0" in refusal(engine="vllm", temperature=3.0)
    assert "'serve' is unknown. Did you mean 'server'?" in refusal(vllm={"mode": "serve"})
    assert "server_url belongs to mode server" in refusal(vllm={"mode": "server"})
    assert "server_url belongs to mode server" in refusal(vllm={"server_url": "http://x"})
    assert "weights_folder belongs to mode server, got '/x'" in refusal(vllm={"weights_folder": "/x"})
    assert "got '127.0.0.1:8000'" in refusal(vllm={"mode": "server", "server_url": "127.0.0.1:8000"})
    assert "gpu_memory_utilization must be at most 1, got 30" in refusal(vllm={"gpu_memory_utilization": 30})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs vLLM; pip install -e '.[vllm]'" in refusal(engine="vllm")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_more_tokens_than_the_model_has_positions_are_refused_before_an_engine_starts(policy, checkpoint, engine):
    config = RunConfig("grpo", 0, engine=engine, max_response_tokens=500)
    message = r"the longest prompt and max_response_tokens = 500 make 540 tokens, but the model counts 512 positions"
    with pytest.raises(SettingsError, match=message):
        make_engine(config, TOKENIZER, policy, checkpoint, PROMPTS)


def test_a_server_that_does_not_answer_is_refused(policy, checkpoint):
    unreachable = VllmConfig("server", server_url="http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"no vLLM answers at http://127.0.0.1:9 .*start it with"):
        make_engine(RunConfig("grpo", 0, engine="vllm", vllm=unreachable), TOKENIZER, policy, checkpoint, PROMPTS)


def test_a_model_that_vllm_holds_otherwise_is_refused_at_the_start(policy, checkpoint, monkeypatch):
    class Other(TransformersEngine):
        def synchronize(self, policy):
            raise StaleWeights("the engine's weights are not the policy's: layer 0")

    monkeypatch.setattr(vllm_engine, "make", lambda *args: Other(TOKENIZER))
    with pytest.raises(SettingsError, match=r"does not hold this model as it is .*layer 0.*use transformers"):
        make_engine(RunConfig("grpo", 0, engine="vllm"), TOKENIZER, policy, checkpoint, PROMPTS)


def test_malformed_answers_of_vllm_stop_the_run():
    for responses in ([([5, EOS], [-1.0, -2.0])], [([5], [-1.0]), ([5], [])], [([5], [-1.0]), ([], [])]):
        with pytest.raises(RuntimeError, match="too few responses"):
            vllm_base.as_rollouts([[5]], Sampling(2, 4), responses, TOKENIZER, torch.device("cpu"))


def test_trl_does_not_find_vllm():
    """Else importing its trainers fails beside vLLM 0.31."""
    from trl import GRPOTrainer
    from trl.import_utils import is_vllm_available

    assert GRPOTrainer and not is_vllm_available() and importlib.util.find_spec("vllm")


def test_a_vllm_for_another_device_than_the_policys_is_refused():
    engine = ColocatedEngine.__new__(ColocatedEngine)
    engine.cuda = DEVICE.type != "cuda"
    policy = SimpleNamespace(device=torch.device("cuda:0" if engine.cuda else "cpu"))
    with pytest.raises(
        SettingsError, match=f"installed vLLM is for {DEVICE.type}, but the policy is on {policy.device}"
    ):
        engine._start(VllmConfig(), policy, "", 8)
