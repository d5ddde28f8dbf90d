"""Settings of vLLM."""

from dataclasses import dataclass

from algos.pieces.settings import one_of

VLLM_MODES = ("colocated", "server")
VLLM_TEMPERATURES = (0.01, 2.0)  # vLLM refuses or silently changes what is outside


@dataclass(frozen=True)
class VllmConfig:
    """Where vLLM runs; without effect on any other engine."""

    mode: str = (
        "colocated"  # in the trainer's process; server: the process that `algos.training.sampling.vllm_engine` starts
    )
    gpu_memory_utilization: float = 0.3  # colocated on CUDA: share of the GPU for vLLM's weights and key-value cache
    sleep: bool = True  # colocated on CUDA: both leave the GPU while the trainer computes
    server_url: str | None = None  # server: such as http://127.0.0.1:8000
    weights_folder: str | None = None  # server: where the policy is handed over, seen by both; null: a temporary folder

    def __post_init__(self):
        one_of(self.mode, VLLM_MODES, "mode")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}")
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError(
                f"server_url belongs to mode server and to it alone, got {self.mode} and {self.server_url}"
            )
        if self.mode != "server" and self.weights_folder is not None:
            raise ValueError(f"weights_folder belongs to mode server, got {self.weights_folder!r}; remove it")
        if self.server_url is not None and not self.server_url.startswith(("http://", "https://")):
            raise ValueError(f"server_url must begin with http:// or https://, got {self.server_url!r}")
