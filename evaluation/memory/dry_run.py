"""One step of a run, phase by phase, under LiveTensors: measured on real tensors, predicted on weightless ones.

Both run the project's own code, from make_learner to the optimizer step, on a model made from its config alone. The
step is the second one, when the optimizer's state exists; prompts and responses have their full lengths, the most that
the settings allow.
"""

import copy
import json
import math
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from algos.pieces.types import Rollouts, make_batch
from algos.training.config import RunConfig
from algos.training.models.kv_cache import SharedOut
from algos.training.rewards.rewards import Rewards
from algos.training.sampling import sampler as rollouts_module
from algos.training.sampling.sampler import _draw, sample
from algos.training.train import make_learner
from algos.training.update.trust_region import trust_region_update
from algos.training.update.update import minibatch_rows, prepare, update, with_advantages
from evaluation.memory.closed_form import with_layers
from evaluation.memory.live_tensors import LiveTensors, Peak
from evaluation.memory.weightless import Weightless, tangible

PHASES = ("generate", "reward", "logprobs", "update")
ROWS_AT_ONCE = 512  # of sample()
IN_FULL = 1 << 16  # tokens x layers of a rollout batch that a prediction runs in full; of more, two micro-batches
SHUFFLES = 8
FEW = 3  # layers: the first, the last, and one in the middle
NEVER, AT_ONCE = -1, 0  # end-of-sequence tokens: one that no model draws, and what a weightless model draws
REWARD_MODEL = "reward_model"


@dataclass(frozen=True)
class Workload:
    """What memory depends on: a run's settings, its model's config, the length of its prompts."""

    run: RunConfig
    model: object  # transformers' config of policy, reference, reward model and critic
    prompt_tokens: int

    def __post_init__(self):
        if self.prompt_tokens < 1:
            raise ValueError(f"prompt_tokens must be at least 1, got {self.prompt_tokens}")


def measure(workload: Workload, allocator: bool = False, snapshot: str | None = None) -> dict[str, Peak]:
    """The peak of each phase of two steps on real tensors with random weights.

    allocator: on the CPU, the allocator's own count of the last update beside it, kernels' scratch memory included.
    snapshot: on CUDA, a file for torch's memory history.
    """
    with _models_from(workload.model) as folder, LiveTensors(workload.model.vocab_size, snapshot) as live:
        step = _Step(workload, live, folder, allocator)
        for _ in range(2):
            rollouts = step.sample()
            step.score(rollouts)
            step.update(rollouts)
    return {name: replace(peak, allocator_bytes=step.allocated.get(name)) for name, peak in live.peaks.items()}


def measure_update(workload: Workload) -> Peak:
    """The peak of one update on real tensors, without sampling before it."""
    with _models_from(workload.model) as folder, LiveTensors(workload.model.vocab_size) as live:
        step = _Step(workload, live, folder)
        step.warm_up()
        step.update(step.rollouts(workload.run.prompts_per_step))
    return live.peaks["update"]


def predict(workload: Workload, exact: bool = False) -> dict[str, Peak]:
    """The peak of each phase, in no memory.

    A deep model's is that of its first FEW layers, and as much again for each further layer as the last of them adds;
    exact runs all of them, which for 28 layers takes a minute.
    """
    layers = workload.model.get_text_config().num_hidden_layers
    if exact or layers <= FEW or getattr(workload.run.hparams, "critic_layers", None) is not None:
        return _predict(workload)
    less, few = (_predict(replace(workload, model=with_layers(workload.model, count))) for count in (FEW - 1, FEW))
    return {name: _extrapolated(less[name], few[name], layers - FEW) for name in few}


def _extrapolated(less: Peak, few: Peak, more: int) -> Peak:
    """few plus `more` times what it has more than less, at each moment; the fullest of them is the peak."""
    moments = {}
    for name, (_, places) in few.moments.items():
        before = less.moments[name][1]
        grown = Counter({p: places[p] + more * (places[p] - before[p]) for p in {*places, *before}})
        moments[name] = grown.total(), +grown
    most, places = max(moments.values(), key=lambda moment: moment[0])
    return Peak(most, places, few.start_bytes + more * (few.start_bytes - less.start_bytes), moments=moments)


