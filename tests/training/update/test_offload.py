"""Offloading: every phase has the parts that it needs on the device, and the numbers stay the same."""

import json

import pytest
import torch
from lean import CPU, TOKENIZER, folder_of, loop_in, run_config
from tiny import tiny_model

from algos.training.assemble import Checkpoints, make_learner
from algos.training.config import LoraSettings
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.stage.config import OptimizerConfig
from algos.training.train import train
from algos.training.update import offload
from algos.training.update.needs import needed_parts, ratio_denominator, sampler_gives_old_logprobs
from evaluation.tasks.files import write_jsonl


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


@pytest.fixture
def loop(tmp_path):
    return loop_in(tmp_path)


class Absent(offload.OffloadingPhases):
    """Tensors that are away are NaN where they were: whoever uses one gets NaN."""

    sent: list[int]

    def left_behind(self, tensor, copy):
        self.sent.append(tensor.numel())
        return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.zeros_like(tensor)


PROBLEMS = [{"id": f"train/{i}", "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i + 1}"} for i in range(4)]
ALL = ("optimizer", "critic", "reference", "reward_model")


def both(
    folder, monkeypatch, algorithm: str, settings: dict, offloaded: tuple[str, ...] = ALL, **changes
) -> list[dict]:
    """The final weights of a run, and of the same run in which parts that are away are NaN; and the second's record."""
    write_jsonl(folder / "train.jsonl", PROBLEMS)
    found = []
    for names in ((), offloaded):
        options = {"rewards": {"reward_model": 1.0}, "optimizer": OptimizerConfig(learning_rate=1e-2), **changes}
        config = run_config(algorithm, settings, steps=3, max_response_tokens=8, offload=names, **options)
        if names:
            Absent.sent = []
            monkeypatch.setattr(offload, "worthwhile", lambda device: True)
            monkeypatch.setattr(offload, "OffloadingPhases", Absent)
        paths = (str(folder / "policy"), str(folder / "train.jsonl"), str(folder / "out"))
        train(config, *paths, reward_model_path=str(folder / "reward_model"))
        found.append(load_policy(folder / "out" / "checkpoint", CPU).state_dict())
    return [*found, json.loads((folder / "out" / "run.json").read_text())]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(second[name], first[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloading_changes_nothing_and_every_phase_has_what_it_needs(folder, monkeypatch, dtype):
    save_policy(tiny_model(TOKENIZER, 3, torch.float32), TOKENIZER, folder / "policy")  # not the reward model's
    plain, offloaded, record = both(folder, monkeypatch, "ppo", {"kl_coef": 0.1}, dtype=dtype)
    assert offload.NO_EFFECT not in record["warnings"] and record["phase_seconds"]["offload"] > 0
    assert len(Absent.sent) > 100 and same(plain, offloaded)


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"lora": LoraSettings(rank=2)}], ids=str)
def test_a_behavior_policy_is_there_where_it_samples(folder, monkeypatch, changes):
    """In bfloat16 it gives old log-probabilities too; with adapters the weights below are the policy's and stay."""
    offloaded = ("optimizer", "behavior")
    plain, away, record = both(folder, monkeypatch, "grpo", {}, offloaded, sync_every=2, **changes)
    assert Absent.sent and same(plain, away) and record["memory"]["behavior"]["weights"] > 0


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_full_kl_has_the_reference_where_it_is_computed(folder, monkeypatch, kl_in):
    settings = {"kl_coef": 0.1, "kl_estimator": "full", "kl_in": kl_in}
    save_policy(tiny_model(TOKENIZER, 3, torch.float32), TOKENIZER, folder / "policy")
    plain, offloaded, _ = both(folder, monkeypatch, "ppo", settings)
    assert len(Absent.sent) > 100 and same(plain, offloaded)


