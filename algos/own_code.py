"""Functions and entries in files of the user's own, which a study names by path: FILE.py or FILE.py:NAME."""

import hashlib
import os
import sys
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from algos.packages import show_all_packages
from algos.pieces.settings import SettingsError

FOLDERS: set[Path] = set()  # of the files that have been run


def from_file(place: str, default: str, kind: type, where: str):
    """What the name in place, or else default, stands for in its file. Raises SettingsError unless it is of kind."""
    path, _, name = place.partition(":")
    name = name or default
    file = Path(path)
    if not file.is_file():
        raise SettingsError(f"{where}: there is no file {path!r}.")
    module = _module(str(file.resolve()), file.stat().st_mtime_ns)
    if not hasattr(module, name):
        raise SettingsError(f"{where}: {path} defines no {name}.")
    found = getattr(module, name)
    if not isinstance(found, kind):
        raise SettingsError(f"{where}: {name} of {path} must be of type {kind.__name__}, got {type(found).__name__}.")
    return found


@lru_cache
def _module(path: str, changed: int):
    """The file's module, run once as long as it does not change."""
    name = f"own_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    show_all_packages()
    try:
        with _files_beside(Path(path).parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        del sys.modules[name]
        line = next((e.lineno for e in reversed(_frames(error)) if e.filename == path), None)
        at = f", line {line}" if line is not None else ""
        raise SettingsError(f"{path}{at}: {type(error).__name__}: {str(error).partition(chr(10))[0]}.") from error
    return module


@contextmanager
def _files_beside(folder: Path):
    """While it is open, files of the folder are imported before others, as where Python runs one of them.

    Other folders may have files of the same names, so that what stands beside a file is forgotten for other imports.
    """
    _forget_files_beside()
    FOLDERS.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # for what functions import when they run
        _forget_files_beside()


def _forget_files_beside() -> None:
    below = tuple(f"{folder}{os.sep}" for folder in FOLDERS)
    for name, module in list(sys.modules.items()):
        top, file = name.partition(".")[0], getattr(module, "__file__", None) or ""
        if not file.startswith(below) or top in ("algos", "evaluation", "pipelines"):
            continue
        if any(file == f"{folder}{top}.py" or file.startswith(f"{folder}{top}{os.sep}") for folder in below):
            del sys.modules[name]


def _frames(error: BaseException) -> list:
    import traceback

    return list(traceback.extract_tb(error.__traceback__))
