"""Stand-ins for the things that memory does not depend on: weights, texts, rewards, and the responses of a model."""

import copy
import json
import tempfile
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from transformers.cache_utils import DynamicLayer

from algos.pieces.types import Rollouts
from algos.training.models.kv_cache import SharedOut
from algos.training.rewards.rewards import Rewards, Scored
from algos.training.sampling.engine import Sampling
from algos.training.sampling.engines import RatioCanary, TransformersEngine
from algos.training.sampling.sampler import _draw, _positions, sample
from evaluation.memory.layers import fill, state_width
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
    """Samples the first token, and the last one with a full cache; its responses are made up."""

    def __init__(self, config, live: LiveTensors):
        super().__init__(config.vocab_size)
        self.config, self.live = config.get_text_config(), live

    def sample(self, policy, prompts, sampling: Sampling, generator) -> Rollouts:
        at_once = prompts[: max(ROWS_AT_ONCE // sampling.group_size, 1)]
        size, most, temperature = sampling.group_size, sampling.max_response_tokens, sampling.temperature
        sample(policy, Tokens(AT_ONCE), at_once, size, most, temperature, generator)
        self.last_token(policy, len(at_once), len(at_once[0]), sampling)
        rollouts = super().sample(policy, prompts, sampling, generator)
        if self.routing is not None:
            self.routing.rollouts = rollouts
        return rollouts

    @torch.no_grad()
    def last_token(self, policy, prompts: int, tokens: int, sampling: Sampling) -> None:
        rows, most = prompts * sampling.group_size, sampling.max_response_tokens
        cache = self.full_cache(policy, prompts, tokens, sampling)
        kept = torch.zeros(3, rows, most)  # log-probabilities, entropies, uniform numbers
        uniforms = kept[0, :, 0].double() if sampling.temperature else None
        logits = torch.zeros(rows, self.config.vocab_size)
        ids, positions = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), tokens + most - 1)
        with nullcontext() if self.routing is None else self.routing.listening():
            output = policy(input_ids=ids, **_positions(policy, positions), past_key_values=cache.past, use_cache=True)
            if self.routing is not None:
                self.routing.after_token(torch.arange(rows))
        logits = output.logits[:, -1].float()
        del output
        _draw(logits, sampling.temperature, uniforms)

    def full_cache(self, policy, prompts: int, tokens: int, sampling: Sampling) -> SharedOut:
        """The key-value cache before the last token: the model's own cache of one token, filled as sample() fills it.

        Where it is shared out to the groups it has room for all their tokens; else it is as long as they are.
        """
        past = policy(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
        size, length = sampling.group_size, tokens + sampling.max_response_tokens - 1
        with self.live.making("kv_cache"):
            if all(type(layer) is DynamicLayer for layer in past.layers):
                for layer in past.layers:
                    fill(layer, prompts, tokens)
                cache = SharedOut(past, size, sampling.max_response_tokens)
                for full in cache.past.layers:
                    setattr(full, "length", length)  # noqa: B010  of the preallocated layers
                return cache
            for layer in past.layers:
                fill(layer, prompts * size, length)
        return SharedOut(past, 1, sampling.max_response_tokens)


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
        save_file({"weight": torch.zeros(1, state_width(config)), "bias": torch.zeros(1)}, path / "head.safetensors")
        (path / "head.json").write_text(json.dumps({"head": "linear", "gain": 1.0, "offset": 0.0}), encoding="utf-8")
        stack.enter_context(maker(transformers.AutoModelForCausalLM))
        stack.enter_context(maker(transformers.AutoModel))
        stack.enter_context(patch.object(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config))
        yield path
