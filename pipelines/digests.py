"""Digests of the files of an algorithm, a reward or a task, and of the user's own: an edit runs again what uses it."""

import ast
import hashlib
import inspect
from importlib.util import find_spec
from pathlib import Path

import algos
from algos import FILES
from algos.training.config import RunConfig
from algos.training.rewards.own import file_of, is_own
from algos.training.rewards.rules import RULES
from algos.training.supervised.config import DistillationConfig
from evaluation.tasks import TASKS, TaskSettings

SUITE = ("algos", "evaluation", "pipelines")  # its commit stands in every record


def of_run(config: RunConfig | DistillationConfig) -> str:
    """Of the algorithm's own file with those that it builds on in algos/, and of the files of its rewards."""
    if isinstance(config, DistillationConfig):
        return _digest(_with_siblings("algos.distillation"))
    rules = {Path(inspect.getfile(RULES[name].score)) for name in config.rewards if name in RULES}
    own = (with_own_imports(file_of(name)) for name in config.rewards if is_own(name))
    return _digest(algorithm_files(config.algorithm).union(rules, *own))


def of_task(task: TaskSettings) -> str:
    """Of the task's own file, and of the user's files that it reads."""
    return _digest({Path(inspect.getfile(TASKS[task.name].load)), *getattr(task.config, "files", ())})


def of_file(path: str | None) -> str:
    """Of a file of the user's own; empty without one."""
    return "" if path is None else _digest({Path(path)})


def of_folder(path: str | None) -> str:
    """Of a model's folder or file: names, sizes and times, as weights are large; empty for a hub id or None."""
    files = [Path(path), *sorted(Path(path).rglob("*"))] if path is not None else []
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] if facts else ""


def algorithm_files(name: str) -> set[Path]:
    if name in FILES:
        return _with_siblings(FILES[name].partition(":")[0])
    own = with_own_imports(Path(name.partition(":")[0]))
    return own.union(*(_with_siblings(module) for path in own for module in _siblings(path)))


def with_own_imports(path: Path) -> set[Path]:
    """A file of the user's own, and those beside it or below this folder that it imports."""
    found: set[Path] = set()
    waiting, root = [path], path.parent
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        names = [name.split(".") for name in _imported(path)]
        for parts in [parts for parts in names if parts[0] not in SUITE]:
            for folder in (root, path.parent, Path()):
                packages = [folder.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
                module = folder.joinpath(*parts[:-1], f"{parts[-1]}.py")
                waiting += [file for file in (*packages, module) if file.is_file()]
    return found


def _with_siblings(module: str) -> set[Path]:
    """The file of a module, and those next to it that it imports: dapo.py and grpo.py for algos.dapo."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = Path(find_spec(waiting.pop()).origin)
        if path not in found:
            found.add(path)
            waiting += _siblings(path)
    return found


def _siblings(path: Path) -> list[str]:
    """The modules of the folder algos that a file imports."""
    names = {module.removeprefix("algos.") for module in _imported(path) if module.startswith("algos.")}
    return [f"algos.{name}" for name in sorted(names) if (Path(algos.__file__).parent / f"{name}.py").is_file()]


def _imported(path: Path) -> set[str]:
    """The modules that a file may import, by their names; of `from a import b` both a and a.b."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            modules |= {node.module, *(f"{node.module}.{name}" for name in names)} if node.module else names
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def _digest(paths: set[Path]) -> str:
    parts = [path.name.encode() + b"\n" + path.read_bytes() for path in sorted(paths)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
