"""Tables -> sentences. Every sentence of the report that states a result is computed here from the files."""

from pathlib import Path

import numpy as np
import pandas as pd

from algos.training.stage.records import find_records, key_of
from evaluation.collect import Stage, read_json, record_folders, rl_stages, verdict
from evaluation.statistics import Interval, wilson

WORDS = {
    "higher": "higher than it",
    "lower": "lower than it",
    "tie": "not told apart from it",
    "no interval": "without an interval",
}


def percent(interval: Interval, sign: bool = False) -> tuple[str, str]:
    """("61.2", "[58.0, 64.4]"), in percent or points; the bracket is empty where there is no interval."""
    plus = "+" if sign else ""
    text = f"{100 * interval.mean:{plus}.1f}"
    if np.isnan(interval.low):
        return text, ""
    return text, f"[{100 * interval.low:{plus}.1f}, {100 * interval.high:{plus}.1f}]"


def in_words(interval: Interval | None, sign: bool = False) -> str:
    assert interval is not None  # every row that a sentence is about has its score
    return " ".join(percent(interval, sign)).strip()


def row_interval(row: pd.Series, name: str) -> Interval | None:
    if name not in row or pd.isna(row[name]):
        return None
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def findings(table: pd.DataFrame, pairs: pd.DataFrame, stages: dict[str, Stage], baselines: dict, k: int) -> list[str]:
    """Gains over each start, the best RL stage, TRL baselines, and the pairs that differ in one thing."""
    return [
        *start_sentences(table, f"mean@{k}"),
        *best_sentence(stages, f"mean@{k}"),
        *baseline_sentence(table, baselines),
        *pair_sentences(pairs, baselines),
    ]


def start_sentences(table: pd.DataFrame, metric: str) -> list[str]:
    """A sentence for each evaluated stage that others start from, and one for the stages that start from a model."""
    rows = {row["stage"]: row for _, row in table.iterrows()}
    sentences = []
    for start, group in table[table["from"].isin(list(rows))].groupby("from", sort=False):
        score = in_words(row_interval(rows[str(start)], metric))
        parts = []
        for word, members in group.groupby("against_start", sort=False):
            gains = [
                f"{row['stage']} {in_words(row_interval(row, 'minus_start'), True)}" for _, row in members.iterrows()
            ]
            parts.append(f"{WORDS[str(word)]}: {', '.join(gains)}")
        sentences.append(
            f"{start} solves {score} % of the test problems when sampled ({metric}). "
            f"Stages that start from {start}, in points: {'; '.join(parts)}."
        )
    others = [
        f"{row['stage']} {in_words(row_interval(row, metric))} % (from {row['from']})"
        for _, row in table[~table["from"].isin(list(rows))].iterrows()
    ]
    if others:
        sentences.append(f"Stages whose start is not evaluated, {metric}: {', '.join(others)}.")
    return sentences


def best_sentence(stages: dict[str, Stage], metric: str) -> list[str]:
    own = [stage for stage in rl_stages(stages) if stage.trainer != "trl"]
    if len(own) < 2:
        return []
    best = max(own, key=lambda stage: stage.grid(metric).mean())
    equal = [stage.name for stage in own if stage is not best and verdict(best.minus(stage, metric)) != "higher"]
    tie = f"It cannot be told from {', '.join(equal)}." if equal else "Its lead over every other one excludes 0."
    return [f"The highest mean of our RL stages is {best.name}’s, {100 * best.grid(metric).mean():.1f} %. {tie}"]


def baseline_sentence(table: pd.DataFrame, baselines: dict[str, str]) -> list[str]:
    if not baselines:
        return []
    rows = table.set_index("stage")
    apart = [f"{trl} and {own}" for trl, own in baselines.items() if rows.loc[trl, "against_own"] != "tie"]
    ties = len(baselines) - len(apart)
    more = f" Apart, or without an interval: {', '.join(apart)}." if apart else ""
    return [f"{ties} of {len(baselines)} TRL baselines tie with our own stage.{more}"]


