"""Stand-ins for the things that memory does not depend on: weights, texts, rewards, and the responses of a model."""

import copy
import json
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from algos.pieces.types import Rollouts
from algos.training.models.kv_cache import PreallocatedLayer, SharedOut
from algos.training.rewards.rewards import Rewards, Scored
from algos.training.sampling.engine import Sampling
from algos.training.sampling.engines import RatioCanary, TransformersEngine
from algos.training.sampling.sampler import _draw, sample
from evaluation.memory.live_tensors import LiveTensors

ROWS_AT_ONCE = 512  # of sample()
NEVER, AT_ONCE = -1, 0  # end-of-sequence tokens: one that no model draws, and the one that a weightless model draws


class Tokens:
    """A tokenizer without texts."""

    pad_token_id = 0

    def __init__(self, eos_token_id: int = NEVER):
        self.eos_token_id = eos_token_id

    def batch_decode(self, rows, **_) -> list[str]:
        return [""] * len(rows)


class Alternating:
    """Rewards 0 and 1 in turn, so that every group has both. A reward model is run, and its scores are not used."""

    def __init__(self, judge: Rewards):
        self.judge = judge

    def __call__(self, rollouts: Rollouts, texts: list[str], problems: list[dict]) -> Scored:
        learned = "reward_model" in self.judge.config.rewards
        ref_logprobs = self.judge.learned(rollouts)[1] if learned else None
        rewards = (torch.arange(len(texts)) % 2).float()
        return Scored(rewards, {"correctness": rewards}, ref_logprobs)


class NoCanary(RatioCanary):
    """Made-up responses have no probabilities to compare."""

    def check(self, *_) -> dict[str, float]:
        return {}


class MadeUp(TransformersEngine):
    """Gives random responses of the full length, without sampling them."""

    def __init__(self, vocabulary: int):
        super().__init__(Tokens())
        self.vocabulary = vocabulary

    def sample(self, policy, prompts, sampling: Sampling, generator) -> Rollouts:
        shape = (len(prompts) * sampling.group_size, sampling.max_response_tokens)
        ids = torch.randint(3, self.vocabulary, shape)
        mask, cut = torch.ones(shape, dtype=torch.bool), torch.ones(shape[0], dtype=torch.bool)
        zeros = torch.zeros(shape)
        return Rollouts(prompts, sampling.group_size, ids, mask, zeros, cut, zeros.clone())


class BothEnds(MadeUp):
    """Samples the first token, and the last one with a full cache; its responses are made up.

    prompts: all prompts of the rollout batch; the step may see a part of them.
    """

    def __init__(self, config, prompts: list[list[int]], live: LiveTensors):
        super().__init__(config.vocab_size)
        self.config, self.live, self.all_prompts = config.get_text_config(), live, prompts

    def sample(self, policy, prompts, sampling: Sampling, generator) -> Rollouts:
        at_once = self.all_prompts[: max(ROWS_AT_ONCE // sampling.group_size, 1)]
        size, most, temperature = sampling.group_size, sampling.max_response_tokens, sampling.temperature
        sample(policy, Tokens(AT_ONCE), at_once, size, most, temperature, generator)
        self.last_token(policy, len(at_once), len(at_once[0]), sampling)
        return super().sample(policy, prompts, sampling, generator)

    @torch.no_grad()
    def last_token(self, policy, prompts: int, tokens: int, sampling: Sampling) -> None:
        rows, most = prompts * sampling.group_size, sampling.max_response_tokens
        cache = self.full_cache(policy, prompts, tokens, sampling)
        kept = torch.zeros(3, rows, most)  # log-probabilities, entropies, uniform numbers
        uniforms = kept[0, :, 0].double() if sampling.temperature else None
        logits = torch.zeros(rows, self.config.vocab_size)
        ids, positions = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), tokens + most - 1)
        output = policy(input_ids=ids, position_ids=positions, past_key_values=cache.past, use_cache=True)
        logits = output.logits[:, -1].float()
        del output
        _draw(logits, sampling.temperature, uniforms)

    def full_cache(self, policy, prompts: int, tokens: int, sampling: Sampling) -> SharedOut:
        """The key-value cache before the last token, shared out to the groups as sample() does it."""
        from transformers import DynamicCache

        config, past = self.config, DynamicCache(config=self.config)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        with self.live.making("kv_cache"):
            for layer in range(config.num_hidden_layers):
                keys, values = (torch.zeros((prompts, heads, tokens, width), dtype=policy.dtype) for _ in range(2))
                past.update(keys, values, layer)
            cache = SharedOut(past, sampling.group_size, sampling.max_response_tokens)
        for full in cache.past.layers:
            if isinstance(full, PreallocatedLayer):
                full.length = tokens + sampling.max_response_tokens - 1
        return cache


@contextmanager
def models_from(config):
    """Meanwhile transformers makes every model from this config, with random weights.

    Gives the folder of a reward model, which has a head of its own.
    """
    import transformers

    def maker(auto):
        def from_pretrained(path, dtype=torch.float32, output_loading_info=False, **_):
            model = auto.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False).eval()
            return (model, {"missing_keys": []}) if output_loading_info else model

        return patch.object(auto, "from_pretrained", from_pretrained)

    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        width = config.get_text_config().hidden_size
        save_file({"weight": torch.zeros(1, width), "bias": torch.zeros(1)}, path / "head.safetensors")
        (path / "head.json").write_text(json.dumps({"head": "linear", "gain": 1.0, "offset": 0.0}), encoding="utf-8")
        stack.enter_context(maker(transformers.AutoModelForCausalLM))
        stack.enter_context(maker(transformers.AutoModel))
        stack.enter_context(patch.object(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config))
        yield path
