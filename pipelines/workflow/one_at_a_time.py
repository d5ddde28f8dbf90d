"""One Snakemake at a time makes a study, and one that was killed is in nobody's way.

Snakemake's own locks are files: after SIGKILL or a power cut they stay, and the next run is told to use --unlock. The
lock here is the kernel's, which ends with its process. Where a file system has none, Snakemake's locks stay.
"""

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

NAME = ".snakemake_lock"  # in the results of a study
SNAKEMAKES = Path(".snakemake", "locks")
TRIES, SECONDS = 5, 0.2  # another process may just look who holds it

_held: dict[Path, TextIO] = {}  # by this process


def hold(results: str) -> str | None:
    """Make the study alone from now on. If another process makes it already, that one in words, and nothing is held."""
    path = Path(results, NAME).resolve()
    release(results)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _held[path] = file
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return None
            time.sleep(SECONDS)
    except OSError:  # a file system without locks, or one that may not be written; the jobs will say so
        return None
    with file:
        file.seek(0)
        return file.read() or "another process"


def release(results: str) -> None:
    """Make it no longer."""
    if file := _held.pop(Path(results, NAME).resolve(), None):
        file.truncate(0)
        file.close()


def look(results: str, locks: Path = SNAKEMAKES) -> str | None:
    """The process that makes the study now, in words, if it is another one.

    If it was killed on this machine, the locks that it has left on the results are removed.
    """
    path = Path(results, NAME).resolve()
    if path in _held:
        return None
    try:
        with path.open("r+", encoding="utf-8") as file:
            said = file.read()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if said.endswith(f" on {socket.gethostname()}"):  # not released, and here no living process holds it
                _remove(locks, results)
                file.truncate(0)
    except BlockingIOError:
        return said or "another process"
    except OSError:  # nothing was made yet, or it cannot be told
        pass
    return None


def _remove(locks: Path, results: str) -> None:
    """Snakemake's locks on files below the results."""
    for lock in locks.glob("*.lock"):
        with suppress(OSError):
            if any(Path(file).is_relative_to(results) for file in lock.read_text(encoding="utf-8").splitlines()):
                lock.unlink()
