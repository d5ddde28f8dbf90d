"""The record of one stage: run.json, metrics.jsonl, samples.jsonl. MLflow and the report are views of these files.

Also the facts in them: time by phase, memory by component; and the progress line.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar, Protocol

from algos.packages import has_imported
from algos.pieces.settings import SettingsError
from algos.training.stage import signals
from algos.training.stage.alone import Alone
from algos.training.stage.choice import with_choice
from algos.training.stage.environment import environment, module_and_arguments, resident_bytes, start_up_seconds
from algos.training.stage.exhausted import explained
from algos.training.stage.masking import mask_tracebacks, masked
from evaluation.tasks.files import as_json

LINES = ("metrics.jsonl", "samples.jsonl")
FILES = ("run.json", *LINES)
BATCH = "failed_batch.jsonl"  # of a run that has failed: what it was training on
PROGRESS_SECONDS = 15.0  # between progress lines where there is no terminal to redraw a bar on


class States(Protocol):
    """The saved states of a stage, as its record sees them (saves.py)."""

    def find(self, record: "Record") -> tuple[dict, dict[str, bytes]] | None:
        """The record's part of the state that the stage goes on from, and its lines by file; None: from the start."""

    def alive(self) -> None: ...

    def clear(self) -> None: ...


class Record:
    """Writes a stage's files into `out`. Each metrics line is on disk before the next step begins.

    With saves that hold a state of the same stage, the record of the stage goes on: its lines up to that state stay, it
    has begun when the stage first began, and its seconds are those of all attempts up to their last saved states.
    """

    unfinished: ClassVar[list["Record"]] = []

    def __init__(self, out: str | Path, kind: str, settings: dict, threads: int, saves: States | None = None, **facts):
        self.out, self.saves = Path(out), saves
        start_up = start_up_seconds(time.time())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.alone = Alone(self.out)
        self.out.mkdir(exist_ok=True)
        (self.out / BATCH).unlink(missing_ok=True)
        self.started = self.begun = time.time()  # when the stage and when this process began
        self.earlier = 0.0  # seconds of earlier attempts
        self.facts = {
            "kind": kind,
            "status": "running",
            "settings": settings,
            "threads": threads,
            **facts,
            "command": [Path(sys.executable).name, "-m", *module_and_arguments()],
            "started": self.started,
            "start_up_seconds": start_up,
            **environment(),
        }
        found = saves.find(self) if saves is not None else None
        lines = {} if found is None else self._go_on(*found)
        self.metrics, self.samples = ((self.out / name).open("w+", encoding="utf-8") for name in LINES)
        for file, name in ((self.metrics, LINES[0]), (self.samples, LINES[1])):
            file.write(lines.get(name, b"").decode())
            file.flush()
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.metrics, fcntl.LOCK_EX)  # until this process ends: by it others see that the stage lives
        self._write(self.facts)
        Record.unfinished.append(self)

    def log(self, step: int, metrics: dict) -> None:
        """One line of metrics.jsonl: plain numbers, with the step and the time (Unix seconds)."""
        line = {"step": step, "time": time.time(), "seconds": self.seconds, **metrics}
        self.metrics.write(
            json.dumps({k: v if isinstance(v, (int, str)) else _plain(v) for k, v in line.items()}) + "\n"
        )
        self.metrics.flush()
        if self.saves is not None:
            self.saves.alive()

    @property
    def seconds(self) -> float:
        """Of this attempt, and of earlier ones up to their last saved states."""
        return self.earlier + time.time() - self.begun

    def saved(self) -> dict:
        """What a saved state keeps of the record."""
        kept = ("threads", "hardware", "start_up_seconds", "resumed")
        return {"started": self.started, "seconds": self.seconds, **{k: self.facts[k] for k in kept if k in self.facts}}

    def _go_on(self, saved: dict, lines: dict[str, bytes]) -> dict[str, bytes]:
        """Go on with the record of an earlier attempt; its lines."""
        self.started, self.earlier = saved["started"], saved["seconds"]
        attempt = {"time": self.begun, "lines": lines[LINES[0]].count(b"\n"), "lost_seconds": saved["lost_seconds"]}
        changed = {key: saved[key] for key in ("threads", "hardware") if saved[key] != self.facts[key]}
        if changed:
            print(f"warning: the stage goes on with other {' and '.join(changed)}: rounding will not be the same")
        self.facts["start_up_seconds"] = (saved["start_up_seconds"] or 0) + (self.facts["start_up_seconds"] or 0)
        self.facts |= {"started": self.started, "resumed": [*saved.get("resumed", []), attempt | changed]}
        for name in FILES:
            (self.out / f"interrupted-{name}").unlink(missing_ok=True)
        return lines

    def written(self) -> dict[str, bytes]:
        """The lines so far, by file. A Snakemake that is sent SIGTERM deletes the files while its stage ends a step."""
        found = {}
        for name, file in ((LINES[0], self.metrics), (LINES[1], self.samples)):
            file.flush()
            found[name] = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        return found

    def sample(self, **row) -> None:
        self.samples.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.samples.flush()

    def finish(self, status: str = "finished", **facts) -> None:
        """status: "finished", or "failed" (see algos.training.failure)."""
        self.samples.close()
        finished = time.time()
        Record.unfinished.remove(self)
        self.facts.update(status=status, finished=finished, seconds=self.seconds, **facts)
        self._write(self.facts)
        self.metrics.close()
        if self.saves is not None:
            self.saves.clear()
        self.alone.release()

    def _write(self, facts: dict) -> None:
        (self.out / "run.json").write_text(masked(as_json(facts)), encoding="utf-8")

    def set_aside(self, status: str = "failed") -> None:
        """Rename the files of a stage that did not finish, so that no one takes the stage for finished."""
        written = self.written()
        self.metrics.close()
        self.samples.close()
        if not self.out.is_dir():  # a rule's output that Snakemake has deleted: it would take it for made
            self.alone.release()
            return
        self._write({**self.facts, "status": status})
        for name, text in written.items():
            if not (self.out / name).exists():
                (self.out / name).write_bytes(text)
        for name in FILES:
            (self.out / name).replace(self.out / f"interrupted-{name}")
        self.alone.release()


