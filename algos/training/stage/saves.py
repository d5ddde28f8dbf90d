"""Saved states: a stage that was killed goes on where it last saved, and ends as if it had never been killed.

The states lie in the folder `resume` of a stage's results, outside of what Snakemake declares and hence deletes, until
the stage is finished. A state is a folder: tensors as safetensors, values as JSON, the metrics and samples so far, and
checksums of all. It is written under another name, brought to the disk and then renamed, so that it is whole or absent.
The last two are kept: if the newest is damaged, the one before is used.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from algos.training.stage import signals
from algos.training.stage.config import Saving
from algos.training.stage.environment import PROJECT
from algos.training.stage.record import LINES, Phases, Record, States
from algos.training.stage.state import pack, random_states, set_random_states, unpack

FOLDER = "resume"
KEPT = 2
SHARE = 0.01  # of a stage's time that saving may take: a large state is saved less often than the settings say
BYTES_A_FILE = 1 << 30  # of tensors; as much more memory is needed while a state is written
VALUES, CHECK, UNFINISHED = "state.json", "state.sha256", "unfinished"
CODE = ("algos", "evaluation/tasks")  # what a result depends on


class Saves(States):
    """The saved states of one stage. Give it to the stage's Record, then let it hold what the stage changes.

    saves = Saves(out, saving, inputs)           # inputs: the checkpoints and files that the stage reads
    record = Record(out, ..., saves=saves)       # begins with the lines of the saved state, if there is one
    saves.hold(state, phases)                    # the state is as it was saved
    for ...: step, record.log; saves.after_step()
    record.finish()                              # removes the saved states
    """

    def __init__(self, out: str | Path, saving: Saving, inputs: Iterable[str | Path | None]):
        self.folder, self.saving, self.inputs = Path(out) / FOLDER, saving, list(inputs)
        self.count, self.seconds, self.steps = 0, 0.0, 0  # saves of this process, their time; steps since the last one
        self.found: Path | None = None  # the state that the stage goes on from
        self.last = time.monotonic()

    def find(self, record: Record) -> tuple[dict, dict[str, bytes]] | None:
        """Of the newest state that is whole and of the same stage: same settings, inputs, code and packages."""
        self.record, self.fingerprint = record, fingerprint(record.facts, self.inputs)
        for folder in reversed(_folders(self.folder)):
            try:
                values = verified(folder)
            except (OSError, ValueError) as error:
                _say(f"{folder} is damaged ({error}); looking for an earlier state")
                continue
            changed = [key for key, digest in self.fingerprint.items() if values["fingerprint"].get(key) != digest]
            if changed:
                _say(f"{folder} is of a stage with other {' and '.join(changed)}; it is not used")
                continue
            self.found = folder
            lost = max(self.folder.stat().st_mtime - values["time"], 0.0)
            return {**values["record"], "lost_seconds": lost}, {name: (folder / name).read_bytes() for name in LINES}
        return None

    def hold(self, state: Any, phases: Phases | None = None) -> bool:
        """Save this state from now on. If the stage goes on, make it equal to the saved one first, and return True."""
        self.state, self.phases = state, phases
        self.last = time.monotonic()
        signals.grant(self.saving.grace_seconds if self.saving.on else None)
        if self.found is None:
            return False
        values = verified(self.found)
        tensors = {key: t for path in self.found.glob("*.safetensors") for key, t in load_file(path).items()}
        unpack(state, values["state"], tensors, "state")
        set_random_states(unpack(random_states(), values["random"], tensors, "random"))
        if phases is not None:
            phases.total, phases.step = values["phases"]
        return True

    def after_step(self) -> None:
        """Save if it is time to. After a SIGTERM, save in any case and end the stage: raises Stopped."""
        self.steps += 1
        if signals.asked() or self._due():
            self.save()
        if signals.asked():
            raise signals.Stopped

    def _due(self) -> bool:
        steps, minutes = self.saving.steps, self.saving.minutes
        if steps is not None and self.steps >= steps:
            return True
        cost = self.seconds / max(self.count, 1)
        return minutes is not None and time.monotonic() - self.last >= max(60 * minutes, cost / SHARE)

    def save(self) -> None:
        start = time.monotonic()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        tensors: dict[str, Tensor] = {}
        values = {
            "fingerprint": self.fingerprint,
            "time": time.time(),
            "record": self.record.saved(),
            "phases": [self.phases.total, self.phases.step] if self.phases is not None else [{}, {}],
            "state": pack(self.state, tensors, "state"),
            "random": pack(random_states(), tensors, "random"),
        }
        write(self.folder, values, tensors, self.record.written())
        self.count, self.steps, self.last = self.count + 1, 0, time.monotonic()
        self.seconds += self.last - start

    def alive(self) -> None:
        """Called with every line of metrics: how long a stage lived after its last save is how much it lost."""
        if self.count or self.found is not None:
            os.utime(self.folder)

    def clear(self) -> None:
        """The stage is finished: its states are not needed again."""
        signals.grant(None)
        shutil.rmtree(self.folder, ignore_errors=True)


def write(folder: Path, values: dict, tensors: dict[str, Tensor], texts: dict[str, bytes]) -> None:
    """A new state in `folder`, whole or not at all; all but the last KEPT are then deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    known = _folders(folder)
    number = int(known[-1].name) + 1 if known else 0
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    for i, part in enumerate(_parts(tensors)):
        save_file(part, unfinished / f"tensors-{i}.safetensors")
    for name, text in texts.items():
        (unfinished / name).write_bytes(text)
    files = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
    (unfinished / VALUES).write_text(json.dumps({**values, "files": files}), encoding="utf-8")
    (unfinished / CHECK).write_text(_digest(unfinished / VALUES), encoding="utf-8")
    for path in (*unfinished.iterdir(), unfinished):
        _to_disk(path)
    unfinished.rename(folder / f"{number:06d}")
    _to_disk(folder)
    for old in _folders(folder)[:-KEPT]:
        shutil.rmtree(old)


