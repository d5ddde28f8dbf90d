"""A stage's main in a fork of a process that has imported vLLM, which takes 13 s of a CPU each time."""

import contextlib
import multiprocessing
import sys
import traceback
from importlib import import_module
from pathlib import Path

from algos.training.stage.record import main_guard

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vllm.entrypoints.llm"])  # the project itself is imported in the fork, by its sys.path


def main_of(module: str, words: list[str], log: Path) -> None:
    sys.argv = [module, *words]
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        try:
            main_guard(import_module(module).main)
        except Exception:
            traceback.print_exc()
            raise


def run_forked(module: str, words: list[str], log: Path) -> None:
    """What `python -m module` does; what it says on stderr is in the log."""
    process = FORKS.Process(target=main_of, args=(module, words, log))
    process.start()
    process.join(400)
    process.kill()  # one that hangs
    process.join()
    assert process.exitcode == 0, log.read_text(encoding="utf-8")[-3000:]
