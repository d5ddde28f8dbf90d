"""One Snakemake at a time makes a study, and one that was killed is in nobody's way.

Snakemake's own locks are files: after SIGKILL or a power cut they stay, and the next run is told to use --unlock. The
lock here is the kernel's, which ends with its process.
"""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TextIO

NAME = ".snakemake_lock"  # in the results of a study
SNAKEMAKES = Path(".snakemake", "locks")

_held: dict[Path, TextIO] = {}  # by this process


def holder(results: str) -> str | None:
    """The process that makes the study now, in words; None if there is none but this one."""
    path = Path(results, NAME).resolve()
    try:
        with path.open(encoding="utf-8") as file:
            said = file.read()
            if path not in _held:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return said or "another process"
    except OSError:  # nothing was made yet, or a file system without locks
        return None
    return None


def hold(results: str) -> str | None:
    """Make the study alone from now on. If another process makes it already, that one in words, and nothing is held."""
    path = Path(results, NAME).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _held.pop(path, None) or path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(results)
    except OSError:  # a file system without locks
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held[path] = file
    return None


def release(results: str) -> None:
    """Make it no longer."""
    if file := _held.pop(Path(results, NAME).resolve(), None):
        file.close()


def forget_killed(results: str, locks: Path = SNAKEMAKES) -> None:
    """Remove the locks that a Snakemake which no longer lives has left on the results of a study."""
    for lock in locks.glob("*.lock"):
        with suppress(OSError):
            if any(Path(file).is_relative_to(results) for file in lock.read_text(encoding="utf-8").splitlines()):
                lock.unlink()
