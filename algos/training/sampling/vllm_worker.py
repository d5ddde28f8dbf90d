"""Lets vLLM's worker take over weights and say which weights it has. Runs inside vLLM's process.

vLLM mixes Weights into its worker class (worker_extension_cls), in the trainer's process and in a server's alike.
"""

from typing import Any

import torch
from safetensors import safe_open

from algos.training.sampling.fingerprint import fingerprint


class Weights:
    """Methods of vLLM's worker, called through collective_rpc."""

    model_runner: Any  # the worker's own

    def take_over(self, named: list[tuple[str, torch.Tensor]]) -> None:
        """Copy the weights of the trainer's model, under its own names, into vLLM's."""
        self.model_runner.get_model().load_weights(named)

    def take_over_file(self, path: str) -> None:
        """take_over of a safetensors file, tensor by tensor."""
        with safe_open(path, framework="pt") as file:
            self.model_runner.get_model().load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def weights_fingerprint(self) -> dict[str, int]:
        return fingerprint(self.model_runner.get_model().named_parameters())


def keep_weights_plain() -> None:
    """On the CPU vLLM computes with packed copies of the weights, which neither loading nor reading reaches: switch
    them off."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _custom_ops._supports_onednn = False
        utils.check_cpu_sgl_kernel = lambda *args: False


keep_weights_plain()  # this module is imported before the worker loads its model
