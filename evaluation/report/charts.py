"""Tables -> interactive charts, as Plotly's data and layout; numbers and colors are those of the figures in SVG.

A chart has views, which are its choices of axis: each is a whole figure, {"label", "data", "layout"}.
"""

from collections.abc import Iterable, Sized
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.collect import COMPONENTS, Stage, phases_of, rl_stages
from evaluation.curves import curve
from evaluation.figures import COLORS, GRAY, VERDICT_COLORS
from evaluation.findings import in_words, row_interval
from evaluation.report.updates import measured_on
from evaluation.statistics.verdicts import HIGHER, LOWER, ONE_SEED

CAPTIONS = Path(__file__).parents[2] / "pipelines" / "captions"
DASHES = ("solid", "dot", "dashdot", "longdash")  # of stages that share a color; TRL baselines are dashed
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
PATTERNS = {"weights": "", "gradients": "/", "optimizer": "x", "master": "."}  # of the parts of memory
FLIPPED = {HIGHER: LOWER, LOWER: HIGHER}
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
Chart = dict[str, Any]


def caption(name: str) -> str:
    """A figure's caption, the same text as in Snakemake's own report."""
    return (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip()


def chart(name: str, title: str, views: list[dict]) -> Chart:
    return {"name": name, "title": title, "caption": caption(name), "views": views}


def view(label: str, data: list[dict], layout: dict, height: int = 460) -> dict:
    """One figure. The y axis of stages and the legend take the room that their texts need."""
    base = {
        "font": {"family": FONT, "size": 13, "color": "#1c1c1c"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 70, "r": 48, "t": 24, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "modebar": {"orientation": "v"},
        "hoverlabel": {"bgcolor": "#fff", "align": "left", "namelength": -1},
        "height": height,
    }
    return {"label": label, "data": data, "layout": base | layout}


def axis(title: str, **settings: Any) -> dict:
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "#e3e3e3",
        "zeroline": False,
        "automargin": True,
        **settings,
    }


def stage_axis() -> dict:
    """Stages from the top; a stage may be called 1, which is a name here."""
    return axis("", type="category", autorange="reversed", showgrid=False)


def numbers(values: Iterable[float], scale: float = 1.0) -> list[float | None]:
    """For JSON: five digits, and nothing where there is no measurement."""
    return [None if pd.isna(value) else float(f"{scale * value:.5g}") for value in values]


def looks(stages: dict[str, Stage], baselines: dict[str, str]) -> dict[str, dict]:
    """Color, dash and symbol of each stage: RL stages have colors, others gray; TRL baselines are dashed and open."""
    own = [stage.name for stage in rl_stages(stages) if stage.name not in baselines]
    gray = [name for name in stages if name not in own and baselines.get(name) not in own]
    found = {}
    for names, colors in ((own, COLORS), (gray, (GRAY,))):
        for i, name in enumerate(names):
            dash, symbol = DASHES[i // len(colors) % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]
            found[name] = {"color": colors[i % len(colors)], "dash": dash, "symbol": symbol}
    trl = {name: found[like] for name, like in baselines.items() if like in own}
    return found | {name: look | {"dash": "dash", "symbol": f"{look['symbol']}-open"} for name, look in trl.items()}


def accuracy(table: pd.DataFrame, look: dict, baselines: dict, k: int) -> Chart:
    """The forest plot: scores with intervals, and the score of each stage's start."""
    views = [_forest(table, look, baselines, metric) for metric in (f"mean@{k}", "greedy", f"pass@{k}", f"maj@{k}")]
    return chart("accuracy", "Test accuracy", views)


def _forest(table: pd.DataFrame, look: dict, baselines: dict, metric: str) -> dict:
    scores = table.set_index("stage")[metric]
    labels = table["stage"] + np.where(table["seeds"] == 1, f" ({ONE_SEED})", "")
    started = table["from"].isin(list(scores.index))
    starts = dict(
        type="scatter",
        mode="markers",
        name="score of the start",
        x=numbers(table["from"][started].map(scores), 100),
        y=_names(labels[started]),
        marker=dict(symbol="line-ns-open", size=16, color=GRAY, line=dict(width=2)),
        hovertemplate="start: %{x:.1f} %<extra></extra>",
    )
    is_baseline = table["stage"].isin(list(baselines))
    groups = {"stage with its interval": ~is_baseline, "TRL baseline": is_baseline}
    points = [
        dict(
            type="scatter",
            mode="markers",
            name=name,
            x=numbers(table[chosen][metric], 100),
            y=_names(labels[chosen]),
            error_x=_error(table[chosen], metric, thickness=1.8, width=4, color="#444444"),
            marker=dict(
                size=11,
                symbol="circle-open" if name == "TRL baseline" else "circle",
                color=[look[stage]["color"] for stage in table[chosen]["stage"]],
                line=dict(width=2),
            ),
            customdata=[in_words(row_interval(row, metric)) for _, row in table[chosen].iterrows()],
            hovertemplate="%{y}<br>%{customdata} %<extra></extra>",
        )
        for name, chosen in groups.items()
        if chosen.any()
    ]
    order = stage_axis() | dict(categoryorder="array", categoryarray=_names(labels))
    height = 130 + 28 * len(table)
    layout = {"xaxis": axis(f"test accuracy, {metric} (%)"), "yaxis": order}
    return view(metric, [starts, *points], layout, height)


def _error(rows: pd.DataFrame, metric: str, **settings: Any) -> dict:
    """Error bars of a score's interval."""
    low, high = rows[metric] - rows[f"{metric}_low"], rows[f"{metric}_high"] - rows[metric]
    return dict(type="data", symmetric=False, array=numbers(high, 100), arrayminus=numbers(low, 100), **settings)


def _names(names: Iterable[str]) -> list[str]:
    """Names of stages as text: Plotly reads some tags in what it draws."""
    return [_name(name) for name in names]


def _name(name: str) -> str:
    return escape(name, quote=False)


def matrix(pairs: pd.DataFrame, stages: dict[str, Stage]) -> Chart:
    """The pairwise matrix, a view for each start that RL stages share."""
    groups: dict[str | None, list[str]] = {}
    for stage in rl_stages(stages):
        groups.setdefault(stage.start, []).append(stage.name)
    views = [_matrix(pairs, str(start), names) for start, names in groups.items() if len(names) > 1]
    return chart("matrix", "Pairs of RL stages with the same start", views)


def _matrix(pairs: pd.DataFrame, start: str, names: list[str]) -> dict:
    words = [None, *VERDICT_COLORS]  # a color's number is its place in this list
    size = len(names)
    fill = np.zeros((size, size), dtype=int)
    text, hover = np.full((size, size), "", dtype=object), np.full((size, size), "", dtype=object)
    for _, pair in pairs[pairs["stage"].isin(names) & pairs["against"].isin(names)].iterrows():
        for a, b, sign in ((pair["stage"], pair["against"], 1), (pair["against"], pair["stage"], -1)):
            place = names.index(a), names.index(b)
            verdict = pair["verdict"] if sign > 0 else FLIPPED.get(pair["verdict"], pair["verdict"])
            value = f"{100 * sign * pair['difference']:+.1f}"
            fill[place] = words.index(verdict) if verdict in words else 0
            text[place] = f"<b>{value}</b>" if pair["one_setting"] else value
            hover[place] = f"{_name(a)} minus {_name(b)}: {value}{_bracket(pair, sign)} points<br>{verdict}"
            hover[place] += "<br>" + _name(pair["differs"] or "nothing differs").replace("; ", "<br>")
    colors = ["#ffffff", *VERDICT_COLORS.values()]
    heat = dict(
        type="heatmap",
        x=_names(names),
        y=_names(names),
        z=fill.tolist(),
        zmin=-0.5,
        zmax=len(colors) - 0.5,
        colorscale=[[(i + end) / len(colors), color] for i, color in enumerate(colors) for end in (0, 1)],
        showscale=False,
        xgap=1,
        ygap=1,
        text=text.tolist(),
        texttemplate="%{text}" if size <= 20 else "",
        customdata=hover.tolist(),
        hovertemplate="%{customdata}<extra></extra>",
    )
    keys = [
        dict(
            type="scatter",
            mode="markers",
            name=word,
            x=[None],
            y=[None],
            hoverinfo="skip",
            marker=dict(symbol="square", size=13, color=color, line=dict(width=1, color=GRAY)),
        )
        for word, color in VERDICT_COLORS.items()
    ]
    columns = axis("", type="category", tickangle=-45, showgrid=False)
    layout = {"xaxis": columns, "yaxis": stage_axis(), "plot_bgcolor": "#eeeeee"}
    height = 190 + 34 * min(size, 24)
    return view(f"RL from {start}", [heat, *keys], layout, height)


def _bracket(pair: pd.Series, sign: int) -> str:
    low, high = sorted(100 * sign * pair[["difference_low", "difference_high"]])
    return "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"


SEEDS = ["lowest_seed", "highest_seed"]  # columns of a table of curves
X_AXES = {
    "generated_tokens": "generated tokens",
    "seconds": "seconds of training",
    "updates": "updates of the policy",
}


def curves(table: pd.DataFrame, look: dict) -> Chart:
    """Accuracy while training, over tokens, seconds and updates; bands from the lowest to the highest seed."""
    words = f"accuracy on {measured_on(table)}"
    views = []
    for x, title in X_AXES.items():
        lines = [
            trace
            for stage, rows in table.groupby("stage", sort=False)
            for trace in _band(str(stage), rows[x], 100 * rows[["accuracy", *SEEDS]], look[stage])
        ]
        axes = {"xaxis": axis(title, rangemode="tozero"), "yaxis": axis(f"{words} (%)")}
        views.append(view(f"{words} over {title}", lines, axes))
    return chart("curves", "Learning curves", views)


def _band(name: str, x: pd.Series, values: pd.DataFrame, look: dict, **axes: str) -> list[dict]:
    """A line and the band around it, one entry of the legend. values: columns of the mean and both bounds."""
    mean, low, high = (values[column].to_numpy() for column in values)
    group = dict(legendgroup=name, name=_name(name), type="scatter", mode="lines", **axes)
    red, green, blue = (int(look["color"][i : i + 2], 16) for i in (1, 3, 5))
    around = dict(
        x=numbers([*x, *x[::-1]]),
        y=numbers([*high, *low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.09)",
        line=dict(width=0),
        hoverinfo="skip",
        showlegend=False,
    )
    line = dict(
        x=numbers(x),
        y=numbers(mean),
        line=dict(color=look["color"], dash=look["dash"], width=2),
        customdata=[[f"[{a:.1f}, {b:.1f}]"] for a, b in zip(low, high, strict=True)],
        hovertemplate="%{y:.1f} %{customdata[0]} at %{x}<extra>%{fullData.name}</extra>",
    )
    return [group | around, group | line]


COSTS = {
    "peak_megabytes": "peak memory, measured (MB)",
    "state_megabytes": "model states, counted (MB)",
    "train_seconds": "training time (s)",
    "generated_tokens": "generated tokens",
}


def cost(table: pd.DataFrame, look: dict, k: int) -> Chart:
    """Accuracy against what it cost: memory, time, tokens."""
    metric = f"mean@{k}"
    views = []
    for column, title in COSTS.items():
        rows = table[table[column] > 0]
        data = [
            dict(
                type="scatter",
                mode="markers",
                name=_name(row["stage"]),
                x=numbers([row[column]]),
                y=numbers([row[metric]], 100),
                error_y=_error(row.to_frame().T, metric, color=look[row["stage"]]["color"], thickness=1.2),
                marker=dict(
                    size=11, line=dict(width=2), **{key: look[row["stage"]][key] for key in ("color", "symbol")}
                ),
                customdata=[in_words(row_interval(row, metric))],
                hovertemplate=f"%{{customdata}} %<br>%{{x:,.4g}}, {title}<extra>%{{fullData.name}}</extra>",
            )
            for _, row in rows.iterrows()
        ]
        axes = {"xaxis": axis(title, rangemode="tozero"), "yaxis": axis(f"test accuracy, {metric} (%)")}
        if data:
            views.append(view(f"against {title}", data, axes))
    return chart("cost", "Accuracy against cost", views)


def pass_at_k(table: pd.DataFrame, look: dict) -> Chart:
    return chart("pass_at_k", "pass@k", [_passes(str(of), rows, look) for of, rows in table.groupby("of", sort=False)])


def _passes(of: str, table: pd.DataFrame, look: dict) -> dict:
    lines = [
        trace
        for stage, rows in table.groupby("stage", sort=False)
        for trace in _band(str(stage), rows["k"], 100 * rows[["pass", "pass_low", "pass_high"]], look[stage])
    ]
    x_axis = axis("k, responses a problem", type="log", tickvals=sorted({int(k) for k in table["k"]}))
    return view(of, lines, {"xaxis": x_axis, "yaxis": axis("pass@k (%)")})


def memory(table: pd.DataFrame) -> Chart:
    """Stacked bars: each component has a color, and each of its parts a pattern."""
    names = list(dict.fromkeys(table["stage"]))
    data = []
    for color, component in zip(COLORS, COMPONENTS, strict=False):
        rows = table[table["component"] == component].set_index("stage").reindex(names)
        for part, pattern in PATTERNS.items():
            widths = rows[f"{part}_megabytes"].fillna(0)
            marker = dict(color=color, line=dict(color="#ffffff", width=1))
            marker["pattern"] = dict(shape=pattern, fgcolor="#ffffff", fillmode="overlay", size=7)
            if widths.any():
                data.append(_bars(names, widths, f"{component.replace('_', ' ')}: {part}", marker, "MB"))
    return chart("memory", "Memory by component", [_stacked("MB", data, names, "model states, counted (MB)")])


def throughput(table: pd.DataFrame) -> Chart:
    """Seconds of each phase, for an equal number of tokens and of the whole run."""
    tokens = table["tokens_per_second"] * table["seconds"]
    scales = {
        "for 1,000 tokens": ("seconds per 1,000 generated tokens", 1000 / tokens),
        "of the whole run": ("seconds of training", 1 + 0 * tokens),
    }
    views = []
    for label, (title, scale) in scales.items():
        data = [
            _bars(table["stage"], table[f"{phase}_seconds"] * scale, phase, dict(color=COLORS[i % len(COLORS)]), "s")
            for i, phase in enumerate(phases_of(table))
        ]
        views.append(_stacked(label, data, table["stage"], title))
    return chart("throughput", "Time by phase", views)


def _bars(names: Iterable[str], widths: pd.Series, label: str, marker: dict, unit: str) -> dict:
    hover = f"%{{x:.4g}} {unit}<extra>%{{fullData.name}}</extra>"
    bars = dict(type="bar", orientation="h", name=label, x=numbers(widths), y=_names(names))
    return bars | dict(marker=marker, hovertemplate=hover)


def _stacked(label: str, data: list[dict], names: Sized, title: str) -> dict:
    layout = {"barmode": "stack", "xaxis": axis(title), "yaxis": stage_axis()}
    return view(label, data, layout, height=150 + 28 * len(names))


def proxy_and_gold(stages: dict[str, Stage], look: dict) -> Chart:
    """The learned reward and the gold accuracy of the same responses, over the same tokens."""
    data = []
    for stage in rl_stages(stages):
        if not any("reward_reward_model" in frame for frame in stage.whole):
            continue
        for metric, scale, place in (("reward_reward_model", 1, ""), ("accuracy", 100, "2")):
            found = curve(stage, "generated_tokens", metric)
            axes = dict(xaxis=f"x{place}", yaxis=f"y{place}")
            lines = _band(stage.name, found["x"], scale * found[["mean", "low", "high"]], look[stage.name], **axes)
            lines[1]["showlegend"] = not place
            data += lines
    layout = {
        "xaxis": axis("generated tokens", domain=[0, 0.44]),
        "yaxis": axis("learned reward (standard deviations)"),
        "xaxis2": axis("generated tokens", domain=[0.56, 1]),
        "yaxis2": axis("gold accuracy (%)", anchor="x2"),
    }
    return chart("proxy_and_gold", "Learned reward and gold accuracy", [view("over tokens", data, layout)])


def charts(
    drawn: list[str], tables: dict[str, pd.DataFrame], stages: dict, baselines: dict, k: int
) -> dict[str, Chart]:
    """The charts of the page by name. drawn: the study's figures, see evaluation.config.figures_of."""
    look = looks(stages, baselines)
    made = [accuracy(tables["comparison"], look, baselines, k)]
    made += [cost(tables["comparison"], look, k), pass_at_k(tables["pass_at_k"], look)]
    if "matrix" in drawn:
        made.append(matrix(tables["pairwise"], stages))
    if "curves_tokens" in drawn:
        made += [curves(tables["curves"], look), memory(tables["memory"]), throughput(tables["throughput"])]
    if "proxy_and_gold" in drawn:
        made.append(proxy_and_gold(stages, look))
    return {each["name"]: each for each in made if each["views"]}