def pair_sentences(pairs: pd.DataFrame, baselines: dict[str, str]) -> list[str]:
    """The pairs that differ in one thing, TRL baselines left out: how many, and those whose intervals exclude 0."""
    one = pairs[(pairs["differences"] == 1) & ~pairs["stage"].isin(baselines) & ~pairs["against"].isin(baselines)]
    if one.empty:
        return []
    apart = [
        f"{row['stage']} is {row['verdict']} than {row['against']}, "
        f"{in_words(row_interval(row, 'difference'), True)} points ({row['differs']})"
        for _, row in one[one["verdict"].isin(["higher", "lower"])].iterrows()
    ]
    told = "; ".join(apart) if apart else "none of them can be told apart"
    count = "1 pair differs" if len(one) == 1 else f"{len(one)} pairs differ"
    return [f"{count} in one thing (TRL baselines aside): {told}."]


def reward_model_sentences(results: Path, study: dict) -> list[str]:
    """Each reward model's accuracy on held-out pairs, with Wilson intervals over prompts."""
    return [
        _held_out(f"{name}, seed {seed}", read_json(results / "stages" / name / f"seed{seed}" / "run.json")["held_out"])
        for name, stage in study["stages"].items()
        if stage["kind"] == "reward_model"
        for seed in stage["seeds"]
    ]


def _held_out(name: str, held_out: dict) -> str:
    prompts = held_out["held_out_prompts"]
    parts = []
    for label, words in (("gold", "the gold answer prefers"), ("rater", "the rater preferred")):
        if f"pair_accuracy_{label}" in held_out:
            interval = wilson(held_out[f"pair_accuracy_{label}"] * prompts, prompts)
            parts.append(f"the response that {words} in {in_words(interval)} %")
    return (
        f"{name}: on {held_out['held_out_pairs']:,} held-out pairs of {prompts:,} prompts it prefers "
        f"{', and '.join(parts)} (mean over prompts, Wilson intervals over prompts)."
    )


def study_records(results: Path, study: dict) -> list[dict]:
    """run.json of the data, the study's models, and its stages and seeds; not of what an earlier study left there."""
    wanted = {"data", *(f"models/{name}" for name in study["models"])}
    for name, stage in study["stages"].items():
        wanted |= {key_of(results, d) for folders in record_folders(results, name, stage) for d in folders}
    return [read_json(d / "run.json") for d in find_records(results) if key_of(results, d) in wanted]


def warnings(records: list[dict], stages: dict[str, Stage]) -> list[str]:
    """Reasons for doubt that a reader should know before reading on."""
    found = []
    commits = sorted({str(record["commit"]) for record in records})
    if len(commits) > 1:
        found.append(f"The stages come from {len(commits)} different commits: {', '.join(commits)}.")
    if any(commit.endswith("-dirty") for commit in commits):
        found.append("Some stages were made from files that differ from their commit (-dirty).")
    single = [stage.name for stage in stages.values() if len(stage.seeds) == 1]
    few = [stage.name for stage in stages.values() if len(stage.seeds) == 2]
    if single:
        which = "All stages have" if len(single) == len(stages) else f"{', '.join(single)}:"
        found.append(f"{which} one seed; intervals cover new questions only and say nothing about another seed.")
    if few:
        found.append(f"{', '.join(few)}: two seeds; the intervals over seeds are wide.")
    return found


def origin(records: list[dict], study: dict) -> str:
    """One line: the study file, the commits and the machines that made the numbers."""
    commits = sorted({str(record["commit"]) for record in records})
    machines = sorted(
        {f"{r['hardware']['gpu'] or r['hardware']['cpu']} ({r['hardware']['cores']} cores)" for r in records}
    )
    named = "commit" if len(commits) == 1 else "commits"
    return f"Study file {study['source']}, {named} {', '.join(commits)}, on {', '.join(machines)}."
