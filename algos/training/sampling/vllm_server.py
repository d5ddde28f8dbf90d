"""vLLM as a server on other GPUs: requests over HTTP, weights through a safetensors file."""

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import save_file

from algos.pieces.settings import SettingsError
from algos.training.sampling.config import VllmConfig
from algos.training.sampling.vllm_base import VllmEngine, weights

SERVER_SECONDS = 3600  # a server that takes longer to answer is taken for dead
REQUESTS_AT_ONCE = 64  # the server itself decides what it computes together
LARGEST_REQUEST = 64  # responses; a server refuses more than it computes at once, 128 on the CPU


class ServerEngine(VllmEngine):
    """vLLM as a server, which the command of vllm_engine.py starts.

    Requests run together, so rounding may differ from run to run, and seldom a response differs with it.
    """

    def __init__(self, config: VllmConfig, tokenizer, max_tokens: int):
        super().__init__(tokenizer)
        assert config.server_url is not None  # the settings ask for it in mode server
        self.url = config.server_url.rstrip("/")
        self.temporary: str | None = None
        folder = config.weights_folder
        if folder is None:
            folder = self.temporary = tempfile.mkdtemp(prefix="weights-")
        self.folder = Path(folder)
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
