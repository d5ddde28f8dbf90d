"""Scores -> tables, figures and one self-contained HTML page. Every sentence in it is computed from the files.

From a finished study: snakemake --cores all --forcerun report
"""

import argparse
import json
import sys
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from algos.pieces.settings import SettingsError
from evaluation import figures
from evaluation.collect import (
    Run,
    collect,
    comparison,
    curves,
    estimators,
    memory,
    provenance,
    throughput,
    verdict,
)
from evaluation.statistics import Interval
from evaluation.tasks.files import read_jsonl

STAGES = ("data", "models", "preferences", "reward_model", "rejection_sampling", "runs")  # folders of a study
TEMPLATES = Path(__file__).parent
CAPTIONS = Path(__file__).parents[1] / "pipelines" / "captions"


def percent(interval: Interval, sign: bool = False) -> tuple[str, str]:
    """("61.2", "[58.0, 64.4]"), in percent or points; the bracket is empty where there is no interval."""
    plus = "+" if sign else ""
    text = f"{100 * interval.mean:{plus}.1f}"
    if np.isnan(interval.low):
        return text, ""
    return text, f"[{100 * interval.low:{plus}.1f}, {100 * interval.high:{plus}.1f}]"


def cell(interval: Interval | None, sign: bool = False, judged: bool = False) -> dict:
    """A table cell: the mean, its interval below, and the color of its verdict."""
    if interval is None:
        return plain("")
    text, small = percent(interval, sign)
    return {"text": text, "small": small, "verdict": verdict(interval).replace(" ", "-") if judged else ""}


def plain(text: object) -> dict:
    """A table cell without an interval."""
    return {"text": str(text), "small": "", "verdict": ""}


def row_interval(row: pd.Series, name: str) -> Interval | None:
    if name not in row or pd.isna(row[name]):
        return None
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def score_rows(table: pd.DataFrame, k: int) -> tuple[list[str], list[list[dict]]]:
    """Columns and cells of the page's main table."""
    columns = [
        "run",
        "seeds",
        f"mean@{k}",
        "greedy",
        f"pass@{k}",
        f"maj@{k}",
        "minus cold start",
        "minus TRL twin",
        "format",
        "truncated",
        "clipped",
        "tokens",
        "generated tokens",
        "training, s",
    ]
    rows = []
    for _, row in table.iterrows():
        generated = "" if pd.isna(row["generated_tokens"]) else f"{row['generated_tokens']:,.0f}"
        rows.append(
            [
                plain(row["run"]),
                plain(row["seeds"]),
                *(cell(row_interval(row, name)) for name in (f"mean@{k}", "greedy", f"pass@{k}", f"maj@{k}")),
                cell(row_interval(row, "minus_cold_start"), sign=True, judged=True),
                cell(row_interval(row, "minus_twin"), sign=True, judged=True),
                plain(f"{100 * row['format_rate']:.1f}"),
                plain(f"{100 * row['truncation_rate']:.1f}"),
                plain("" if pd.isna(row["clip_fraction"]) else f"{100 * row['clip_fraction']:.2f}"),
                plain(f"{row['response_tokens']:.1f}"),
                plain(generated),
                plain(f"{row['train_seconds']:.0f}"),
            ]
        )
    return columns, rows


