"""One step of a run, phase by phase, under LiveTensors: measured on real tensors, predicted on weightless ones.

Both call Run.step() on a model made from its config alone; stand_ins.py gives the rest. The step is the second one,
when the optimizer's state exists. Prompts and responses have their full lengths, the most that the settings allow.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from algos.pieces.settings import SettingsError
from algos.pieces.types import Batch
from algos.training.assemble import Checkpoints, make_learner
from algos.training.config import RunConfig
from algos.training.models.packing import Layout, sizes
from algos.training.run import Inputs, Run, State
from algos.training.sampling.engine import Engine
from algos.training.sampling.engines import TransformersEngine
from algos.training.stage.record import Phases
from algos.training.update import update as updates
from algos.training.update.update import Learner, minibatch_rows
from evaluation.memory.layers import kinds, with_layers
from evaluation.memory.live_tensors import LiveTensors, Peak
from evaluation.memory.stand_ins import Alternating, BothEnds, MadeUp, NoCanary, Tokens, models_from
from evaluation.memory.weightless import Weightless, tangible

SHUFFLES = 8
ONCE = {"cg_iterations": 2, "line_search_steps": 1}  # TRPO's: further ones need as much memory
FEW = 3  # layers at least: the first, the last, and one in the middle
REWARD_MODEL = "reward_model"


@dataclass(frozen=True)
class Workload:
    """What memory depends on: a run's settings, its model's config, the length of its prompts."""

    run: RunConfig
    model: Any  # transformers' config of policy, reference, reward model and critic
    prompt_tokens: int
    head_on_reference: bool = False  # the reward model is a head on the reference's backbone

    def __post_init__(self):
        if self.prompt_tokens < 1:
            raise SettingsError(f"prompt_tokens must be at least 1, got {self.prompt_tokens}.")
        if self.head_on_reference and not (REWARD_MODEL in self.run.rewards and self.run.hparams.needs_reference):
            raise ValueError("head_on_reference needs a reward model among the rewards and a kl_coef above 0")

    def prompts(self) -> list[list[int]]:
        return [[1 + i % 7] * self.prompt_tokens for i in range(self.run.prompts_per_step)]


def measure(workload: Workload, allocator: bool = False, snapshot: str | None = None) -> dict[str, Peak]:
    """The peak of each phase of two steps on real tensors with random weights.

    allocator: on the CPU, the allocator's own count of the last update beside it, kernels' scratch memory included.
    snapshot: on CUDA, a file for torch's memory history.
    """
    with models_from(workload.model) as folder, LiveTensors(workload.model.vocab_size, snapshot) as live:
        run = dry_run(workload, live, folder, TransformersEngine(Tokens()))
        watch = Watch(run, live, allocator)
        for _ in range(2):
            run.step()
    return {name: replace(peak, allocator_bytes=watch.allocated.get(name)) for name, peak in live.peaks.items()}


def measure_update(workload: Workload) -> Peak:
    """The peak of one update on real tensors, without sampling before it."""
    with models_from(workload.model) as folder, LiveTensors(workload.model.vocab_size) as live:
        config = replace(workload.run, old_logprobs="recomputed")  # made-up responses have none
        run = dry_run(replace(workload, run=config), live, folder, MadeUp(workload.model.vocab_size))
        Watch(run, live)
        warm_up(run)
        run.step()
    return live.peaks["update"]


def predict(workload: Workload, exact: bool = False) -> dict[str, Peak]:
    """The peak of each phase, in no memory.

    The peak of a deep model is the peak of its first layers, FEW or as many as show every kind of layer twice, plus,
    for each further layer, the bytes that the second layer of its kind adds: the first also adds what all of its kind
    share, such as a mask. exact: run all layers, which takes a minute for 28 of them.
    """
    layers = workload.model.get_text_config().num_hidden_layers
    if exact or layers <= FEW or getattr(workload.run.hparams, "critic_layers", None) is not None:
        return _predict(workload)
    of = kinds(workload.model)
    seen = {kind: [at for at in range(len(of)) if of[at] == kind] for kind in of}
    added = {kind: next((at for at in places[1:] if at >= FEW - 1), places[-1]) for kind, places in seen.items()}
    few = max(FEW, *(at + 1 for at in added.values()))
    if 2 * few > layers + 1:  # as good as all
        return _predict(workload)
    more = Counter(of[few:])
    counts = {few} | {count for kind in more for count in (added[kind], added[kind] + 1)}
    peaks = {count: _predict(replace(workload, model=with_layers(workload.model, count))) for count in counts}
    return {
        name: _extrapolated(peak, [(peaks[added[k]][name], peaks[added[k] + 1][name], n) for k, n in more.items()])
        for name, peak in peaks[few].items()
    }


def _extrapolated(peak: Peak, grown: list[tuple[Peak, Peak, int]]) -> Peak:
    """The peak, and for each (before, after, more) `more` times what was added; the fullest moment is the new peak.

    Where something would become less than nothing, the moments before and after were not the same one; a moment nearby,
    which is always the same, stands for it.
    """
    moments, start = {}, peak.start_bytes
    for name, (_, places) in peak.moments.items():
        if not all(name in before.moments and name in after.moments for before, after, _ in grown):
            continue
        places = Counter(places)
        for before, after, more in grown:
            there, here = before.moments[name][1], after.moments[name][1]
            for place in {*there, *here}:
                places[place] += more * (here[place] - there[place])
        if min(places.values(), default=0) >= -places.total() / 100:
            moments[name] = places.total(), +places
    for before, after, more in grown:
        start += more * (after.start_bytes - before.start_bytes)
    most, places = max(moments.values(), key=lambda moment: moment[0])
    return Peak(most, places, start, moments=moments)


def _predict(workload: Workload) -> dict[str, Peak]:
    with models_from(workload.model) as folder, Weightless(), LiveTensors(workload.model.vocab_size) as live:
        engine = BothEnds(workload.model, live)
        run = dry_run(workload, live, folder, engine, in_part=True)
        Watch(run, live)
        warm_up(run)
        run.step()
    return live.peaks


def dry_run(workload: Workload, live: LiveTensors, folder: Path, engine: Engine, in_part: bool = False) -> "DryRun":
    """A run on the workload's model, its tensors counted. in_part: it computes no more than memory depends on."""
    config, keeps_all = workload.run, workload.run.algorithm_entry.update is not None  # TRPO: of every micro-batch
    if in_part and keeps_all:
        once = {name: number for name, number in ONCE.items() if hasattr(config.hparams, name)}
        config = replace(config, settings={**config.settings, **once})
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(config.seed)
    learner, models = make_learner(config, Checkpoints("policy", str(folder)), device)
    if in_part and not keeps_all:
        learner = InPart(**vars(learner), live=live)
    reward_model = models[REWARD_MODEL][0] if REWARD_MODEL in models else None
    if workload.head_on_reference:
        assert reward_model is not None
        reward_model.backbone = None
    for name, (model, optimizer) in models.items():
        live.add_model(name, model, optimizer)
    for sampling in filter(None, (learner.policy, learner.behavior)):
        sampling.register_forward_hook(
            lambda module, args, output: live.add_cache("policy", output.get("past_key_values"))
        )
    prompts = workload.prompts()
    problems: list[dict] = [{} for _ in prompts]
    state = State.at_start(config, learner, generator, len(problems))
    state.canary = NoCanary()
    state.step = config.sync_every * getattr(config.hparams, "value_warmup", 0)  # all models are trained from here on
    inputs = Inputs(problems, prompts, Tokens(), models, reward_model)
    run = DryRun(config, state, inputs, engine, Phases(device))
    run.sampler.score = Alternating(run.score)
    run.in_part = in_part
    return run


