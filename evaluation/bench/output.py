"""Rows -> CSV and JSON on disk, a table on the terminal, and the targets that they meet or miss."""

import csv
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from algos.pieces.settings import SettingsError
from evaluation.tasks.files import write_json

COLUMNS = ("case", "quantity", "value", "low", "high", "unit", "note", "target")


def row(case: str, quantity: str, value, unit: str = "", note: str = "", low=None, high=None, target: str = "") -> dict:
    """One figure. low, high: its 95 % interval; target: the name of the target that it decides."""
    named = (case, quantity, value, low, high, unit, note, target)
    return dict(zip(COLUMNS, named, strict=True))


@dataclass(frozen=True)
class Target:
    what: str
    bound: float
    at_least: bool = True  # False: at most
    part: str = ""  # whose file holds the figure

    def verdict(self, value: float | None) -> str:
        if value is None or math.isnan(value):
            return "not measured"
        met = value >= self.bound if self.at_least else value <= self.bound
        return "met" if met else "not met"


TARGETS = {
    "grpo_step": Target("GRPO step: TRL's seconds / ours", 2.5, part="grpo"),
    "ppo_step": Target("PPO step: TRL's seconds / ours", 3.0, part="ppo"),
    "generation": Target("generation at batch 256: transformers' seconds / ours", 2.0, part="generation"),
    "logits": Target("peak of an update, logits at V = 151,936: ours / full", 1 / 3, False, "logits"),
    "predictor": Target("measured peak against the predictor, relative difference", 0.10, False, "logits"),
    "overhead": Target("DAG and logging, share of a study's wall-clock", 0.10, False, "overhead"),
    "study_minutes": Target("default study on 2 cores, minutes", 20.0, False, "overhead"),
    "gpu_mfu": Target("Qwen2.5-0.5B shape on a GPU: MFU of the update in bfloat16", 0.40, part="gpu"),
    "gpu_step": Target("Qwen2.5-0.5B shape on a GPU: TRL's step / ours, same engine", 2.0, part="gpu"),
}


def write(out: Path, part: str, rows: list[dict], facts: dict, finished: bool = False) -> None:
    """{part}.csv, and {part}.json with the rows, the command, commit, machine, packages and `facts`.

    Called after every row, so that a benchmark that is stopped from outside leaves the rows that it has.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: figure.get(name) for name in COLUMNS} for figure in rows)
    plain = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in f.items()} for f in rows]
    content = {
        "part": part,
        "command": _command(),
        "status": "finished" if finished else "running",
        "time": time.time(),
        **_environment(),
        "facts": {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()},
        "rows": plain,
    }
    write_json(out / f"{part}.json", content)


def _command() -> list[str]:
    """What this process was started with: a module's name and its words, or the words of the program rlcompare."""
    from algos.training.stage.environment import module_and_arguments

    name, *words = module_and_arguments()
    return [name, *words] if name == "rlcompare" else ["python", "-m", name.removesuffix(".__main__"), *words]


@cache
def _environment() -> dict:
    from algos.training.stage.environment import environment

    return environment()


def read_all(out: Path) -> dict[str, dict]:
    """What every part has last written into `out`, by part."""
    found = {}
    for path in sorted(out.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[content["part"]] = content
        except (ValueError, KeyError, TypeError):
            raise SettingsError(f"{path} is no file of the benchmark; give --out a folder of its own.") from None
    return found


def targets(files: dict[str, dict]) -> list[dict]:
    """A line per target: the worst figure that decides it, met or not met or not measured, and its commit."""
    lines = []
    for name, target in TARGETS.items():
        content = files.get(target.part, {})
        figures = [f for f in content.get("rows", []) if f.get("target") == name and f["value"] is not None]
        worst: dict = (min if target.at_least else max)(figures, key=lambda f: f["value"], default={})
        interval = f" [{worst['low']:.3g}, {worst['high']:.3g}]" if worst.get("low") is not None else ""
        lines.append(
            {
                "target": target.what,
                "bound": f"{'>=' if target.at_least else '<='} {target.bound:.3g}",
                "measured": f"{worst['value']:.3g}{interval}" if worst else "",
                "verdict": target.verdict(worst.get("value")),
                "commit": (content.get("commit") or "")[:10] if worst else "",
            }
        )
    return lines


def table(rows: list[dict], columns: tuple[str, ...]) -> str:
    """Columns of text, left-aligned; numbers to four digits."""
    cells = [columns, *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def shown(rows: list[dict]) -> str:
    """The figures as a table, each with its interval beside it."""
    lines = []
    for figure in rows:
        known = figure["low"] is not None and math.isfinite(figure["low"])
        interval = f"[{_text(figure['low'])}, {_text(figure['high'])}]" if known else ""
        lines.append({**figure, "value": _text(figure["value"]), "interval": interval})
    return table(lines, ("case", "quantity", "value", "interval", "unit", "note"))
