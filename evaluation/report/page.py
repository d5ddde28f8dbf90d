"""Scores -> tables, figures and one self-contained HTML page. Sentences with results are computed from the files."""

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from algos.pieces.settings import SettingsError
from evaluation import collect, curves, figures, findings
from evaluation.claims.dynamics import dynamics
from evaluation.collect import Stage
from evaluation.config import figures_of
from evaluation.families import Verdicts
from evaluation.pairs import RULE, pairs, pairwise, trl_baselines
from evaluation.report import charts, responses, tables
from evaluation.report.answer import answer
from evaluation.report.passes import passes
from evaluation.report.updates import with_updates
from evaluation.tasks.files import write_json
from evaluation.tuning.page import tuning_content
from evaluation.tuning.tables import tuning_tables, with_tuning_costs

HERE = Path(__file__).parent
FLOATS = "%.6g"


def lead(study: dict, stages: dict[str, Stage], origin: str) -> str:
    problems = next(iter(stages.values())).scores[0]["problems"]
    checkpoints = sum(len(stage.seeds) for stage in stages.values())
    trained = sum(len(stage.seeds) for stage in collect.rl_stages(stages))
    return (
        f"Task {study['task']}, {problems} test problems; {len(stages)} evaluated stages with {checkpoints} "
        f"checkpoints, {trained} of them from reinforcement learning. {origin}"
    )


def draw(study: dict, stages: dict[str, Stage], baselines: dict, made: dict, metric: str, out: Path) -> list[str]:
    """Write the figures of the study as SVG, which can be published; returns their names."""
    drawn = figures_of(study)
    figures.accuracy(made["comparison"], stages, baselines, metric, out / "accuracy.svg")
    if "curves_tokens" in drawn:
        tokens, seconds = "generated tokens (thousands)", "wall-clock time of training (s)"
        figures.curves(stages, baselines, "generated_tokens", tokens, 1e3, out / "curves_tokens.svg")
        figures.curves(stages, baselines, "seconds", seconds, 1.0, out / "curves_time.svg")
        figures.memory(made["memory"], stages, out / "memory.svg")
        figures.throughput(made["throughput"], out / "throughput.svg")
    if "matrix" in drawn:
        figures.matrix(made["pairwise"], stages, out / "matrix.svg")
    if "proxy_and_gold" in drawn:
        learned = [s for s in collect.rl_stages(stages) if any("reward_reward_model" in m for m in s.whole)]
        figures.proxy_and_gold(learned, out / "proxy_and_gold.svg")
    if "reach" in drawn:
        figures.reach(made["pass_at_k"], study["reach"], out / "reach.svg")
    return drawn


def make_tables(
    stages: dict[str, Stage], baselines: dict[str, str], k: int, verdicts: Verdicts
) -> dict[str, pd.DataFrame]:
    """The tables of the report by name; each is written as <name>.csv."""
    all_pairs = pairs(stages, f"mean@{k}", verdicts)
    comparison = with_tuning_costs(collect.comparison(stages, baselines, k, verdicts), stages)
    return {
        "comparison": comparison,
        "pairs": all_pairs,
        "pairwise": pairwise(all_pairs),
        "profile": collect.profile(stages, f"mean@{k}"),
        "pass_at_k": passes(stages, k),
        "throughput": collect.throughput(stages),
        "memory": collect.memory(stages),
        "curves": with_updates(curves.curves(stages), stages),
        "scaling": curves.scaling(stages),
        "dynamics": dynamics(stages),
        "estimators": collect.estimators(stages),
        "provenance": collect.provenance(stages),
        **tuning_tables(stages, comparison, f"mean@{k}", verdicts),
    }


def write(results: Path, study: dict, out: Path) -> None:
    """All tables and figures, and report.html with the charts inside."""
    out.mkdir(parents=True, exist_ok=True)
    k = study["samples"]
    stages = collect.collect(results, study)
    if not stages:
        raise SettingsError("the study evaluates no stage; a report needs at least one.")
    baselines, records = trl_baselines(stages), findings.study_records(results, study)
    margin = study["margin"] / 100
    verdicts = Verdicts(stages, f"mean@{k}", margin)
    made = make_tables(stages, baselines, k, verdicts)
    for name, table in made.items():
        table.to_csv(out / f"{name}.csv", index=name == "estimators", float_format=FLOATS)
    origin = findings.origin(records, study)
    (out / "comparison.md").write_text(tables.markdown(made["comparison"], k, origin), encoding="utf-8")
    (out / "pairwise.md").write_text(tables.pairwise_markdown(made["pairwise"], margin, origin), encoding="utf-8")
    write_json(out / "study.json", study)
    drawn = draw(study, stages, baselines, made, f"mean@{k}", out)
    content = {
        "study": study,
        "k": k,
        "lead": lead(study, stages, origin),
        "warnings": findings.warnings(records, stages, f"mean@{k}"),
        "answer": answer(made["comparison"], made["pairs"], made["pairwise"], k, study["margin"]),
        "findings": findings.findings(made["comparison"], made["pairs"], stages, baselines, k, verdicts),
        "reward_models": findings.reward_model_sentences(results, study),
        "charts": charts.charts(drawn, made, stages, baselines, k),
        "responses": responses.browser(results, stages),
        "extra": tables.extra_tables(out),
        "trl_version": next(iter(stages.values())).records[0]["packages"].get("trl"),
        "command": f"snakemake --cores all --forcerun report --configfile {shlex.quote(study['source'])}",
        **table_content(made, baselines, k),
    }
    (out / "report.html").write_text(render(content), encoding="utf-8")


def table_content(made: dict[str, pd.DataFrame], baselines: dict[str, str], k: int) -> dict:
    """The template's variables that are made of tables."""
    columns, rows = tables.score_rows(made["comparison"], k)
    return {
        "scores": {"columns": columns, "rows": rows},
        "pairs": tables.pair_rows(made["pairs"]),
        "pair_count": len(made["pairs"]),
        "rule": RULE,
        "baselines": tables.baseline_rows(made["comparison"], baselines, f"mean@{k}"),
        "scaling": tables.scaling_table(made["scaling"]),
        "cost_table": tables.cost_table(made["throughput"], made["comparison"]),
        "estimators": made["estimators"],
        "provenance": tables.as_table(made["provenance"]),
        **tuning_content(made, k),
    }


def render(content: dict[str, Any]) -> str:
    """The page. Its policy lets its two scripts run, by their digests, and nothing be loaded or sent."""
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            content,
            scripts=[Markup(script) for script in scripts],
            digests=" ".join(f"'sha256-{digest(script)}'" for script in scripts),
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            embedded=responses.embedded,
        )
    )


def digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def environment() -> jinja2.Environment:
    """Templates with everything escaped: model output is untrusted."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, HERE.parent]),  # sections of other rooms are below the second one
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=tables.shown,
    )