@dataclass(frozen=True)
class FirstAndLargest(Layout):
    """Of a batch's micro-batches two: the first, before which there are no gradients, and the largest of the others.

    Which of them needs more depends on the number of layers, so `live` keeps their moments apart.
    """

    live: LiveTensors | None = None

    def pieces(self, lengths: np.ndarray, prompts: np.ndarray, owners: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        assert self.live is not None
        first, *others = super().pieces(lengths, prompts, owners)
        self.live.part = "first, "
        yield first
        if others:
            self.live.part = "other, "
            yield max(others, key=lambda piece: extent(piece, lengths))
        self.live.part = ""


@dataclass
class InPart(Learner):
    live: LiveTensors | None = None

    def layout(self, config: RunConfig) -> Layout:
        return FirstAndLargest(**vars(super().layout(config)), live=self.live)


def extent(piece: tuple[np.ndarray, int], lengths: np.ndarray) -> int:
    """How much memory a micro-batch needs beside others: a layer's activations are about 17 numbers per token and unit
    of width, and 2 more, the keys and values, per token of each sequence, whose prompt may be another one's, too."""
    rows, cells = piece
    return 17 * cells + 2 * int(lengths[rows].sum())


def warm_up(run: Run) -> None:
    """Give the optimizers the state that they have from their first step on."""
    for name, (_, optimizer) in run.inputs.models.items():
        by_hand = name == "policy" and run.config.algorithm_entry.update is not None  # TRPO makes the policy's steps
        if optimizer is not None and not by_hand:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


class DryRun(Run):
    """A run whose tensors may be weightless, and whose minibatches are those of the shuffle that needs most memory."""

    in_part = False  # whether only those minibatches are run that need most memory

    def check_behavior(self) -> None:
        """Weightless tensors have no bits to compare."""

    def advantages(self, batch: Batch) -> Batch:
        real: dict[str, Any] = {name: tangible(x) for name, x in vars(batch).items() if isinstance(x, Tensor)}
        return super().advantages(replace(batch, **real))

    def update(self, batch: Batch) -> list[dict[str, float]]:
        seed, worst = self.worst_minibatches(batch)
        self.state.generator = self._seeded(seed)
        with patch.object(updates, "minibatch_rows", lambda *_: iter(worst)) if self.in_part else nullcontext():
            return super().update(batch)

    def worst_minibatches(self, batch: Batch) -> tuple[int, list[Tensor]]:
        """The seed, among SHUFFLES, of the shuffle with the largest micro-batch; and two minibatches of that shuffle.

        They are the one with the largest first micro-batch, and the one with the largest other micro-batch. Chance
        decides which responses a micro-batch has, and so how many prompts.
        """
        layout, of_all = Learner.layout(self.state.learner, self.config), sizes(batch)

        def most(rows: Tensor, others: bool) -> int:
            lengths, *rest = (size[rows.cpu().numpy()] for size in of_all)
            first, *further = layout.pieces(lengths, *rest)
            return max((extent(piece, lengths) for piece in (further if others else [first])), default=0)

        shuffles = [list(minibatch_rows(len(batch), self.config, self._seeded(seed))) for seed in range(SHUFFLES)]
        worst = [max(most(rows, others) for rows in shuffle for others in (False, True)) for shuffle in shuffles]
        seed = worst.index(max(worst))
        first, other = (max(shuffles[seed], key=lambda rows: most(rows, others)) for others in (False, True))
        return seed, [first] if first is other or not most(other, True) else [first, other]

    def _seeded(self, seed: int) -> torch.Generator:
        return torch.Generator(self.state.generator.device).manual_seed(seed)


class Watch:
    """Counts the live tensors of every phase of a run, from now on. The reward phase counts if there is a model in it.

    allocator: on the CPU, the allocator's own count of the updates after the first, in `allocated`.
    """

    def __init__(self, run: Run, live: LiveTensors, allocator: bool = False):
        self.run, self.live, self.allocator = run, live, allocator
        self.allocated: dict[str, int] = {}
        run.phases.around = self.phase

    @contextmanager
    def phase(self, name: str):
        if name == "reward" and REWARD_MODEL not in self.run.inputs.models:
            yield
            return
        asked = self.allocator and name == "update" and self.run.state.step > 0
        profiler = None
        if asked:
            activities = [torch.profiler.ProfilerActivity.CPU]
            profiler = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        with self.live.phase(name) as peak, nullcontext() if profiler is None else profiler:
            yield
        if profiler is not None:
            assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
            events: Any = profiler.profiler.kineto_results.events()
            changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
            allocated = peak.start_bytes + max(accumulate(changes), default=0)
            self.allocated[name] = max(allocated, self.allocated.get(name, 0))
