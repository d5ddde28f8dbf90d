"""Tables -> sentences. Every sentence of the report that states a result is computed here from the files."""

from pathlib import Path

import numpy as np
import pandas as pd

from algos.training.stage.records import find_records, key_of
from evaluation.collect import Judge, Stage, read_json, record_folders, rl_stages
from evaluation.statistics import Interval, wilson
from evaluation.statistics.verdicts import EQUAL, HIGHER, LOWER, NO_INTERVAL, ONE_SEED, UNKNOWN

WORDS = {
    HIGHER: "higher than it",
    LOWER: "lower than it",
    EQUAL: "equal to it within the margin",
    UNKNOWN: "not told apart from it",
    ONE_SEED: "with one seed, which says nothing about another",
    NO_INTERVAL: "without an interval",
}
VERDICTS = {"minus_start": "against_start", "minus_own": "against_own", "difference": "verdict"}  # columns of tables
OVER_SEEDS = ("failed_seeds",)  # has an interval over seeds, whatever their number


def percent(interval: Interval, sign: bool = False) -> tuple[str, str]:
    """("61.2", "[58.0, 64.4]"), in percent or points; the bracket is empty where there is no interval.

    An interval that says nothing about another seed never stands without these words.
    """
    plus = "+" if sign else ""
    text = f"{100 * interval.mean:{plus}.1f}"
    if np.isnan(interval.low):
        return text, ""
    words = f"; {ONE_SEED}" if interval.one_seed else ""
    return text, f"[{100 * interval.low:{plus}.1f}, {100 * interval.high:{plus}.1f}{words}]"


def in_words(interval: Interval | None, sign: bool = False) -> str:
    assert interval is not None  # every row that a sentence is about has its score
    return " ".join(percent(interval, sign)).strip()


def row_interval(row: pd.Series, name: str) -> Interval | None:
    if name not in row or pd.isna(row[name]):
        return None
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], rests_on_one_seed(row, name))


def probability(p: float) -> str:
    """A p-value to three digits; empty where there is none."""
    if np.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def rests_on_one_seed(row: pd.Series, name: str) -> bool:
    """Whether an interval of a table says nothing about another seed; tables of earlier reports give the seeds only."""
    if name in OVER_SEEDS:
        return False
    if "interval_for" in row:
        return ONE_SEED in (row["interval_for"], row.get(VERDICTS.get(name, "")))
    return bool(row.get("seeds", row.get("paired_seeds")) == 1)


def findings(
    table: pd.DataFrame, pairs: pd.DataFrame, stages: dict[str, Stage], baselines: dict, k: int, judge: Judge
) -> list[str]:
    """Gains over each start, the best RL stage, TRL baselines, and the pairs that differ in one thing."""
    return [
        *start_sentences(table, f"mean@{k}"),
        *best_sentence(stages, f"mean@{k}", judge),
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


def best_sentence(stages: dict[str, Stage], metric: str, judge: Judge) -> list[str]:
    own = [stage for stage in rl_stages(stages) if stage.trainer != "trl"]
    if len(own) < 2:
        return []
    best = max(own, key=lambda stage: stage.grid(metric).mean())
    others = [stage.name for stage in own if stage is not best and judge(best, stage).verdict != HIGHER]
    rest = f"It is not shown to be higher than {', '.join(others)}." if others else "It is higher than every other one."
    return [f"The highest mean of our RL stages is {best.name}’s, {100 * best.grid(metric).mean():.1f} %. {rest}"]


def baseline_sentence(table: pd.DataFrame, baselines: dict[str, str]) -> list[str]:
    if not baselines:
        return []
    rows = table.set_index("stage")
    found: dict[str, list[str]] = {}
    for trl, own in baselines.items():
        found.setdefault(str(rows.loc[trl, "against_own"]), []).append(f"{trl} and {own}")
    words = [f"{verdict}: {', '.join(found[verdict])}" for verdict in WORDS if verdict in found]
    return [f"TRL baselines against our own stages: {'; '.join(words)}."]


def pair_sentences(pairs: pd.DataFrame, baselines: dict[str, str]) -> list[str]:
    """The pairs that differ in one thing, TRL baselines left out: how many, and those that are told apart."""
    one = pairs[(pairs["differences"] == 1) & ~pairs["stage"].isin(baselines) & ~pairs["against"].isin(baselines)]
    if one.empty:
        return []
    apart = [
        f"{row['stage']} is {row['verdict']} than {row['against']}, "
        f"{in_words(row_interval(row, 'difference'), True)} points ({row['differs']})"
        for _, row in one[one["verdict"].isin([HIGHER, LOWER])].iterrows()
    ]
    told = "; ".join(apart) if apart else "none of them can be told apart"
    equal = (one["verdict"] == EQUAL).sum()
    told += f"; {equal} of them {'is' if equal == 1 else 'are'} equal within the margin" if equal else ""
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
        f"{', and '.join(parts)} (mean over prompts, Wilson intervals over prompts, {ONE_SEED})."
    )


