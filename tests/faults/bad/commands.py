"""A command of the project, called in this process: `python -m MODULE words`, with its exit status and what it says."""

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from unittest.mock import patch

from algos.training.stage.record import Record, main_guard

STAGES = ("algos.training.", "evaluation.data", "evaluation.evaluate")  # they run inside main_guard
NOT_STAGES = ("algos.training.stage.mirror",)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int | str | None
    err: str
    crash: str | None = None  # an exception that nobody caught

    @property
    def sentence(self) -> str:
        """The last line of standard error, which a refusal says; argparse says its usage above."""
        return (self.err.strip().splitlines() or [""])[-1]


def call(module: str, *words: str) -> Said:
    """Run the module's `main` as the command line would, without a network."""
    name = "pipelines.__main__" if module == "pipelines" else module
    name = (
        f"{name}.__main__"
        if module in ("algos", "evaluation.memory", "evaluation.bench", "evaluation.report")
        else name
    )
    name = "evaluation.bench.command" if module == "evaluation.bench" else name
    main, err, handler, status = import_module(name).main, io.StringIO(), signal.getsignal(signal.SIGTERM), 0
    arguments = [list(words)] if module == "pipelines.study" else []
    crash = None
    with (
        patch.object(sys, "argv", [module, *words]),
        patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}),
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            if module.startswith(STAGES) and module not in NOT_STAGES:
                main_guard(main)
            else:
                main(*arguments)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            crash = f"{type(error).__name__}: {error}"
        finally:
            signal.signal(signal.SIGTERM, handler)
            Record.unfinished.clear()
    return Said(status, err.getvalue(), crash)