def _plain(value) -> float | None:
    """A number that JSON can hold; None for NaN and infinities, which JSON has no word for."""
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None


class Phases:
    """Seconds by phase, over the run and over the current step.

    around(name): a context manager that every phase runs inside; a tool that measures phases sets its own.
    """

    def __init__(self, device=None):
        self.device = device
        self.around: Callable[[str], AbstractContextManager] = nullcontext
        self.total: dict[str, float] = {}
        self.step: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        with self.around(name):
            self.wait()
            start = time.perf_counter()
            try:
                yield
            finally:
                self.wait()
                self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        self.total[name] = self.total.get(name, 0.0) + seconds
        self.step[name] = self.step.get(name, 0.0) + seconds

    def next_step(self) -> dict[str, float]:
        """The finished step's seconds by phase, as metrics."""
        metrics = {f"{name}_seconds": seconds for name, seconds in self.step.items()}
        self.step = {}
        return metrics

    def wait(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def component_memory(**components) -> dict[str, dict[str, int]]:
    """Bytes of weights, gradients, optimizer state and float32 masters of each (model, optimizer or None), counted
    tensor by tensor.

    Gradients are those that training holds at once: one per trainable parameter, of its master's type if it has one.
    What two components share counts for the first.
    """
    memory, seen = {}, set[int]()
    for name, (model, optimizer) in components.items():
        parameters = [p for p in model.parameters() if id(p) not in seen]
        seen |= {id(p) for p in parameters}
        stepped = [getattr(p, "master", p) for p in parameters if p.requires_grad] if optimizer is not None else []
        entries = [optimizer.state.get(p, {}) for p in stepped]
        state = {id(t): t for entry in entries for t in entry.values() if hasattr(t, "numel")}  # some are shared
        memory[name] = {
            "parameters": sum(p.numel() for p in parameters),
            "weights": sum(p.numel() * p.element_size() for p in parameters),
            "gradients": sum(p.numel() * p.element_size() for p in stepped),
            "optimizer": sum(t.numel() * t.element_size() for t in state.values()),
            "master": sum(p.master.numel() * p.master.element_size() for p in parameters if hasattr(p, "master")),
        }
    return memory


def peak_memory(device, before: int) -> dict[str, int | str]:
    """The run's peak memory: of torch's allocator on CUDA; of the process, less `before`, on the CPU.

    before: resident_bytes() when the libraries were imported and no model was loaded.
    """
    if device.type == "cuda":
        import torch

        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "source": "torch allocator, CUDA"}
    return {
        "peak_bytes": resident_bytes() - before,
        "source": "growth of the process's resident memory after imports, CPU",
    }