def record_keys(results: Path, study: dict) -> list[str]:
    """The folders in `results` with a record of the study: of the data, its models, and its stages and seeds."""
    folders = [
        results / "data",
        results / "data" / "other_task",
        *(results / "models" / name for name in study["models"]),
    ]
    for name, stage in study["stages"].items():
        folders += [folder for pair in record_folders(results, name, stage) for folder in pair]
    found = set(find_records(results))
    return [key_of(results, folder) for folder in dict.fromkeys(folders) if folder in found]


def study_records(results: Path, study: dict) -> list[dict]:
    """run.json of each of them; not of what an earlier study left there."""
    return [read_json(results / key / "run.json") for key in record_keys(results, study)]


def warnings(records: list[dict], stages: dict[str, Stage], metric: str) -> list[str]:
    """Reasons for doubt that a reader should know before reading on."""
    found = []
    commits = sorted({str(record["commit"]) for record in records})
    if len(commits) > 1:
        found.append(f"The stages come from {len(commits)} different commits: {', '.join(commits)}.")
    if any(commit.endswith("-dirty") for commit in commits):
        found.append("Some stages were made from files that differ from their commit (-dirty).")
    trained = [stage for stage in stages.values() if stage.kind != "model"]
    single = [stage.name for stage in trained if len(stage.seeds) == 1]
    few = [stage.name for stage in stages.values() if len(stage.seeds) == 2]
    if single:
        which = "All stages have" if len(single) == len(trained) else f"{', '.join(single)}:"
        found.append(f"{which} one seed; intervals cover new questions only and say nothing about another seed.")
    if few:
        found.append(f"{', '.join(few)}: two seeds; the intervals over seeds are wide.")
    found += [sentence for stage in stages.values() for sentence in _broken(stage)]
    return found + [sentence for stage in stages.values() for sentence in _failures(stage, stages, metric)]


def _broken(stage: Stage) -> list[str]:
    """A sentence for each seed whose run failed while it trained, and one for those whose entropy collapsed."""
    found = [
        f"{stage.name}, seed {seed}: the run failed ({reason}). It counts as a failed seed; scored, and taken over by "
        f"stages that start from it, is {record['failure']['checkpoint']}."
        for seed, reason in stage.broken.items()
        for record in [stage.records[stage.seeds.index(seed)]]
    ]
    steps = {s: r.get("entropy_collapse_step") for s, r in zip(stage.seeds, stage.records, strict=False)}
    collapsed = [f"seed {seed} in step {step}" for seed, step in steps.items() if step is not None]
    return found + ([f"{stage.name}: the entropy collapsed ({', '.join(collapsed)})."] if collapsed else [])


def _failures(stage: Stage, stages: dict[str, Stage], metric: str) -> list[str]:
    lost = stage.failed(metric, stages.get(stage.start or ""))
    lost &= np.array([seed not in stage.broken for seed in stage.seeds])
    if not lost.any():
        return []
    which = ", ".join(str(seed) for seed, bad in zip(stage.seeds, lost, strict=True) if bad)
    middle = 100 * np.median(stage.grid(metric).mean(axis=1))
    return [
        f"{stage.name}: {lost.sum()} of {len(lost)} seeds failed ({which}), with less than half of the score of the "
        f"stage’s median or start. Its mean says little; the median over seeds is {middle:.1f} %."
    ]


def origin(records: list[dict], study: dict) -> str:
    """One line: the study file, the commits and the machines that made the numbers."""
    commits = sorted({str(record["commit"]) for record in records})
    machines = sorted(
        {f"{r['hardware']['gpu'] or r['hardware']['cpu']} ({r['hardware']['cores']} cores)" for r in records}
    )
    named = "commit" if len(commits) == 1 else "commits"
    return f"Study file {study['source']}, {named} {', '.join(commits)}, on {', '.join(machines)}."