def verified(folder: Path) -> dict:
    """The values of a state. Raises OSError or ValueError unless all its files are there and as they were written."""
    if _digest(folder / VALUES) != (folder / CHECK).read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{VALUES} is not as it was written")
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    for name, digest in values["files"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not as it was written")
    return values


def _folders(folder: Path) -> list[Path]:
    """The states in a folder, the oldest first."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(r"\d{6,}", path.name))


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors on the CPU, some for each file; safetensors takes none that share memory."""
    part: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        part[name] = tensor.clone() if place in places else tensor
        places.add(place)
        if sum(t.numel() * t.element_size() for t in part.values()) >= BYTES_A_FILE:
            yield part
            part, places = {}, set()
    if part:
        yield part


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _say(text: str) -> None:
    print(f"resume: {text}", file=sys.stderr, flush=True)


def fingerprint(facts: dict, inputs: list[str | Path | None]) -> dict[str, str]:
    """What a stage's result depends on, one digest each: a saved state of another one would make a third."""
    settings = [facts.get(key) for key in ("kind", "trainer", "settings", "device")]
    code = sorted({path for folder in CODE for path in (PROJECT / folder).rglob("*.py")})
    parts: dict[str, Any] = {
        "settings": [*settings, torch.cuda.is_available()],  # what `device: auto` means
        "inputs": [_input(path) for path in inputs],
        "code": [_digest(path) for path in (*code, *_own_files(facts.get("settings")))],
        "packages": [facts.get("python"), facts.get("packages")],
    }
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in parts.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def _input(path: str | Path | None) -> Any:
    """Names, sizes and times of an input's files, as weights are large; of a hub id its name."""
    if path is None or not Path(path).exists():
        return path
    found = [Path(path), *Path(path).rglob("*")]
    files = sorted(file for file in found if file.is_file() and not file.name.startswith("."))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _own_files(settings: Any) -> list[Path]:
    """The user's own algorithms and rewards that settings name, as FILE.py or FILE.py:NAME."""
    if isinstance(settings, dict):
        return _own_files([*settings, *settings.values()])
    if isinstance(settings, (list, tuple)):
        return [path for item in settings for path in _own_files(item)]
    path = Path(settings.partition(":")[0]) if isinstance(settings, str) else Path()
    return [path] if path.suffix == ".py" and path.is_file() else []
