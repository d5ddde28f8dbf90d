"""Digests of the files that define an algorithm, a reward or a task: who uses one runs again when it is edited."""

import ast
import hashlib
import inspect
from importlib.util import find_spec
from pathlib import Path

from algos import FILES
from algos.training.config import RunConfig
from algos.training.rewards.rules import RULES
from evaluation.tasks import TASKS


def of_run(config: RunConfig) -> str:
    """Of the algorithm's own file with those that it builds on in algos/, and of the files of its rewards."""
    rules = {Path(inspect.getfile(RULES[name].score)) for name in config.rewards if name in RULES}
    return _digest(algorithm_files(config.algorithm) | rules)


def of_task(name: str) -> str:
    return _digest({Path(inspect.getfile(TASKS[name].load))})


def algorithm_files(name: str) -> set[Path]:
    """The file that defines an algorithm, and those next to it that it imports: dapo.py and grpo.py for dapo."""
    found: set[Path] = set()
    waiting = [FILES[name].partition(":")[0]]
    while waiting:
        path = Path(find_spec(waiting.pop()).origin)
        if path not in found:
            found.add(path)
            waiting += _siblings(path)
    return found


def _siblings(path: Path) -> list[str]:
    """The modules of the same folder that a file imports."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    names = {module.removeprefix("algos.") for module in modules if module.startswith("algos.")}
    return [f"algos.{name}" for name in sorted(names) if (path.parent / f"{name}.py").is_file()]


def _digest(paths: set[Path]) -> str:
    parts = [path.name.encode() + b"\n" + path.read_bytes() for path in sorted(paths)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
