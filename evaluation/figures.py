"""Tables -> figures, as SVG. Each RL stage keeps one color; its TRL baseline has the same color, dashed."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from evaluation.collect import COMPONENTS, PARTS, Stage, phases_of, rl_stages
from evaluation.curves import accuracy_curve, curve, measured_on
from evaluation.statistics.verdicts import EQUAL, HIGHER, LOWER, ONE_SEED

# Okabe and Ito's colors, told apart by color-blind readers too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B4B8A", "#8C6D31")
GRAY = "#767676"
VERDICT_COLORS = {HIGHER: "#7FB7DA", LOWER: "#EAA981", EQUAL: "#D9D9D9"}  # all others are white
PART_SHADES = {"weights": 1.0, "gradients": 0.55, "optimizer": 0.28, "master": 0.14}
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "figures",
        "font.size": 11,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e3e3e3",
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
    }
)


def styles(stages: dict[str, Stage], baselines: dict[str, str]) -> dict[str, dict]:
    """Color and line of each stage; a TRL baseline looks like our own stage, dashed."""
    own = [stage.name for stage in rl_stages(stages) if stage.name not in baselines]
    colors = COLORS if len(own) <= len(COLORS) else COLORS[:1]  # no two stages may share one of several colors
    table = {name: {"color": colors[i % len(colors)], "linestyle": "-"} for i, name in enumerate(own)}
    table |= {
        trl: {"color": table[name]["color"], "linestyle": "--"} for trl, name in baselines.items() if name in table
    }
    return {name: table.get(name, {"color": GRAY, "linestyle": "-"}) for name in stages}


def save(figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def accuracy(table: pd.DataFrame, stages, baselines, metric: str, path: Path) -> None:
    """Dots with 95 % intervals, one line a stage; a gray bar is the score of the stage that the stage starts from."""
    look = styles(stages, baselines)
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(table) + 1.1))
    rows = np.arange(len(table))[::-1]
    scores = table.set_index("stage")[metric]
    for y, (_, row) in zip(rows, table.iterrows(), strict=True):
        style = look[row["stage"]]
        if row["from"] in scores:
            axis.plot(100 * scores[row["from"]], y, "|", color=GRAY, markersize=15, markeredgewidth=1.6)
        axis.plot(
            [100 * row[f"{metric}_low"], 100 * row[f"{metric}_high"]],
            [y, y],
            linewidth=2.2,
            solid_capstyle="butt",
            **style,
        )
        axis.plot(
            100 * row[metric],
            y,
            "o",
            markersize=7,
            color=style["color"],
            markerfacecolor="white" if row["stage"] in baselines else style["color"],
            markeredgewidth=1.8,
        )
    words = np.where(table["seeds"] == 1, f" ({ONE_SEED})", "")
    axis.set_yticks(rows, literal(table["stage"] + words))
    axis.set_xlabel(f"test accuracy, {metric} (%)")
    axis.grid(axis="y", visible=False)
    save(figure, path)


def matrix(pairs: pd.DataFrame, stages: dict[str, Stage], path: Path) -> None:
    """A panel for each start: the difference, row minus column, of each pair of RL stages, colored by its verdict."""
    groups: dict[str | None, list[str]] = {}
    for stage in rl_stages(stages):
        groups.setdefault(stage.start, []).append(stage.name)
    shown = {start: names for start, names in groups.items() if len(names) > 1}
    size = max(len(names) for names in shown.values())
    side = 1.8 + min(0.62 * size, 13)
    figure, axes = plt.subplots(len(shown), 1, figsize=(side + 1.2, side * len(shown) + 0.5), squeeze=False)
    for axis, (start, names) in zip(axes[:, 0], shown.items(), strict=True):
        _panel(axis, pairs[pairs["stage"].isin(names) & pairs["against"].isin(names)], names)
        axis.set_title(f"RL from {literal([str(start)])[0]}: row minus column, points", fontsize=10, loc="left")
    colors = [plt.Rectangle((0, 0), 1, 1, facecolor=color, edgecolor=GRAY) for color in VERDICT_COLORS.values()]
    figure.legend(colors, VERDICT_COLORS, loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def _panel(axis, pairs: pd.DataFrame, names: list[str]) -> None:
    flipped = {HIGHER: LOWER, LOWER: HIGHER}
    font = 9 if len(names) <= 14 else 4.5
    for _, pair in pairs.iterrows():
        row, column = names.index(pair["stage"]), names.index(pair["against"])
        verdict, gap = pair["verdict"], 100 * pair["difference"]
        for y, x, word, value in ((row, column, verdict, gap), (column, row, flipped.get(verdict, verdict), -gap)):
            fill = VERDICT_COLORS.get(word, "white")
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="#cccccc", linewidth=0.6))
            weight = "bold" if pair["one_setting"] else "normal"
            style = {"fontsize": font, "fontweight": weight, "color": GRAY if word == ONE_SEED else "black"}
            axis.text(x, y, f"{value:+.1f}", ha="center", va="center", **style)
    axis.set_xticks(range(len(names)), literal(names), rotation=90, fontsize=max(font, 6))
    axis.set_yticks(range(len(names)), literal(names), fontsize=max(font, 6))
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    axis.grid(visible=False)


def literal(names) -> list[str]:
    """Names without a meaning for matplotlib, which reads text between dollar signs as mathematics."""
    return [name.replace("$", r"\$") for name in names]


def curves(stages: dict[str, Stage], baselines, x: str, x_label: str, scale: float, path: Path) -> None:
    """Accuracy during training, on dev problems or training prompts; mean over seeds, the band their range.

    One panel; or, with more stages than colors, one panel a stage, with the other stages in gray behind it.
    """
    look = styles(stages, baselines)
    if sum(stage.name not in baselines for stage in rl_stages(stages)) > len(COLORS):
        _small_multiples(stages, baselines, look, x, x_label, scale, path)
        return
    figure, axis = plt.subplots(figsize=(8, 4.6))
    for stage in rl_stages(stages):
        data = accuracy_curve(stage, x, measured_on(stages))
        axis.fill_between(
            data["x"] / scale,
            100 * data["low"],
            100 * data["high"],
            color=look[stage.name]["color"],
            alpha=0.10,
            linewidth=0,
        )
        axis.plot(data["x"] / scale, 100 * data["mean"], label=stage.name, linewidth=1.8, **look[stage.name])
    axis.set_xlabel(x_label)
    axis.set_ylabel(f"accuracy on {measured_on(stages)} (%)")
    axis.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=4)
    save(figure, path)


def _small_multiples(stages: dict[str, Stage], baselines, look, x: str, x_label: str, scale: float, path: Path) -> None:
    on = measured_on(stages)
    data = {stage.name: accuracy_curve(stage, x, on) for stage in rl_stages(stages)}
    own = [name for name in data if name not in baselines]
    columns = 4
    rows = -(-len(own) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(10, 1.75 * rows + 0.6), sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, own, strict=False):
        for table in data.values():
            axis.plot(table["x"] / scale, 100 * table["mean"], color="#dcdcdc", linewidth=0.6)
        for shown in [name, *(trl for trl, own_name in baselines.items() if own_name == name and trl in data)]:
            table = data[shown]
            axis.fill_between(
                table["x"] / scale,
                100 * table["low"],
                100 * table["high"],
                alpha=0.15,
                linewidth=0,
                color=look[shown]["color"],
            )
            axis.plot(table["x"] / scale, 100 * table["mean"], linewidth=1.8, **look[shown])
        axis.set_title(name, fontsize=9, loc="left")
    for axis in axes.flat[len(own) :]:
        axis.set_visible(False)
    figure.supxlabel(x_label, fontsize=11)
    figure.supylabel(f"accuracy on {on} (%)", fontsize=11)
    save(figure, path)


def memory(table: pd.DataFrame, stages, path: Path) -> None:
    """Stacked bars: weights, gradients, optimizer state and float32 masters of each component."""
    names = [name for name in stages if (table["stage"] == name).any()]
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(names) + 1.6))
    rows = np.arange(len(names))[::-1]
    left = np.zeros(len(names))
    for i, component in enumerate(COMPONENTS):
        for part in PARTS:
            widths = np.array(
                [
                    table[(table["stage"] == n) & (table["component"] == component)][f"{part}_megabytes"].sum()
                    for n in names
                ]
            )
            if widths.any():
                axis.barh(
                    rows,
                    widths,
                    left=left,
                    color=COLORS[i],
                    alpha=PART_SHADES[part],
                    height=0.68,
                    edgecolor="white",
                    linewidth=0.6,
                    label=f"{component.replace('_', ' ')}: {part}",
                )
            left += widths
    axis.set_yticks(rows, literal(names))
    axis.set_xlabel("model states, counted (MB)")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def throughput(table: pd.DataFrame, path: Path) -> None:
    """Seconds per thousand generated tokens, by phase: shorter is faster."""
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(table) + 1.4))
    rows = np.arange(len(table))[::-1]
    left = np.zeros(len(table))
    tokens = (table["tokens_per_second"] * table["seconds"]).to_numpy()
    for i, phase in enumerate(phases_of(table)):
        widths = (table[f"{phase}_seconds"].to_numpy() / tokens) * 1000
        axis.barh(rows, widths, left=left, color=COLORS[i], height=0.68, edgecolor="white", linewidth=0.6, label=phase)
        left += widths
    axis.set_yticks(rows, literal(table["stage"]))
    axis.set_xlabel("seconds per 1,000 generated tokens")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=4)
    save(figure, path)


def proxy_and_gold(stages: list[Stage], path: Path) -> None:
    """The learned reward of the stages that are trained on one, and the gold accuracy of the same responses."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4 + 0.2 * math.ceil(len(stages) / 3)))
    for number, stage in enumerate(stages):
        repeat, color = divmod(number, len(COLORS))
        look = {"color": COLORS[color], "linestyle": ("-", "--", ":", "-.")[repeat % 4]}
        for axis, metric, scale in ((axes[0], "reward_reward_model", 1), (axes[1], "accuracy", 100)):
            data = curve(stage, "generated_tokens", metric)
            axis.plot(data["x"] / 1000, scale * data["mean"], linewidth=1.8, label=stage.name, **look)
            axis.fill_between(
                data["x"] / 1000,
                scale * data["low"],
                scale * data["high"],
                alpha=0.12,
                linewidth=0,
                color=look["color"],
            )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    for axis, label in zip(axes, ("learned reward (standard deviations)", "gold accuracy (%)"), strict=True):
        axis.set_xlabel("generated tokens (thousands)")
        axis.set_ylabel(label)
    save(figure, path)


def reach(table: pd.DataFrame, samples: int, path: Path) -> None:
    """pass@k over k on the problems that all stages have `samples` responses to; the band is the 95 % interval."""
    of = table.loc[table["k"] == samples, "of"].iloc[0]
    figure, axis = plt.subplots(figsize=(6, 4))
    for number, (stage, rows) in enumerate(table[table["of"] == of].groupby("stage", sort=False)):
        repeat, color = divmod(number, len(COLORS))
        style = ("-", "--", ":", "-.")[repeat % 4]
        axis.plot(rows["k"], 100 * rows["pass"], style, color=COLORS[color], linewidth=1.8, label=str(stage))
        low, high = 100 * rows["pass_low"], 100 * rows["pass_high"]
        axis.fill_between(rows["k"], low, high, alpha=0.1, linewidth=0, color=COLORS[color])
    ks = sorted(set(table["k"]))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xlabel("k, responses a problem")
    axis.set_ylabel(f"pass@k of {of} (%)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)