def _predict(workload: Workload) -> dict[str, Peak]:
    run, layers = workload.run, workload.model.get_text_config().num_hidden_layers
    sequence = workload.prompt_tokens + run.max_response_tokens
    missing = 0
    with _models_from(workload.model) as folder, Weightless(), LiveTensors(workload.model.vocab_size) as live:
        step = _Step(workload, live, folder)
        if run.responses_per_step * sequence * layers > IN_FULL:
            kept = step.two_micro_batches(sequence)
            missing = run.responses_per_step - len(kept.prompts) * run.group_size
        else:
            kept = step.rollouts(run.prompts_per_step)
        step.warm_up()
        step.sample_ends()
        step.score(kept)
        per_response = step.update(kept)
    for name in ("logprobs", "update"):  # the rows that were left out: tokens, masks, log-probabilities
        live.peaks[name] = _with_other(live.peaks[name], int(missing * per_response))
    return live.peaks


def _with_other(peak: Peak, size: int) -> Peak:
    added = Counter({("", "other"): size})
    moments = {name: (total + size, places + added) for name, (total, places) in peak.moments.items()}
    return replace(peak, bytes=peak.bytes + size, places=peak.places + added, moments=moments)


class _Step:
    """The models of a run, and what the loop of train() does with them in one step."""

    def __init__(self, workload: Workload, live: LiveTensors, folder: Path, allocator: bool = False):
        run = self.run = workload.run
        self.workload, self.live, self.allocator = workload, live, allocator
        self.allocated: dict[str, int] = {}
        self.steps = 0
        self.settings = run.hparams
        device = torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.generator = torch.Generator(device).manual_seed(run.seed)
        self.learner, self.models = make_learner(run, "policy", str(folder), device)
        for name, (model, optimizer) in self.models.items():
            live.add_model(name, model, optimizer)
        self.policy = self.learner.policy

        def prefilled(module, args, output):
            live.add_cache("policy", output.get("past_key_values"))

        self.policy.register_forward_hook(prefilled)

    @contextmanager
    def sampling(self):
        """The generate phase; what sample allocates for its cache is of that category."""

        class Counted(SharedOut):
            def __init__(cache, *given):
                with self.live.making("kv_cache"):
                    super().__init__(*given)

        with self.phase("generate"), patch.object(rollouts_module, "SharedOut", Counted):
            yield Counted

    @contextmanager
    def phase(self, name: str):
        profiler = nullcontext()
        allocator = self.allocator and name == "update" and self.steps
        if allocator:
            activities = [torch.profiler.ProfilerActivity.CPU]
            profiler = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        with self.live.phase(name) as peak, profiler:
            yield
        if allocator:
            events = profiler.profiler.kineto_results.events()
            changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
            allocated = peak.start_bytes + max(accumulate(changes), default=0)
            self.allocated[name] = max(allocated, self.allocated.get(name, 0))

    def warm_up(self) -> None:
        """Give the optimizers the state that they have from their first step on."""
        for _, optimizer in self.models.values():
            if optimizer is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def prompts(self, count: int) -> list[list[int]]:
        return [[1 + i % 7] * self.workload.prompt_tokens for i in range(count)]

    def rollouts(self, prompts: int) -> Rollouts:
        """Random responses of the full length to that many prompts."""
        run = self.run
        shape = (prompts * run.group_size, run.max_response_tokens)
        ids = torch.randint(3, self.workload.model.vocab_size, shape)
        mask, cut = torch.ones(shape, dtype=torch.bool), torch.ones(shape[0], dtype=torch.bool)
        zeros = torch.zeros(shape)
        return Rollouts(self.prompts(prompts), run.group_size, ids, mask, zeros, cut, zeros.clone())

    def two_micro_batches(self, sequence: int) -> Rollouts:
        """As many whole groups as fill two micro-batches of one optimizer step."""
        run = self.run
        self.run = replace(run, minibatches=1, epochs=1)
        rows = run.micro_batch_size
        if run.micro_batch_tokens is not None:
            alone, added = sequence, run.max_response_tokens if self.learner.share_prompts else sequence
            rows = 1 + max(run.micro_batch_tokens - alone, 0) // added
        rows = min(2 * rows, run.responses_per_step // run.minibatches)
        return self.rollouts(math.ceil(rows / run.group_size))

    def sample(self) -> Rollouts:
        run, tokenizer = self.run, SimpleNamespace(pad_token_id=0, eos_token_id=NEVER)
        with self.sampling():
            prompts, generator = self.prompts(run.prompts_per_step), self.generator
            return sample(
                self.policy, tokenizer, prompts, run.group_size, run.max_response_tokens, run.temperature, generator
            )

    def sample_ends(self) -> None:
        """The first token, by sample itself, and the last one, when the cache is full."""
        run, config = self.run, self.workload.model.get_text_config()
        prompts = min(run.prompts_per_step, max(ROWS_AT_ONCE // run.group_size, 1))
        tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=AT_ONCE)
        tokens, most = self.workload.prompt_tokens, run.max_response_tokens
        with self.sampling():
            ids = self.prompts(prompts)
            sample(self.policy, tokenizer, ids, run.group_size, most, run.temperature, self.generator)
        with self.sampling() as shared_out, torch.no_grad():
            from transformers import DynamicCache

            past, rows = DynamicCache(config=config), prompts * run.group_size
            heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            dtype = self.policy.dtype
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            for layer in range(config.num_hidden_layers):
                shape = (prompts, heads, tokens, width)
                with self.live.making("kv_cache"):
                    past.update(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), layer)
            cache = shared_out(past, run.group_size, most)
            for layer in cache.past.layers:
                layer.length = tokens + most - 1
            kept = torch.zeros(3, rows, most)  # log-probabilities, entropies, uniform numbers
            uniforms = kept[0, :, 0].double() if run.temperature else None
            logits = torch.zeros(rows, config.vocab_size)
            logits = (
                self.policy(
                    input_ids=torch.zeros(rows, 1, dtype=torch.long),
                    position_ids=torch.full((rows, 1), tokens + most - 1),
                    past_key_values=cache.past,
                    use_cache=True,
                )
                .logits[:, -1]
                .float()
            )
            _draw(logits, run.temperature, uniforms)

    def score(self, rollouts: Rollouts) -> None:
        if REWARD_MODEL in self.models:
            with self.phase("reward"):
                tokenizer, model = SimpleNamespace(pad_token_id=0), self.models[REWARD_MODEL][0]
                reference = self.learner.reference if model.backbone is None else None
                Rewards(self.run, tokenizer, model, self.learner.layout(self.run), reference).learned(rollouts)

    def update(self, rollouts: Rollouts) -> float:
        """The rest of the step; bytes of the batch per response."""
        run, settings, algorithm = self.run, self.settings, self.run.algorithm_entry
        with self.phase("logprobs"):
            rewards = torch.arange(len(rollouts.response_ids)) % 2 * 1.0
            batch = make_batch(rollouts, rewards, 0)
            exact = run.old_logprobs == "sampler" and run.dtype == "float32"
            batch, _ = prepare(batch, self.learner, run, settings, rollouts.entropies if exact else None)
            batch = replace(batch, **{name: tangible(x) for name, x in vars(batch).items() if isinstance(x, Tensor)})
            batch = with_advantages(batch, algorithm, settings)
        generator = torch.Generator(self.generator.device).manual_seed(self.worst_shuffle(batch))
        with self.phase("update"):
            run_updates = update if algorithm.update is None else trust_region_update
            run_updates(batch, self.learner, run, settings, generator, False)
        self.steps += 1
        held = {
            x.untyped_storage()._cdata: x.untyped_storage().nbytes()
            for x in vars(batch).values()
            if isinstance(x, Tensor)
        }
        return sum(held.values()) / len(batch)

    def worst_shuffle(self, batch) -> int:
        """Of SHUFFLES seeds the one whose micro-batches need most: which responses meet in one, chance decides."""
        most = {}
        layout = self.learner.layout(self.run)
        for seed in range(SHUFFLES):
            generator = torch.Generator(self.generator.device).manual_seed(seed)
            cells = [
                part.packed.input_ids.numel()
                for rows in minibatch_rows(len(batch), self.run, generator)
                for _, part in layout.micro_batches(batch.select(rows))
            ]
            most[seed] = max(cells)
        return max(most, key=most.get)


@contextmanager
def _models_from(config):
    """Meanwhile transformers makes every model from this config, with random weights.

    Gives the folder of a reward model, which has a head of its own.
    """
    import transformers

    def maker(auto):
        def from_pretrained(path, dtype=torch.float32, **_):
            return auto.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False).eval()

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
