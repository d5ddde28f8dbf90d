"""SIGTERM: what a scheduler sends before it takes a machine away. A stage that saves its state finishes its step first.

A stage that ends by SIGTERM has the exit status 75 (EX_TEMPFAIL of sysexits.h): the same command goes on.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass

from algos.training.stage.environment import began

TRY_AGAIN = os.EX_TEMPFAIL
LOOK_SECONDS = 2.0  # between two looks at the process that a stage follows


class Stopped(BaseException):
    """SIGTERM has come, and the stage ends now. No Exception, so that nothing that handles errors takes it for one."""


@dataclass
class _Termination:
    grace_seconds: float | None = None  # None: there is no state to save, so a stage ends at once
    asked: bool = False


_now = _Termination()


def listen() -> None:
    """Handle SIGTERM from now on."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def follow(pid: int) -> None:
    """End this stage, as by SIGTERM, when the process that started it is gone: Snakemake, killed alone."""
    if began(os.getpid()) is not None:  # else this system has no /proc to look at
        threading.Thread(target=_follow, args=(pid, began(pid)), daemon=True).start()


def _follow(pid: int, at: int | None) -> None:
    while at is not None and began(pid) == at:
        time.sleep(LOOK_SECONDS)
    if not _now.asked:  # a second one would not let the stage end its step
        os.kill(os.getpid(), signal.SIGTERM)


def grant(grace_seconds: float | None) -> None:
    """From now on a SIGTERM leaves so many seconds to end the step and save; None: it ends the stage at once."""
    _now.grace_seconds = grace_seconds
    if grace_seconds is None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # a stage that has ended in time has ended


def asked() -> bool:
    """Whether SIGTERM has come and the stage is to save and end."""
    return _now.asked


def _on_sigterm(*_) -> None:
    if _now.grace_seconds is None or _now.asked:
        raise Stopped
    _now.asked = True
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, max(_now.grace_seconds, 1e-3))


def _too_late(*_) -> None:
    raise Stopped
