"""Scores -> tables, figures and one self-contained HTML page. Every sentence with a result is computed from the files.

From a finished study: snakemake --cores all --forcerun report
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from algos.pieces.settings import SettingsError
from evaluation import collect, curves, figures, findings
from evaluation.claims.dynamics import dynamics
from evaluation.collect import Stage
from evaluation.config import figures_of
from evaluation.families import Verdicts
from evaluation.findings import VERDICTS, in_words, percent, probability, row_interval
from evaluation.options import read_json
from evaluation.pairs import RULE, pairs, pairwise, trl_baselines
from evaluation.tasks.files import read_jsonl, write_json
from evaluation.tuning.page import tuning_content
from evaluation.tuning.tables import tuning_tables, with_tuning_costs

TEMPLATES = Path(__file__).parent
CAPTIONS = Path(__file__).parents[1] / "pipelines" / "captions"
OTHER_PAIRS = 40  # pairs on the page that differ in more or less than one thing; pairs.csv has all
FLOATS = "%.6g"


def cell(row: pd.Series, name: str) -> dict:
    """A table cell: the mean, its interval below, and for a difference with a verdict the verdict's color."""
    interval, judged = row_interval(row, name), VERDICTS.get(name)
    if interval is None:
        return plain("")
    text, small = percent(interval, sign=judged is not None)
    return {"text": text, "small": small, "verdict": css(row[judged]) if judged else ""}


def css(verdict: str) -> str:
    return verdict.replace(" ", "-")


def shown(value: Any) -> Any:
    """A value of a table as it is; empty where the table has none."""
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else value


def plain(value: object) -> dict:
    """A table cell without an interval."""
    return {"text": str(shown(value)), "small": "", "verdict": ""}


def digits(value: float, form: str) -> str:
    """A number as text; empty where there is no measurement."""
    return "" if pd.isna(value) else format(value, form)


def number(value: float, form: str) -> dict:
    """A table cell with a number, empty where a stage of its kind has none."""
    return plain(digits(value, form))


def cost(row: pd.Series, name: str) -> dict:
    """A table cell with what a run cost, below it with the tuning before it where there was one."""
    made, whole = number(row[name], ",.0f"), digits(row.get(f"{name}_with_tuning", np.nan), ",.0f")
    return made | {"small": f"{whole} with tuning" if whole else ""}


def score_rows(table: pd.DataFrame, k: int) -> tuple[list[str], list[list[dict]]]:
    """Columns and cells of the page's main table."""
    scores = ("greedy", f"pass@{k}", f"maj@{k}")
    columns = ["stage", "kind", "from", "seeds", f"mean@{k}", "median seed", *scores, "failed seeds"]
    columns += ["minus its start", "TRL minus own"]
    columns += ["format", "truncated", "clipped", "tokens", "generated tokens", "training, s"]
    losses = [column for column in ("text_loss", "text_loss_minus_start") if column in table]
    columns += ["loss on text, nats", "its change"][: len(losses)]
    rows = [
        [
            *(plain(row[name]) for name in ("stage", "kind", "from", "seeds")),
            cell(row, f"mean@{k}"),
            number(100 * row[f"mean@{k}_median"], ".1f"),
            *(cell(row, name) for name in (*scores, "failed_seeds", "minus_start", "minus_own")),
            number(100 * row["format_rate"], ".1f"),
            number(100 * row["truncation_rate"], ".1f"),
            number(100 * row["clip_fraction"], ".2f"),
            number(row["response_tokens"], ".1f"),
            cost(row, "generated_tokens"),
            cost(row, "train_seconds"),
            *(number(row[name], ".3f" if name == "text_loss" else "+.3f") for name in losses),
        ]
        for _, row in table.iterrows()
    ]
    return columns, rows


def markdown(table: pd.DataFrame, k: int, origin: str) -> str:
    """The main table as Markdown, with one line on where its numbers come from."""
    columns, rows = score_rows(table, k)
    cells = [[f"{c['text']} {c['small']}".strip() for c in row] for row in rows]
    return markdown_table(columns, cells, texts=3) + f"\n{origin}\n"


