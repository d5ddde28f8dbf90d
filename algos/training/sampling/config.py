"""The engine that samples, and the settings of vLLM."""

import importlib.util
from typing import Annotated, Literal

from pydantic import Field

from algos.pieces.settings import SettingsError, settings

EngineName = Literal["transformers", "vllm"]
VLLM_TEMPERATURES = (0.01, 2.0)  # vLLM refuses or silently changes what is outside


@settings
class VllmConfig:
    """Where vLLM runs; without effect on any other engine."""

    mode: Literal["colocated", "server"] = "colocated"  # in the trainer's process, or in that of sampling.vllm_engine
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.3  # share for vLLM's weights and cache, colocated
    sleep: bool = True  # colocated on CUDA: both leave the GPU while the trainer computes
    server_url: str | None = None  # server: such as http://127.0.0.1:8000
    weights_folder: str | None = None  # server: where the policy is handed over, seen by both; null: a temporary folder

    def __post_init__(self):
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError(
                f"server_url belongs to mode server and to it alone, got {self.mode} and {self.server_url}"
            )
        if self.mode != "server" and self.weights_folder is not None:
            raise ValueError(f"weights_folder belongs to mode server, got {self.weights_folder!r}; remove it")
        if self.server_url is not None and not self.server_url.startswith(("http://", "https://")):
            raise ValueError(f"server_url must begin with http:// or https://, got {self.server_url!r}")


def check_engine(engine: EngineName, temperature: float) -> None:
    """Raise SettingsError for vLLM where it is not installed, or at a temperature that it would change."""
    if engine != "vllm":
        return
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError("engine: vllm needs vLLM; pip install -e '.[vllm]', or write engine: transformers.")
    low, high = VLLM_TEMPERATURES
    if not low <= temperature <= high:
        raise SettingsError(f"engine: vllm samples at temperatures in {low}..{high} only, got {temperature}.")
