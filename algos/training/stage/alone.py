"""One process at a time makes a stage: two that write into one folder would leave a mixture of both.

It happens where Snakemake is killed and started again before the stage that it had started has ended.
"""

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TextIO

LOOK_SECONDS = 0.2


class Alone:
    """Held from its beginning to release(), or to the end of the process. A second process waits for its turn.

    out: the stage's folder. The lock lies beside it, as Snakemake may delete the folder of a stage that it makes again.
    Where it cannot be written, or on a file system without locks, nothing is held.
    """

    held: ClassVar[dict[Path, TextIO]] = {}  # by this process, which makes one stage after the other

    def __init__(self, out: Path):
        out = out.resolve()
        self.path = out.with_name(f".{out.name}.lock")
        if earlier := Alone.held.pop(self.path, None):
            earlier.close()
        with suppress(OSError):
            Alone.held[self.path] = self._wait()

    def _wait(self) -> TextIO:
        said = False
        while (file := self._taken()) is None:
            if not said:
                print(f"waiting for {self._holder()}, which still makes this stage", file=sys.stderr, flush=True)
            said = True
            time.sleep(LOOK_SECONDS)
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        return file

    def _holder(self) -> str:
        with suppress(OSError):
            return self.path.read_text(encoding="utf-8") or "a process"
        return "a process"

    def _taken(self) -> TextIO | None:
        """The lock, if it can be held, and is the one that lies there: who releases it removes it."""
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._lies_there(file):
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            file.close()
            raise
        file.close()
        return None

    def _lies_there(self, file: TextIO) -> bool:
        return os.path.samestat(os.fstat(file.fileno()), self.path.stat())

    def release(self) -> None:
        if file := Alone.held.pop(self.path, None):
            with suppress(FileNotFoundError):
                if self._lies_there(file):
                    self.path.unlink()
            with suppress(OSError):
                file.close()