def markdown_table(columns: list[str], rows: list[list[str]], texts: int) -> str:
    """Lines of Markdown; the first columns are texts, the others numbers."""
    lines = [columns, ["---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pairwise_markdown(table: pd.DataFrame, margin: float, origin: str) -> str:
    """The pairs of RL stages with the same start, and how they are judged."""
    columns = ["stage", "against", "verdict", "difference, points", "p, adjusted", "p of equality, adjusted"]
    columns += ["detectable, points", "one setting", "what differs, against -> stage"]
    rows = [
        [
            row["stage"],
            row["against"],
            row["verdict"],
            in_words(row_interval(row, "difference"), sign=True),
            probability(row["p_different"]),
            probability(row["p_equal"]),
            digits(100 * row["detectable"], ".1f"),
            "yes" if row["one_setting"] else "",
            row["differs"].replace("|", "\\|"),
        ]
        for _, row in table.iterrows()
    ]
    rule = (
        f"Difference of the scores, stage - against, with its 95 % interval for new seeds and new questions. Verdicts "
        f"are adjusted for the number of pairs (Holm); equal means within {100 * margin:g} points (TOST, Holm)."
    )
    return markdown_table(columns, rows, texts=3) + f"\n{rule}\n{origin}\n"


def pair_rows(table: pd.DataFrame) -> list[dict]:
    """The pairs that the page shows: all that differ in one thing, and a limited number of others."""
    one = table["differences"] == 1
    shown = pd.concat([table[one], table[~one].head(OTHER_PAIRS)])
    return [
        {
            **row[["stage", "against", "like", "differences", "differs", "consequences"]],
            "difference": cell(row, "difference"),
            "p": probability(row["p_different"]),
            "detectable": digits(100 * row["detectable"], ".1f"),
            "verdict": row["verdict"],
            "seeds": row["paired_seeds"],
        }
        for _, row in shown.iterrows()
    ]


def cost_table(speed: pd.DataFrame, table: pd.DataFrame) -> Markup:
    """Throughput by phase and memory, as HTML."""
    peaks = table.set_index("stage")
    rows = []
    for _, row in speed.iterrows():
        rate = digits(row["tokens_per_second"], ",.0f")
        if not np.isnan(row["tokens_per_second_low"]):
            rate += f" [{max(row['tokens_per_second_low'], 0):,.0f}, {row['tokens_per_second_high']:,.0f}]"
        rows.append(
            {
                "stage": row["stage"],
                "tokens/s": rate,
                **{f"{phase}, s": digits(row[f"{phase}_seconds"], ".1f") for phase in collect.phases_of(speed)},
                **{f"{p}, tokens/s": digits(row[f"{p}_tokens_per_second"], ",.0f") for p in ("generate", "update")},
                "model states, MB": digits(peaks.loc[row["stage"], "state_megabytes"], ".1f"),
                "peak, MB": digits(peaks.loc[row["stage"], "peak_megabytes"], ",.0f"),
            }
        )
    return Markup(pd.DataFrame(rows).to_html(index=False, border=0, escape=True))


def scaling_rows(table: pd.DataFrame) -> list[dict]:
    """The sigmoid of each learning curve, or why there is none."""
    rows = []
    for _, row in table.iterrows():
        entry = {"stage": row["stage"], "start": digits(100 * row["start"], ".1f"), "reason": row["fitted"]}
        if row["fitted"] == "yes":
            low, high = (digits(row[f"half_tokens_{end}"], ",.0f") for end in ("low", "high"))
            entry |= {
                "asymptote": in_words(row_interval(row, "asymptote")),
                "half": digits(row["half_tokens"], ",.0f") + (f" [{low}, {high}]" if low else ""),
                "exponent": digits(row["exponent"], ".1f"),
                "reason": row["interval_for"],
            }
        rows.append(entry)
    return rows


def baseline_rows(table: pd.DataFrame, baselines: dict[str, str], metric: str) -> list[dict]:
    rows = {row["stage"]: row for _, row in table.iterrows()}
    return [
        {
            "stage": trl,
            "own": own,
            "score": in_words(row_interval(rows[trl], metric)),
            "own_score": in_words(row_interval(rows[own], metric)),
            "difference": in_words(row_interval(rows[trl], "minus_own"), sign=True),
            "verdict": rows[trl]["against_own"],
            "css": css(rows[trl]["against_own"]),
            "seconds": " : ".join(digits(rows[name]["train_seconds"], ".0f") for name in (trl, own)),
        }
        for trl, own in baselines.items()
    ]


def first_samples(results: Path, stages: dict[str, Stage]) -> dict:
    """The first test problem's prompt, and the first sampled response of each stage's first seed to it."""
    problem = read_jsonl(results / "data" / "test.jsonl")[0]
    samples = []
    for stage in stages.values():
        _, evaluation = collect.record_folders(results, stage.name, vars(stage))[0]
        path = evaluation / "responses.jsonl"
        row = next(r for r in read_jsonl(path) if r["problem"] == problem["id"] and r["sample"] == 0)
        samples.append({"stage": stage.name, "response": row["response"], "correct": row["correct"]})
    prompt = problem["prompt"]
    shown = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return {"problem": shown, "samples": samples}


def lead(study: dict, stages: dict[str, Stage], origin: str) -> str:
    problems = next(iter(stages.values())).scores[0]["problems"]
    checkpoints = sum(len(stage.seeds) for stage in stages.values())
    trained = sum(len(stage.seeds) for stage in collect.rl_stages(stages))
    return (
        f"Task {study['task']}, {problems} test problems; {len(stages)} evaluated stages with {checkpoints} "
        f"checkpoints, {trained} of them from reinforcement learning. {origin}"
    )


def draw(study: dict, stages: dict[str, Stage], baselines: dict, tables: dict, metric: str, out: Path) -> list[str]:
    """Write the figures of the study; returns their names."""
    drawn = figures_of(study)
    figures.accuracy(tables["comparison"], stages, baselines, metric, out / "accuracy.svg")
    if "curves_tokens" in drawn:
        tokens, seconds = "generated tokens (thousands)", "wall-clock time of training (s)"
        figures.curves(stages, baselines, "generated_tokens", tokens, 1e3, out / "curves_tokens.svg")
        figures.curves(stages, baselines, "seconds", seconds, 1.0, out / "curves_time.svg")
        figures.memory(tables["memory"], stages, out / "memory.svg")
        figures.throughput(tables["throughput"], out / "throughput.svg")
    if "matrix" in drawn:
        figures.matrix(tables["pairwise"], stages, out / "matrix.svg")
    if "proxy_and_gold" in drawn:
        learned = [s for s in collect.rl_stages(stages) if any("reward_reward_model" in m for m in s.whole)]
        figures.proxy_and_gold(learned, out / "proxy_and_gold.svg")
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
        "throughput": collect.throughput(stages),
        "memory": collect.memory(stages),
        "curves": curves.curves(stages),
        "scaling": curves.scaling(stages),
        "dynamics": dynamics(stages),
        "estimators": collect.estimators(stages),
        "provenance": collect.provenance(stages),
        **tuning_tables(stages, comparison, f"mean@{k}", verdicts),
    }


def write(results: Path, study: dict, out: Path) -> None:
    """All tables and figures, and report.html with the figures inside."""
    out.mkdir(parents=True, exist_ok=True)
    k = study["samples"]
    stages = collect.collect(results, study)
    if not stages:
        raise SettingsError("the study evaluates no stage; a report needs at least one.")
    baselines, records = trl_baselines(stages), findings.study_records(results, study)
    margin = study["margin"] / 100
    verdicts = Verdicts(stages, f"mean@{k}", margin)
    tables = make_tables(stages, baselines, k, verdicts)
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=name == "estimators", float_format=FLOATS)
    origin = findings.origin(records, study)
    (out / "comparison.md").write_text(markdown(tables["comparison"], k, origin), encoding="utf-8")
    (out / "pairwise.md").write_text(pairwise_markdown(tables["pairwise"], margin, origin), encoding="utf-8")
    write_json(out / "study.json", study)
    drawn = draw(study, stages, baselines, tables, f"mean@{k}", out)
    content = {
        "study": study,
        "k": k,
        "lead": lead(study, stages, origin),
        "warnings": findings.warnings(records, stages, f"mean@{k}"),
        "findings": findings.findings(tables["comparison"], tables["pairs"], stages, baselines, k, verdicts),
        "reward_models": findings.reward_model_sentences(results, study),
        "figures": {name: inline_svg(out / f"{name}.svg", name) for name in drawn},
        "captions": {name: caption(name) for name in drawn},
        "trl_version": next(iter(stages.values())).records[0]["packages"].get("trl"),
        "command": f"snakemake --cores all --forcerun report --configfile {shlex.quote(study['source'])}",
        **table_content(tables, baselines, k),
        **first_samples(results, stages),
    }
    page = environment().get_template("report.html.j2").render(content)
    (out / "report.html").write_text(page, encoding="utf-8")