@pytest.mark.parametrize("offloaded", [("reference",), ALL])
@pytest.mark.parametrize("full", [False, True])
def test_a_reward_model_on_the_references_backbone_has_it_while_scoring(folder, monkeypatch, offloaded, full):
    """The backbone of the reward model is the policy's start, as after freeze_backbone: it runs on the reference."""
    settings = {"kl_coef": 0.1, **({"kl_estimator": "full", "kl_in": "reward"} if full else {})}
    plain, away, record = both(folder, monkeypatch, "ppo", settings, offloaded)
    assert record["memory"]["reward_model"]["parameters"] == 17  # the head alone
    assert Absent.sent and same(plain, away)


def test_where_each_phase_wants_what(folder):
    config = run_config("ppo", {"kl_coef": 0.1}, offload=("optimizer", "critic", "reference", "reward_model"))
    learner, _ = make_learner(config, Checkpoints(str(folder / "policy")), CPU)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(offload, "worthwhile", lambda device: True)
    monkey.setattr(offload, "OffloadingPhases", Absent)
    Absent.sent = []
    phases = offload.make_phases(config, CPU, learner, None)
    monkey.undo()

    def present() -> set[str]:
        found = set()
        for name, model in (("critic", learner.critic), ("reference", learner.reference)):
            if not next(model.parameters()).isnan().any():
                found.add(name)
        return found

    wanted = {
        "generate": set(),
        "synchronize": set(),
        "reward": set(),
        "logprobs": {"critic", "reference"},
        "update": {"critic"},
    }
    for phase, names in wanted.items():
        with phases(phase):
            assert present() == names
    with phases("anything else"):
        assert present() == {"critic", "reference"}


def test_which_phase_needs_which_parts():
    """A head on the reference gives its log-probabilities while scoring; only a full KL in the reward asks again."""
    plain = run_config("ppo", {"kl_coef": 0.1})
    in_loss = run_config("ppo", {"kl_coef": 0.1, "kl_estimator": "full", "kl_in": "loss"})
    in_reward = run_config("ppo", {"kl_coef": 0.1, "kl_estimator": "full", "kl_in": "reward"})

    def phases_with_reference(config, head: bool) -> set[str]:
        return {phase for phase, parts in needed_parts(config, head).items() if "reference" in parts}

    assert phases_with_reference(plain, False) == {"logprobs"}
    assert phases_with_reference(plain, True) == {"reward"}
    assert phases_with_reference(in_loss, False) == {"logprobs", "update"}
    assert phases_with_reference(in_loss, True) == {"reward", "update"}
    assert phases_with_reference(in_reward, False) == {"logprobs"}
    assert phases_with_reference(in_reward, True) == {"reward", "logprobs"}
    stale = needed_parts(run_config("grpo", sync_every=2))
    assert {phase for phase in stale if "behavior" in stale[phase]} == {"generate", "logprobs", "synchronize"}
    assert needed_parts(plain)["update"] == {"optimizer", "critic"} and needed_parts(plain)["generate"] == set()


def test_the_samplers_log_probabilities_are_the_old_ones_where_the_trainers_model_samples_in_float32():
    assert sampler_gives_old_logprobs(run_config("ppo"))
    full = {"kl_coef": 0.1, "kl_estimator": "full", "kl_in": "reward"}
    vllm = run_config("ppo")
    object.__setattr__(vllm, "engine", "vllm")  # vLLM need not be installed here
    assert ratio_denominator(run_config("ppo")) == {"ratio_denominator": "reported by the sampler"}
    for other in (run_config("ppo", full), run_config(dtype="bfloat16"), run_config(old_logprobs="recomputed"), vllm):
        assert not sampler_gives_old_logprobs(other)
        assert ratio_denominator(other) == {"ratio_denominator": "recomputed by the trainer"}
    assert ratio_denominator(run_config("reinforce")) == {}


def test_on_the_cpu_offloading_has_no_effect_and_says_so(loop, capsys):
    record, _ = loop("grpo", steps=1, offload=("optimizer",))
    assert "warning: offload has no effect on the CPU" in capsys.readouterr().out
    assert record["warnings"][-1] == "offload has no effect on the CPU, where everything is already."
    assert "offload" not in record["phase_seconds"]
