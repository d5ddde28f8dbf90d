"""Every mutant in a forked process of its own: the mutated module in place of the file, pytest until a test fails."""

import contextlib
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mutants import Mutant

TESTS = (  # tests of the mathematics alone: the tests of the mutated file first, then all others, fastest first
    *("masked", "kl", "ratios", "clipping", "aggregation", "advantages", "critic", "correction", "limits"),
    *("ppo", "grpo", "grpo_variants", "gspo", "gmpo", "cispo", "sapo", "reinforce", "trpo"),
    *("dppo", "vespo", "topr", "dro", "m2po", "clip_cov", "top_entropy"),
    *("conformance_masks", "conformance_advantages", "conformance_gradients"),
    *("reference_losses", "defaults", "bad_settings", "exact"),
)
SLOW = (  # left out, because slow: all combinations of the pieces, other processes, sampling
    "not every_combination and not test_warnings_are_printed and not test_sampled and not test_the_tables"
)
OWN_TESTS = {"distillation": ["distillation"]}  # modules whose tests are too slow to run for every other mutant


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out a mutated module in place of its file."""

    def __init__(self, mutant: Mutant):
        self.mutant, self.module = mutant, mutant.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            return importlib.util.spec_from_loader(name, self, origin=self.mutant.file)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.mutant.tree, self.mutant.file, "exec"), module.__dict__)


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (import)"


@dataclass(frozen=True)
class Outcome:
    passed: bool
    by: str  # the first failing test, or the signal that ended it: 24 is the time limit
    seconds: float  # of processor time
    modules: tuple[str, ...] = ()  # that the process imported besides ours


def child(mutant: Mutant | None, runs: list[list[str]], pipe: int, limit: float) -> None:
    """In the forked process: pytest on one list of files after another until one fails; the report goes to the pipe."""
    import pytest

    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    if mutant is not None:
        sys.meta_path.insert(0, Mutated(mutant))
    failure, code = FirstFailure(), 0
    for files in runs:
        code = code or pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-k", SLOW, *files], plugins=[failure]
        )
    ours = {"algos", "evaluation", "pipelines", "conftest", "tiny", "cases", "__main__"}
    ours |= {"mistakes", "mutants", "processes"}
    modules = [m for m in sys.modules if m.split(".")[0] not in ours and not m.startswith("test_")]
    with os.fdopen(pipe, "w") as report:
        json.dump(
            {
                "passed": int(code) == 0,
                "by": failure.name or f"import, pytest exit code {int(code)}",
                "modules": modules,
            },
            report,
        )
    os._exit(0)


class Process:
    """A forked run with a limit on its processor time; on the clock it may take five times as long."""

    def __init__(self, mutant: Mutant | None, runs: list[list[str]], limit: float):
        self.mutant, self.limit, self.start, self.text = mutant, limit, time.monotonic(), b""
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                child(mutant, runs, theirs, limit)
            finally:
                os._exit(70)
        os.close(theirs)
        os.set_blocking(self.pipe, False)

    def poll(self) -> Outcome | None:
        """The outcome, or None as long as it runs."""
        self._read()
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0 and time.monotonic() - self.start < 5 * self.limit:
            return None
        if pid == 0:
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        self._read()
        os.close(self.pipe)
        seconds = usage.ru_utime + usage.ru_stime
        if not self.text:
            return Outcome(False, f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "crash", seconds)
        found = json.loads(self.text)
        return Outcome(found["passed"], "" if found["passed"] else found["by"], seconds, tuple(found["modules"]))

    def _read(self) -> None:  # from time to time, or a long report would block the child
        try:
            while part := os.read(self.pipe, 65536):
                self.text += part
        except BlockingIOError:
            pass

    def wait(self) -> Outcome:
        while (outcome := self.poll()) is None:
            time.sleep(0.02)
        return outcome


def test_file(name: str) -> str:
    """The path of a test file, from its name and whatever folder it stands in."""
    found = sorted(Path("tests").rglob(f"test_{name}.py"))
    return found[0].as_posix() if found else f"tests/**/test_{name}.py"


def baseline(names: list[str]) -> dict[str, float]:
    """Seconds of each test file without a mutant; what fails is left out, and said. SystemExit if a file is missing."""
    seconds = {}
    if missing := [test_file(name) for name in names if not Path(test_file(name)).exists()]:
        raise SystemExit(f"no such test: {', '.join(missing)}")
    for name in names:
        outcome = Process(None, [[test_file(name)]], 600).wait()
        for module in outcome.modules:  # from now on every fork has them
            if module.split(".")[0] in ("torch", "numpy", "transformers", "tokenizers", "yaml", "pandas", "scipy"):
                with contextlib.suppress(ImportError):  # a submodule that only its package can import
                    importlib.import_module(module)
        if outcome.passed:
            seconds[name] = outcome.seconds
        else:
            print(f"left out: {test_file(name)} fails without a mutant: {outcome.by}")
    return seconds


def schedule(mutant: Mutant, seconds: dict[str, float]) -> list[list[str]]:
    """The mutated file's own tests, then the others, fastest first."""
    stem = Path(mutant.file).stem
    own = [name for name in OWN_TESTS.get(stem, [stem]) if name in seconds]
    if stem in OWN_TESTS:
        return [[test_file(name) for name in own]]
    rest = sorted((name for name in seconds if name in TESTS and name not in own), key=seconds.__getitem__)
    return [[test_file(name) for name in names] for names in (own, rest) if names]


def run(chosen: list[Mutant], seconds: dict[str, float], jobs: int) -> list[tuple[Mutant, Outcome]]:
    limit = 20 + 2 * sum(seconds.values())
    waiting, running, done = list(reversed(chosen)), [], []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running.append(Process(mutant, schedule(mutant, seconds), limit))
        for process in list(running):
            if (outcome := process.poll()) is not None:
                running.remove(process)
                done.append((process.mutant, outcome))
                if outcome.passed:
                    print(f"survived  {process.mutant.name}\n{process.mutant.diff}", flush=True)
                elif len(done) % 25 == 0:
                    print(f"{len(done)} of {len(chosen)}", flush=True)
        time.sleep(0.02)
    order = {id(mutant): i for i, mutant in enumerate(chosen)}
    return sorted(done, key=lambda pair: order[id(pair[0])])
