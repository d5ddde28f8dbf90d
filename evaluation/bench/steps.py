"""Runs that go one rollout batch at a time, so that two of them can be timed in turns in one process.

Our trainer is a Run, whose `step()` is called. TRL's trainer has a loop of its own, which calls us back after each
step; the other runs take their turns there.
"""

import time
from collections import deque
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from algos.pieces.settings import from_dict
from algos.training.assemble import Checkpoints, make_run, read_problems
from algos.training.config import RunConfig
from algos.training.models.checkpoints import resolve_device
from algos.training.run import Run
from algos.training.stage import record
from algos.training.trl import baseline
from evaluation.bench.measure import wait
from evaluation.bench.workload import Workload, reading
from evaluation.memory.live_tensors import LiveTensors


class Enough(Exception):
    """Ends TRL's loop from within, once all turns are taken."""


class Loop:
    """One run, a step at a time.

    threads: the CPU threads of torch. live: counts the live tensors of our trainer, which makes it slow.
    """

    def __init__(
        self, settings: dict, workload: Workload, out: Path, threads: int = 1, live: LiveTensors | None = None
    ):
        self.config: RunConfig = from_dict(RunConfig, settings, "settings")
        self.device = resolve_device(self.config.device)
        self.workload, self.out, self.threads, self.live = workload, out, threads, live
        self.run: Run | None = None
        self.models: dict = {}  # by name, with their optimizers; stays empty for TRL
        self.peak_bytes: dict[str, int] = {}  # by phase, over all steps: counted, or of CUDA's allocator

    @property
    def drives(self) -> bool:
        """Whether the run is TRL's, whose loop does not return between its steps."""
        return self.config.trainer == "trl"

    def step(self) -> dict:
        """The metrics of our trainer's next rollout batch, and its wall_seconds."""
        torch.set_num_threads(self.threads)
        if self.run is None:
            self._start()
        assert self.run is not None
        if self.run.finished:
            raise RuntimeError(f"the run ended before this step; its steps are {self.config.steps}")
        wait(self.device)
        start = time.perf_counter()
        metrics = self.run.step()
        wait(self.device)
        return {**metrics, "wall_seconds": time.perf_counter() - start}

    def _start(self) -> None:
        problems = read_problems(str(self.workload.prompts), self.config)
        torch.manual_seed(self.config.seed)
        with reading(self.workload, self.device):
            self.run = make_run(self.config, Checkpoints(str(self.workload.policy)), problems, self.device)
        self.models = self.run.inputs.models
        self.run.phases.around = self.measured

    @contextmanager
    def measured(self, name: str):
        """Notes the peak of a phase's memory."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with self.live.phase(name) if self.live is not None else nullcontext():
            yield
        if self.live is not None:
            self.peak_bytes[name] = self.live.peaks[name].bytes
        elif on_cuda:
            self.note_peak(name)

    def note_peak(self, name: str) -> None:
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), torch.cuda.max_memory_allocated(self.device))

    def drive(self, turns: "Turns") -> None:
        """Train with TRL, until all turns are taken. The wall clock of its first step begins after its set-up."""
        left: float | None = None

        def after_step(metrics: dict) -> None:
            nonlocal left
            wait(self.device)
            wall = metrics["step_seconds"] if left is None else time.perf_counter() - left
            if self.device.type == "cuda":
                self.note_peak("step")  # TRL's phases are not told apart
            turns.took({**metrics, "wall_seconds": wall})
            with (
                torch.enable_grad(),
                torch.autocast(self.device.type, enabled=False),
            ):  # TRL may have them off and on
                turns.others()
            self._resume()
            left = time.perf_counter()

        paths = (str(self.workload.policy), str(self.workload.prompts), str(self.out))
        try:
            turns.others()
            self._resume()
            with reading(self.workload, self.device):
                baseline.train(self.config, *paths, threads=self.threads, after_step=after_step)
        except Enough:
            pass
        finally:
            record.Record.unfinished.clear()

    def _resume(self) -> None:
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def close(self) -> None:
        """Let go of the models; nothing is saved."""
        if self.run is not None:
            self.run.engine.close()
        self.run, self.models = None, {}


class Turns:
    """Steps of some loops, one of each a round, the order reversed every other round; the first warmup are dropped.

    after_each(round): called after each round; a true answer ends the measurement.
    """

    def __init__(self, loops: dict[str, Loop], rounds: int, warmup: int, after_each=None):
        self.loops, self.warmup, self.after_each = loops, warmup, after_each
        self.found: dict[str, list[dict]] = {name: [] for name in loops}
        orders = (list(loops) if number % 2 == 0 else list(reversed(loops)) for number in range(rounds))
        self.left = deque((number, name) for number, order in enumerate(orders) for name in order)

    def others(self) -> None:
        """Take the turns before the next one of TRL's loop. Raises Enough when there are no more turns."""
        while self.left:
            loop = self.loops[self.left[0][1]]
            if loop.drives:
                return
            self.took(loop.step())
        raise Enough

    def took(self, metrics: dict) -> None:
        number, name = self.left.popleft()
        if number >= self.warmup:
            self.found[name].append(metrics)
        ended = not self.left or self.left[0][0] > number
        if ended and self.after_each is not None and self.after_each(number):
            self.left.clear()


def in_turns(loops: dict[str, Loop], steps: int, warmup: int = 1, after_each=None) -> dict[str, list[dict]]:
    """Metrics of `steps` steps of each loop, taken in turns. At most one of them is TRL's. The loops are closed."""
    turns = Turns(loops, warmup + steps, warmup, after_each)
    driving = [loop for loop in loops.values() if loop.drives]
    if len(driving) > 1:
        raise ValueError("of the loops that take turns, at most one can be TRL's")
    try:
        if driving:
            driving[0].drive(turns)
        else:
            turns.others()
    except Enough:
        pass
    finally:
        for loop in loops.values():
            loop.close()
    return turns.found


def counted(settings: dict, workload: Workload, out: Path, threads: int = 1, steps: int = 2) -> Loop:
    """A loop of our trainer after some steps, its live tensors counted: see peak_bytes. Step 2 has optimizer state."""
    with LiveTensors() as live:
        loop = Loop(settings, workload, out, threads, live)
        in_turns({"counted": loop}, steps, warmup=0)
    return loop


def median(rows: list[dict], name: str) -> float:
    """The median of one metric over steps; a step without the metric counts as 0."""
    return float(torch.tensor([float(row.get(name, 0.0)) for row in rows], dtype=torch.float64).quantile(0.5))