class Progress:
    """A bar on the terminal; a line now and then where the output is a file, so that logs stay readable."""

    def __init__(self, total: int, name: str, unit: str = "step"):
        self.total, self.name, self.last, self.started = total, masked(name), 0.0, time.time()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=self.name, unit=unit, dynamic_ncols=True)

    def update(self, done: int, **figures: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix({k: _figure(v) for k, v in figures.items()}, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.time()
        if done < self.total and now - self.last < PROGRESS_SECONDS:
            return
        self.last = now
        filled = round(20 * done / self.total)
        shown = "  ".join(f"{k} {_figure(v)}" for k, v in figures.items())
        print(
            f"  {self.name:<24} [{'#' * filled}{'.' * (20 - filled)}] {done}/{self.total}"
            f"  {now - self.started:.0f} s  {shown}",
            file=sys.stderr,  # a job's log, from which the run of Snakemake shows it
            flush=True,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def warn_if_budget_left(config, limit: str, generated: int) -> None:
    """Say so if a stage has generated fewer tokens than its budget; limit: the setting that has ended it, "steps"."""
    if config.budget_tokens is not None and generated < config.budget_tokens:
        print(
            f"warning: {getattr(config, limit)} {limit} generated {generated} of budget_tokens = "
            f"{config.budget_tokens} tokens; raise {limit}"
        )


def stage_parser(description: str, tunable: bool = False) -> argparse.ArgumentParser:
    """The options that every stage's command has; tunable: of a stage whose configuration may be chosen on dev."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--settings", required=True, help="this stage's settings, as JSON")
    parser.add_argument("--out", required=True, help="folder for run.json, metrics.jsonl, samples.jsonl and results")
    parser.add_argument("--name", default="", help="how the progress line calls this run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads to use (default: all)")
    if tunable:
        parser.add_argument("--tuned", metavar="FILE", help="a choice of settings, JSON; they stand over --settings")
    return parser


def resumable_parser(description: str, tunable: bool = False) -> argparse.ArgumentParser:
    """The options of a stage that saves its state; pipelines/rules/common.smk sets the variable to the study's."""
    parser = stage_parser(description, tunable)
    default = os.environ.get("STAGE_SAVING", "{}")
    parser.add_argument(
        "--saving", default=default, help="when its state is saved, as JSON (default: every 10 minutes)"
    )
    return parser


def use_threads(threads: int) -> None:
    """Compute with `threads` CPU threads and no more."""
    if threads < 1:
        raise SettingsError(f"--threads must be at least 1, got {threads}.")
    import torch

    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)


def load_settings(text: str, tuned: str | None = None) -> dict:
    """The settings of --settings; tuned: a file with chosen ones, which stand over them."""
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--settings is not JSON: {error.msg} at character {error.pos}.") from None
    except (RecursionError, ValueError) as error:
        raise SettingsError(f"--settings cannot be read as JSON: {str(error).partition(';')[0]}.") from None
    return settings if tuned is None else with_choice(settings, tuned)


def main_guard(main) -> None:
    """Run a stage's main; bad input ends it with one line on stderr and exit status 2, without a traceback.

    After Ctrl-C, SIGTERM or a crash the unfinished record is set aside, as interrupted-run.json and so on: Snakemake
    makes the stage again without asking, and what was measured is kept. After SIGTERM the status is signals.TRY_AGAIN.
    """
    signals.listen()
    if parent := int(os.environ.get("STAGE_PARENT") or 0):  # set by rules/common.smk; 0: in another container
        signals.follow(parent)
    mask_tracebacks()
    has_imported()
    try:
        main()
    except KeyboardInterrupt:
        _set_aside("interrupted")
        raise SystemExit(130) from None
    except signals.Stopped:
        signals.grant(None)  # its alarm would kill an interpreter that is slow to end
        _set_aside("interrupted")
        raise SystemExit(signals.TRY_AGAIN) from None
    except SettingsError as error:
        _set_aside("failed")
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except SystemExit:
        _set_aside("failed")
        raise
    except BaseException as error:
        with suppress(OSError):  # the disk may be full
            _set_aside("failed")  # Snakemake deletes a failed stage's files; what was measured until then stays
        settings, out = next(((r.facts["settings"], str(r.out)) for r in Record.unfinished), ({}, "the results"))
        said = explained(error, settings, out)
        if said is None:
            raise
        _say(f"error: {said}")
        raise SystemExit(1) from None


def _say(text: str) -> None:
    print(masked(text), file=sys.stderr)
    if not sys.stderr.isatty():  # a log file: say it where the user looks, too
        print(masked(text), flush=True)


def _set_aside(status: str) -> None:
    for record in Record.unfinished:
        record.set_aside(status)