def table_content(tables: dict[str, pd.DataFrame], baselines: dict[str, str], k: int) -> dict:
    """The template's variables that are made of tables."""
    columns, rows = score_rows(tables["comparison"], k)
    return {
        "score_columns": columns,
        "score_rows": rows,
        "pairs": pair_rows(tables["pairs"]),
        "pair_count": len(tables["pairs"]),
        "rule": RULE,
        "baselines": baseline_rows(tables["comparison"], baselines, f"mean@{k}"),
        "scaling": scaling_rows(tables["scaling"]),
        "cost_table": cost_table(tables["throughput"], tables["comparison"]),
        "estimators": tables["estimators"],
        "provenance": tables["provenance"],
        **tuning_content(tables, k),
    }


def caption(name: str) -> str:
    """A figure's caption, the same text as in Snakemake's own report."""
    return (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip()


def environment() -> jinja2.Environment:
    """Templates with everything escaped: model output is untrusted."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, finalize=shown
    )


def inline_svg(path: Path, name: str) -> Markup:
    """A figure for the inside of the page. Ids get the figure's name in front, so that figures do not mix."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        text = text.replace(mark, f"{mark}{name}-")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--study", required=True, help="the study's stages and their settings: JSON or a file of it")
    parser.add_argument("--results", required=True, type=Path, help="the study's results folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    args = parser.parse_args()
    try:
        study = read_json(args.study, "--study")
        if missing := [key for key in ("study", "source", "samples", "margin", "models", "stages") if key not in study]:
            raise SettingsError(f"--study lacks {', '.join(missing)}; report/study.json of a study has all of them.")
        write(args.results, study, args.out)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
