"""PPO and GRPO side by side: the predicted peak as stacked bars, SVG and CSV."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from evaluation.figures import COLORS, GRAY, PART_SHADES, save
from evaluation.memory.closed_form import MODELS, STATES
from evaluation.memory.plan import Plan, plan_phases
from evaluation.memory.text import unit_of

BARS: dict[str, dict[str, Any]] = {  # the setups compared, and what each changes in the plan
    "PPO, reward model, reference": {"algorithm": "ppo", "reward_model": True, "reference": "yes"},
    "PPO, rules, reference": {"algorithm": "ppo", "reference": "yes"},
    "PPO, shared critic, rules, reference": {"algorithm": "ppo", "critic": "shared", "reference": "yes"},
    "GRPO, reward model, reference": {"algorithm": "grpo", "reward_model": True, "reference": "yes"},
    "GRPO, rules, reference": {"algorithm": "grpo", "reference": "yes"},
    "GRPO, rules, no reference": {"algorithm": "grpo", "reference": "no"},
}
REST = {"activations and their gradients": ("activations", "backward"), "logits": ("logits",)}
REST |= {"key-value cache": ("kv_cache",), "the rest": ("workspace", "other")}


def rows(plan: Plan) -> list[dict]:
    """One row per setup and part: bytes at the peak of the fullest phase."""
    table = []
    for setup, change in BARS.items():
        phases = plan_phases(replace(plan, **change))
        phase = max(phases, key=lambda name: phases[name].total())
        places = phases[phase]
        for model in MODELS:
            for state in STATES:
                if places[model, state]:
                    table.append(_row(setup, phase, f"{model.replace('_', ' ')}: {state}", places[model, state]))
        for part, categories in REST.items():
            size = sum(size for (_, category), size in places.items() if category in categories)
            table.append(_row(setup, phase, part, size))
    return table


def _row(setup: str, phase: str, part: str, size: float) -> dict:
    return {"setup": setup, "phase": phase, "part": part, "bytes": round(size)}


def draw(plan: Plan, out: Path) -> str:
    """peak-MODEL.svg and peak-MODEL.csv in `out`; prints their paths."""
    out.mkdir(parents=True, exist_ok=True)
    table = rows(plan)
    path = out / f"peak-{Path(plan.model).name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    unit, unit_name = unit_of(max(row["bytes"] for row in table))
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(BARS) + 2.4))
    heights, left = np.arange(len(BARS))[::-1], np.zeros(len(BARS))
    for part in dict.fromkeys(row["part"] for row in sorted(table, key=_order)):
        widths = np.array([_bytes(table, setup, part) / unit for setup in BARS])
        color, alpha = _look(part)
        axis.barh(
            heights,
            widths,
            left=left,
            color=color,
            alpha=alpha,
            height=0.68,
            edgecolor="white",
            linewidth=0.6,
            label=part,
        )
        left += widths
    axis.set_yticks(heights, BARS)
    axis.set_xlabel(f"predicted peak, {plan.model}, {plan.precision} ({unit_name})")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path.with_suffix(".svg"))
    return f"written: {path} and {path.with_suffix('.svg').name}"


def _bytes(table: list[dict], setup: str, part: str) -> int:
    return sum(row["bytes"] for row in table if row["setup"] == setup and row["part"] == part)


def _order(row: dict) -> int:
    parts = [f"{model.replace('_', ' ')}: {state}" for model in MODELS for state in STATES] + list(REST)
    return parts.index(row["part"])


def _look(part: str) -> tuple[str, float]:
    model, _, state = part.partition(": ")
    if state:
        colors = (*COLORS[:4], COLORS[7])  # the others are those of the rest
        return colors[[m.replace("_", " ") for m in MODELS].index(model)], PART_SHADES[state]
    return (*COLORS[4:7], GRAY)[list(REST).index(part)], 1.0