def markdown(table: pd.DataFrame, k: int) -> str:
    """The main table as Markdown."""
    columns, rows = score_rows(table, k)
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(columns) - 1)) + "|"]
    for row in rows:
        cells = [f"{c['text']} {c['small']}".strip() for c in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def findings(table: pd.DataFrame, runs: dict[str, Run], study: dict) -> list[str]:
    """Sentences computed from the tables: gains over the cold start, ties among the runs, twins, offspring."""
    k = study["samples"]
    metric = f"mean@{k}"
    rows = table.set_index("run")
    sentences = []
    start = " ".join(percent(row_interval(rows.loc["cold_start"], metric))).strip()
    sentences.append(f"The cold start solves {start} % of the test problems when sampled ({metric}).")
    own = [name for name, run in runs.items() if run.is_rl and name not in study["twins"]]
    for name in own:
        gain = row_interval(rows.loc[name], "minus_cold_start")
        text, bracket = percent(gain, sign=True)
        words = {
            "higher": "raises it",
            "lower": "lowers it",
            "tie": "cannot be told from it",
            "no interval": "moves it",
        }
        sentences.append(f"{name} {words[verdict(gain)]}: {text} points {bracket}.")
    best = max(own, key=lambda name: rows.loc[name, metric])
    equal = [name for name in own if name != best and verdict(runs[best].minus(runs[name], metric)) != "higher"]
    tie = f" It cannot be told from {', '.join(equal)}." if equal else " Its lead over every other run excludes 0."
    if len(own) > 1:
        sentences.append(f"The highest mean of our runs is {best}’s, {100 * rows.loc[best, metric]:.1f} %.{tie}")
    pairs = [(ours, twin) for twin, ours in study["twins"].items()]
    apart = [f"{ours} and {twin}" for ours, twin in pairs if rows.loc[ours, "against_twin"] in ("higher", "lower")]
    if pairs:
        sentences.append(
            f"{len(pairs) - len(apart)} of {len(pairs)} runs tie with their TRL twin."
            + (f" Apart: {', '.join(apart)}." if apart else "")
        )
    for better, base, words in (
        ("rejection_sft", "cold_start", "Rejection-sampling fine-tuning against the cold start"),
        ("expert_iteration", "cold_start", "Expert iteration against the cold start"),
        (
            "student_distilled",
            "student_cold",
            "The student distilled from accepted samples against the same student on cold-start data",
        ),
        *(
            (name, "student_cold", f"On-policy distillation, {name}, against the student that it goes on from")
            for name, run in runs.items()
            if run.records[0]["stage"] == "on_policy_distillation" and name not in study["twins"]
        ),
    ):
        if better in runs and base in runs:
            text, bracket = percent(runs[better].minus(runs[base], metric), sign=True)
            sentences.append(f"{words}: {text} points {bracket}.")
    return sentences


def reward_model_facts(results: Path, runs: dict[str, Run]) -> dict | None:
    """The reward model's held-out accuracy in a sentence; None if the study has none."""
    path = results / "reward_model" / "run.json"
    if not path.is_file():
        return None
    held_out = json.loads(path.read_text(encoding="utf-8"))["held_out"]
    gold = Interval(*(held_out[f"pair_accuracy_gold{part}"] for part in ("", "_low", "_high")))
    rater = Interval(*(held_out[f"pair_accuracy_rater{part}"] for part in ("", "_low", "_high")))
    return {
        "text": f"On {held_out['held_out_pairs']:,} held-out pairs of {held_out['held_out_prompts']:,} prompts it "
        f"prefers the response that the gold answer prefers in {' '.join(percent(gold))} %, and the one that the "
        f"fallible rater preferred in {' '.join(percent(rater))} % (Wilson intervals over prompts)."
    }


def warnings(results: Path, runs: dict[str, Run]) -> list[str]:
    """What a skeptical reader should know before reading on."""
    found = []
    records = [
        json.loads(p.read_text(encoding="utf-8")) for stage in STAGES for p in (results / stage).rglob("run.json")
    ]
    commits = {str(record["commit"]) for record in records}
    if len(commits) > 1:
        found.append(f"The stages come from {len(commits)} different commits: {', '.join(sorted(commits))}.")
    if any(commit.endswith("-dirty") for commit in commits):
        found.append("Some stages were made from files that differ from their commit (-dirty).")
    if any(len(run.seeds) == 1 for run in runs.values() if run.is_rl):
        found.append("One seed: intervals cover new questions only and say nothing about another seed.")
    elif any(len(run.seeds) < 3 for run in runs.values() if run.is_rl):
        found.append("Fewer than 3 seeds: the intervals over seeds are wide.")
    return found


def cost_table(speed: pd.DataFrame, table: pd.DataFrame) -> Markup:
    """Throughput by phase and memory, as HTML."""
    peaks = table.set_index("run")
    rows = []
    for _, row in speed.iterrows():
        rate = f"{row['tokens_per_second']:,.0f}"
        if not np.isnan(row["tokens_per_second_low"]):
            rate += f" [{max(row['tokens_per_second_low'], 0):,.0f}, {row['tokens_per_second_high']:,.0f}]"
        rows.append(
            {
                "run": row["run"],
                "tokens/s": rate,
                **{f"{phase}, s": f"{row[f'{phase}_seconds']:.1f}" for phase in figures.PHASES},
                "generate, tokens/s": f"{row['generate_tokens_per_second']:,.0f}",
                "update, tokens/s": f"{row['update_tokens_per_second']:,.0f}",
                "model states, MB": f"{peaks.loc[row['run'], 'state_megabytes']:.1f}",
                "peak, MB": f"{peaks.loc[row['run'], 'peak_megabytes']:,.0f}",
            }
        )
    return Markup(pd.DataFrame(rows).to_html(index=False, border=0, escape=True))


def first_samples(results: Path, runs: dict[str, Run]) -> tuple[str, list[dict]]:
    """The first test problem's prompt, and each run's first sampled response to it."""
    problem = read_jsonl(results / "data" / "test.jsonl")[0]
    samples = []
    for run in runs.values():
        path = results / "runs" / run.name / f"seed{run.seeds[0]}" / "evaluation" / "responses.jsonl"
        row = next(r for r in read_jsonl(path) if r["problem"] == problem["id"] and r["sample"] == 0)
        samples.append({"run": run.name, "response": row["response"], "correct": row["correct"]})
    prompt = problem["prompt"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False), samples


def write(results: Path, study: dict, out: Path) -> None:
    """All tables and figures, and report.html with the figures inside."""
    out.mkdir(parents=True, exist_ok=True)
    k = study["samples"]
    metric = f"mean@{k}"
    runs = collect(results, study)
    table, speed, states = comparison(runs, study), throughput(runs), memory(runs)
    table.to_csv(out / "comparison.csv", index=False, float_format="%.6g")
    (out / "comparison.md").write_text(markdown(table, k), encoding="utf-8")
    speed.to_csv(out / "throughput.csv", index=False, float_format="%.6g")
    states.to_csv(out / "memory.csv", index=False, float_format="%.6g")
    curves(runs).to_csv(out / "curves.csv", index=False, float_format="%.6g")
    resolved, made = estimators(runs), provenance(runs)
    resolved.to_csv(out / "estimators.csv")
    made.to_csv(out / "provenance.csv", index=False, float_format="%.6g")

    figures.accuracy(table, runs, study["twins"], metric, out / "accuracy.svg")
    figures.curves(
        runs, study["twins"], "generated_tokens", "generated tokens (thousands)", 1e3, out / "curves_tokens.svg"
    )
    figures.curves(runs, study["twins"], "seconds", "wall-clock time of training (s)", 1.0, out / "curves_time.svg")
    figures.memory(states, runs, out / "memory.svg")
    figures.throughput(speed, out / "throughput.svg")
    drawn = ["accuracy", "curves_tokens", "curves_time", "memory", "throughput"]
    learned = {n: r for n, r in runs.items() if r.is_rl and "reward_reward_model" in r.metrics[0]}
    if learned:
        figures.proxy_and_gold(learned, out / "proxy_and_gold.svg")
        drawn.append("proxy_and_gold")

    columns, rows = score_rows(table, k)
    problem, samples = first_samples(results, runs)
    first = next(run for run in runs.values() if run.is_rl)
    hardware = first.records[0]["hardware"]
    seeds = max(len(run.seeds) for run in runs.values())
    rl = sum(len(run.seeds) for run in runs.values() if run.is_rl)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            k=k,
            warnings=warnings(results, runs),
            findings=findings(table, runs, study),
            score_columns=columns,
            score_rows=rows,
            lead=f"Task {study['task']}, {runs['cold_start'].scores[0]['problems']} test problems, "
            f"{rl} reinforcement-learning runs of "
            f"{first.records[0]['generated_responses']:,} responses each, on {hardware['gpu'] or hardware['cpu']} "
            f"({hardware['cores']} cores). Study file {study['source']}, commit {first.records[0]['commit']}.",
            figures={name: inline_svg(out / f"{name}.svg", name) for name in drawn},
            captions={name: caption(name, seeds) for name in drawn},
            twins=twin_rows(table, study, metric),
            trl_version=first.records[0]["packages"]["trl"],
            cost_table=cost_table(speed, table),
            reward_model=reward_model_facts(results, runs),
            estimators=resolved,
            provenance=made,
            samples=samples,
            problem=problem,
            command=f"snakemake --cores all --forcerun report --configfile {study['source']}",
        )
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def twin_rows(table: pd.DataFrame, study: dict, metric: str) -> list[dict]:
    rows = table.set_index("run")
    seconds = rows["train_seconds"]
    return [
        {
            "run": ours,
            "twin": twin,
            "ours": " ".join(percent(row_interval(rows.loc[ours], metric))),
            "theirs": " ".join(percent(row_interval(rows.loc[twin], metric))),
            "difference": " ".join(percent(row_interval(rows.loc[ours], "minus_twin"), sign=True)),
            "verdict": rows.loc[ours, "against_twin"],
            "seconds": f"{seconds[ours]:.0f} : {seconds[twin]:.0f}",
        }
        for twin, ours in study["twins"].items()
    ]


def caption(name: str, seeds: int) -> str:
    """A figure's caption, the same text as in Snakemake's own report."""
    template = environment().from_string((CAPTIONS / f"{name}.rst").read_text(encoding="utf-8"))
    return template.render(snakemake={"config": {"seeds": [None] * seeds}}).strip()


def environment() -> jinja2.Environment:
    """Templates with everything escaped: model output is untrusted."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )


def inline_svg(path: Path, name: str) -> Markup:
    """A figure for the inside of the page. Ids get the figure's name in front, so that figures do not mix."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        text = text.replace(mark, f"{mark}{name}-")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study", required=True, help="what the study compares, as JSON (pipelines.study.Study.report)"
    )
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    try:
        write(args.results, json.loads(args.study), args.out)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
