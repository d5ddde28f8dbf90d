"""What a run of Snakemake shows: on a terminal a line for each running job, in a log plain lines.

The lines come from Snakemake's log events and from the jobs' own logs, so they are the same on a cluster. Snakemake's
file in .snakemake/log/ holds its own messages as ever, and --verbose, --printshellcmds and --quiet leave them as they
are. A plugin could not do this: Snakemake finds none in an editable installation.
"""

import io
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from snakemake.logging import ColorizingTextHandler, logger
from snakemake_interface_logger_plugins.common import LogEvent

TAIL = 4096  # bytes of a log, from its end
BAR = re.compile(r"\[[#.]+\] \d.*")  # of algos.training.stage.record.Progress
REPLACED = (LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS)
SELECTION = "Select jobs to execute..."
TERMINAL_SECONDS, LOG_SECONDS = 1.0, 60.0  # between two looks at the jobs
CLOCKS = 1.0  # seconds by which a file system's clock may be behind; the kernel's own is by some milliseconds


@dataclass
class Job:
    """A running job, or one that waits in the queue of a cluster."""

    name: str
    logs: list[str]
    started: float = field(default_factory=time.time)
    shown: str = ""

    def state(self) -> str:
        """The last progress line of its log, and before there is one, how long it has been running."""
        for log in map(Path, self.logs):
            if log.is_file() and log.stat().st_mtime >= self.started - CLOCKS:
                with log.open("rb") as file:
                    file.seek(max(log.stat().st_size - TAIL, 0))
                    bars = BAR.findall(file.read().decode(errors="replace"))
                if bars:
                    return bars[-1].strip()
        return duration(time.time() - self.started)


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


class Jobs(logging.Handler):
    """Follows the jobs by Snakemake's events; what it has to say goes to `say`, a line a call."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self.say, self.running, self.finished, self.done = say, dict[int, Job](), list[str](), ""

    def emit(self, record: logging.LogRecord) -> None:
        event, facts = getattr(record, "event", None), record.__dict__
        if event == LogEvent.JOB_INFO and facts["rule_msg"]:
            self.running[facts["jobid"]] = Job(facts["rule_msg"], list(facts["log"] or []))
            self.started(facts["rule_msg"])
        elif event == LogEvent.JOB_ERROR:
            self.running.pop(facts["jobid"], None)
        elif event == LogEvent.JOB_FINISHED and facts["job_id"] in self.running:
            job = self.running.pop(facts["job_id"])
            self.finished.append(f"{job.name}: {duration(time.time() - job.started)}")
        elif event == LogEvent.PROGRESS:
            self.done = f"{facts['done']} of {facts['total']} jobs done"
            for line in self.finished:
                self.say(f"{facts['done']}/{facts['total']} {line}")
            self.finished.clear()
            self.moved()

    def started(self, name: str) -> None:
        self.say(f"begins: {name}")

    def moved(self) -> None:
        """After a job has ended."""

    def look(self) -> None:
        """Say how the running jobs stand, those that have moved on."""
        for job in [*self.running.values()]:
            state = job.state()
            if BAR.match(state) and state != job.shown:
                self.say(f"{job.name} {state}")
            job.shown = state


class JobsOnTerminal(Jobs):
    """Running jobs stand at the bottom of the screen, finished ones above."""

    def __init__(self, screen: "Screen"):
        super().__init__(lambda line: screen.put(f"{line}\n"))
        self.screen = screen

    def started(self, name: str) -> None:
        self.look()

    def moved(self) -> None:
        self.look()

    def look(self) -> None:
        jobs = [*self.running.values()]
        width = max((len(job.name) for job in jobs), default=0)
        self.screen.draw([*(f"{job.name:<{width}}  {job.state()}" for job in jobs), *filter(None, [self.done])])

    def close(self) -> None:
        self.screen.draw([])
        super().close()


class Screen(io.TextIOBase):
    """A terminal with lines at the bottom that are drawn again; what is written comes above them."""

    def __init__(self, stream):
        self.stream, self.lines, self.pending, self.lock = stream, list[str](), "", threading.RLock()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.put(text)
        return len(text)

    def put(self, text: str) -> None:
        """Show the text, once its line is whole, with the next flush."""
        with self.lock:
            self.pending += text

    def flush(self) -> None:
        self.draw(self.lines)

    def draw(self, lines: list[str]) -> None:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in lines[: max(size.lines - 2, 1)]]
        with self.lock:
            if lines == self.lines and "\n" not in self.pending:
                return
            above, end, self.pending = self.pending.rpartition("\n")
            up = "\x1b[1A\x1b[2K" * len(self.lines)
            self.stream.write(f"\r{up}{above}{end}" + "".join(f"{line}\n" for line in lines))
            self.stream.flush()
            self.lines = lines


def follow() -> None:
    """Show the jobs of this run, unless Snakemake is asked for more, for less, or for another logger."""
    own = next((h for h in logger.handlers if isinstance(h, ColorizingTextHandler)), None)
    if own is None:
        return
    asked: Any = own.filters[0]
    if asked.quiet or asked.verbose or asked.printshellcmds:
        return
    own.addFilter(lambda record: getattr(record, "event", None) not in REPLACED and record.msg != SELECTION)
    if own.is_tty:
        screen = Screen(own.stream)
        own.setStream(screen)
        _show_output_above(screen)
        jobs: Jobs = JobsOnTerminal(screen)
        seconds = TERMINAL_SECONDS
    else:
        jobs = Jobs(partial(_plain, own.stream))
        seconds = LOG_SECONDS
    logger.addHandler(jobs)
    threading.Thread(target=_look_again, args=(jobs, seconds), daemon=True).start()


def _plain(stream: TextIO, line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=stream, flush=True)


def _look_again(jobs: Jobs, seconds: float) -> None:
    while jobs in logger.handlers:
        jobs.acquire()
        try:
            jobs.look()
        finally:
            jobs.release()
        time.sleep(seconds)


def _show_output_above(screen: Screen) -> None:
    """Let what the jobs print come above the lines: this process's standard output, which they inherit, is a pipe."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)

    def read() -> None:
        with open(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                screen.write(line)
                screen.flush()

    threading.Thread(target=read, daemon=True).start()
