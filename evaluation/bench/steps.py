"""Training loops that go one rollout batch at a time, so that two of them can be timed in turns in one process.

What runs is algos.training.train.train, or trl_baseline.train for TRL, as a study runs it: nothing is left out or
copied. Each loop has a thread of its own and waits where it has logged a step; only one of them ever runs.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from algos.pieces.settings import from_dict
from algos.training import train
from algos.training.config import RunConfig
from algos.training.models.checkpoints import resolve_device
from algos.training.stage import record
from algos.training.trl import baseline as trl_baseline
from algos.training.trl import monitor as trl_monitor
from evaluation.bench.measure import wait
from evaluation.bench.workload import Workload, random_model, word_tokenizer
from evaluation.memory.live_tensors import LiveTensors


class _Enough(BaseException):
    """Ends a loop from within; no `except Exception` of a trainer catches it."""


class Loop:
    """One run, a step at a time, within instrumented().

    threads: torch's for its computations. count: its live tensors are counted, which makes it slow.
    """

    def __init__(self, settings: dict, workload: Workload, out: Path, threads: int = 1, count: bool = False):
        self.config: RunConfig = from_dict(RunConfig, settings, "settings")
        self.device = resolve_device(self.config.device)
        self.workload, self.out, self.threads = workload, out, threads
        self.models: dict = {}  # as train.make_learner gives them; stays empty for TRL
        self.peak_bytes: dict[str, int] = {}  # by phase, over all steps: counted, or of CUDA's allocator
        self.live = LiveTensors() if count else None
        self.away = 0.0  # seconds that it has waited for its turn
        self.metrics: dict | None = None
        self.error: BaseException | None = None
        self.stopping = False
        self.left = time.perf_counter()
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.loop = self

    def step(self) -> dict:
        """The metrics of the next rollout batch and its wall_seconds. What the loop raises is raised here."""
        if self.thread.ident is None:
            self.thread.start()
        self._hand_over()
        if self.error is not None:
            raise self.error
        if self.metrics is None:
            raise RuntimeError(f"the run ended before this step; its steps are {self.config.steps}")
        metrics, self.metrics = self.metrics, None
        return metrics

    def close(self) -> None:
        """End the run, saving nothing, and let go of its models."""
        self.stopping = True
        if self.thread.is_alive():
            self._hand_over()
            self.thread.join()
        self.models = {}

    def _hand_over(self) -> None:
        self.go.release()
        self.paused.acquire()

    def _run(self) -> None:
        self._wait_for_turn()
        try:
            torch.set_num_threads(self.threads)
            run = trl_baseline.train if self.config.trainer == "trl" else train.train
            paths = (str(self.workload.policy), str(self.workload.prompts), str(self.out))
            with self.live or nullcontext():
                run(self.config, *paths, threads=self.threads)
        except _Enough:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.paused.release()

    def logged(self, metrics: dict) -> None:
        """Called by the run, where it has finished a step."""
        wait(self.device)
        now = time.perf_counter()
        self.metrics = {**metrics, "wall_seconds": now - self.left}
        self.left = now
        if self.device.type == "cuda":  # TRL's phases are not told apart
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peak_bytes["step"] = max(peak, *self.peak_bytes.values(), 0)
        self.paused.release()
        self._wait_for_turn()
        if self.stopping:
            raise _Enough

    def _wait_for_turn(self) -> None:
        self.go.acquire()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        now = time.perf_counter()
        self.away, self.left = self.away + now - self.left, now


def current() -> Loop | None:
    return getattr(threading.current_thread(), "loop", None)


class _Record(record.Record):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        current().left = time.perf_counter()  # reading the models is no part of the first step

    def log(self, step, metrics):
        super().log(step, metrics)
        current().logged(metrics)


@contextmanager
def _phase(self, name: str):
    """record.Phases.__call__, which notes the phase's peak of memory, too."""
    loop = current()
    on_cuda = loop.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(loop.device)
    with _original_phase(self, name), loop.live.phase(name) if loop.live is not None else nullcontext():
        yield
    if loop.live is not None:
        loop.peak_bytes[name] = loop.live.peaks[name].bytes
    elif on_cuda:
        loop.peak_bytes[name] = max(loop.peak_bytes.get(name, 0), torch.cuda.max_memory_allocated(loop.device))


class _Silent:
    def __init__(self, *_, **__):
        pass

    def update(self, *_, **__) -> None:
        pass

    def close(self) -> None:
        pass


def _make_learner(*args):
    current().learner, models = made = _original_make_learner(*args)
    current().models = models
    return made


def _read_model(path, *args, **kwargs):
    loop = current()
    if loop is None or loop.workload.weights:
        return _original_model(path, *args, **kwargs)
    return random_model(path, kwargs["dtype"], loop.device)


def _read_tokenizer(path, *args, **kwargs):
    loop = current()
    if loop is None or loop.workload.weights:
        return _original_tokenizer(path, *args, **kwargs)
    return word_tokenizer(path)


_original_make_learner, _original_phase = train.make_learner, record.Phases.__call__
_original_model, _original_tokenizer = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained


@contextmanager
def instrumented() -> Iterator[None]:
    """Lets Loops see what their runs log and make. The clock of TRL's monitor stands still while another loop runs."""
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() - current().away)
    with ExitStack() as patches:
        for module, name, replacement in (
            (train, "Record", _Record),
            (train, "Progress", _Silent),
            (trl_baseline, "Record", _Record),
            (trl_monitor, "Progress", _Silent),
        ):
            patches.enter_context(patch.object(module, name, replacement))
        patches.enter_context(patch.object(record.Phases, "__call__", _phase))
        patches.enter_context(patch.object(train, "make_learner", _make_learner))
        patches.enter_context(patch.object(trl_monitor, "time", clock))
        patches.enter_context(patch.object(AutoModelForCausalLM, "from_pretrained", _read_model))
        patches.enter_context(patch.object(AutoTokenizer, "from_pretrained", _read_tokenizer))
        yield


def in_turns(loops: dict[str, Loop], steps: int, warmup: int = 1, after_each=None) -> dict[str, list[dict]]:
    """Steps of all loops, one of each in turn, the order reversed every other time; the first warmup are dropped.

    after_each(round): called after each round; a true answer ends the measurement. The loops are closed.
    """
    found: dict[str, list[dict]] = {name: [] for name in loops}
    try:
        with instrumented():
            try:
                for number in range(warmup + steps):
                    names = list(loops) if number % 2 == 0 else list(reversed(loops))
                    for name in names:
                        metrics = loops[name].step()
                        if number >= warmup:
                            found[name].append(metrics)
                    if after_each is not None and after_each(number):
                        break
            finally:
                for loop in loops.values():
                    loop.close()
    finally:
        record.Record.unfinished.clear()
    return found


def counted(settings: dict, workload: Workload, out: Path, threads: int = 1, steps: int = 2) -> Loop:
    """A loop after some steps with its live tensors counted: see peak_bytes. The second step has optimizer state."""
    loop = Loop(settings, workload, out, threads, count=True)
    in_turns({"counted": loop}, steps, warmup=0)
    return loop


def median(rows: list[dict], name: str) -> float:
    """Of one metric over steps; 0 where a step does not have it."""
    return float(torch.tensor([float(row.get(name, 0.0)) for row in rows], dtype=torch.float64).quantile(0.5))
