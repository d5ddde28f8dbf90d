"""A malformed input: the command that reads it, and what the command's one sentence must say."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bad.commands import call


@dataclass(frozen=True)
class Case:
    what: str
    words: Callable[[Path], list[str]]  # writes the input into a folder; returns the module and its words
    says: str  # what the sentence must match

    def fault(self, folder: Path) -> str | None:
        """What is wrong with the command's answer; None if it is the right sentence."""
        said = call(*self.words(folder))
        if said.crash is not None:
            return f"crashes with {said.crash[:300]}"
        if said.status != 2:
            return f"ends with {said.status}, not 2: {said.sentence[:300]}"
        if "Traceback" in said.err or not re.search(self.says, said.sentence):
            return f"says {said.sentence[:400]!r}, not {self.says!r}"
        return None
