"""A study's files -> tables: one row a run, with intervals over seeds and questions. No model, no plot."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from algos.pieces.settings import SettingsError
from evaluation.statistics import Interval, mean_interval, seed_interval
from evaluation.tasks.files import read_jsonl

PHASES = ("generate", "reward", "logprobs", "update")
COMPONENTS = ("policy", "critic", "reference", "reward_model")
COUNTS = ("response_tokens", "distinct_answers")  # per-problem metrics that are no shares
PARTS = ("weights", "gradients", "optimizer", "master")


@dataclass
class Run:
    """One run over its seeds, as its files tell it."""

    name: str
    seeds: list[int]
    records: list[dict]  # run.json of each seed
    scores: list[dict]  # evaluation/scores.json of each seed
    metrics: list[pd.DataFrame] = field(repr=False, default_factory=list)  # metrics.jsonl of each seed

    @property
    def is_rl(self) -> bool:
        return self.records[0]["stage"] == "train"

    @property
    def algorithm(self) -> str:
        return self.records[0].get("algorithm", "")

    @property
    def trainer(self) -> str:
        return self.records[0].get("trainer", "")

    def grid(self, metric: str) -> np.ndarray:
        """Scores (seeds, questions) of a per-problem metric."""
        return np.array([scores["per_problem"][metric] for scores in self.scores], dtype=float)

    def interval(self, metric: str) -> Interval:
        """Mean with its 95 % interval, which stays within 0..1 for shares."""
        scores = self.grid(metric)
        interval = mean_interval(scores)
        if metric in COUNTS:
            return interval
        return Interval(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0))

    def minus(self, other: "Run", metric: str) -> Interval:
        """The paired difference self - other: same questions, and the same seeds where both have them."""
        mine, theirs = self.grid(metric), other.grid(metric)
        if len(theirs) not in (1, len(mine)) or (len(theirs) > 1 and self.seeds != other.seeds):
            raise SettingsError(
                f"{self.name} and {other.name} have different seeds, {self.seeds} and {other.seeds}; "
                "their difference is not paired."
            )
        return mean_interval(mine - theirs)


def collect(results: Path, study: dict) -> dict[str, Run]:
    """All evaluated runs of a study, in the order of its file."""
    runs = {}
    for name, seeds in study["checkpoints"].items():
        folders = [results / "runs" / name / f"seed{seed}" for seed in seeds]
        records = [_read(folder / "run.json") for folder in folders]
        scores = [_read(folder / "evaluation" / "scores.json") for folder in folders]
        runs[name] = Run(
            name, seeds, records, scores, [pd.DataFrame(read_jsonl(folder / "metrics.jsonl")) for folder in folders]
        )
    return runs


def _read(path: Path) -> dict:
    if not path.is_file():
        raise SettingsError(f"{path} is missing: the run that writes it has not finished.")
    return json.loads(path.read_text(encoding="utf-8"))


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def verdict(difference: Interval) -> str:
    """higher or lower if the 95 % interval excludes 0, else tie; one without an interval is no verdict."""
    if np.isnan(difference.low):
        return "no interval"
    if not difference.excludes_zero:
        return "tie"
    return "higher" if difference.mean > 0 else "lower"


def comparison(runs: dict[str, Run], study: dict) -> pd.DataFrame:
    """One row a run: test scores and their differences to the cold start and to the TRL twin, cost, lengths."""
    k = study["samples"]
    main = f"mean@{k}"
    cold = runs["cold_start"]
    twin_of = {ours: twin for twin, ours in study["twins"].items()}
    rows = []
    for run in runs.values():
        row = {
            "run": run.name,
            "algorithm": run.algorithm,
            "trainer": run.trainer,
            "seeds": len(run.seeds),
            **_columns(main, run.interval(main)),
            **_columns("greedy", run.interval("greedy")),
        }
        for metric in (
            f"pass@{k}",
            f"maj@{k}",
            "greedy_flexible",
            f"mean@{k}_flexible",
            "format_rate",
            "truncation_rate",
            "response_tokens",
            "distinct_answers",
        ):
            row |= _columns(metric, run.interval(metric))
        if run is not cold:
            gain = run.minus(cold, main)
            row |= {
                **_columns("minus_cold_start", gain),
                "against_cold_start": verdict(gain),
                **_columns("greedy_minus_cold_start", run.minus(cold, "greedy")),
            }
        if run.name in twin_of and twin_of[run.name] in runs:
            gap = run.minus(runs[twin_of[run.name]], main)
            row |= {"twin": twin_of[run.name], **_columns("minus_twin", gap), "against_twin": verdict(gap)}
        if run.is_rl:  # share of tokens (PPO, GRPO) or of responses (GSPO) that clipping silenced, mean over the run
            shares = [frame["clip_fraction"].mean() for frame in run.metrics if "clip_fraction" in frame]
            row["clip_fraction"] = np.mean(shares) if shares else np.nan  # REINFORCE has nothing to clip
        generated = [record.get("generated_tokens") for record in run.records]
        row["generated_tokens"] = np.mean(generated) if all(generated) else np.nan
        row["train_seconds"] = np.mean([sum(record.get("phase_seconds", {}).values()) for record in run.records])
        row["peak_megabytes"] = np.mean(
            [record.get("peak_memory", {}).get("peak_bytes", np.nan) / 1e6 for record in run.records]
        )
        row["state_megabytes"] = np.mean([_state_bytes(record) / 1e6 for record in run.records])
        rows.append(row)
    return pd.DataFrame(rows)


def _state_bytes(record: dict) -> int:
    return sum(parts.get(part, 0) for parts in record.get("memory", {}).values() for part in PARTS)


def throughput(runs: dict[str, Run]) -> pd.DataFrame:
    """Seconds and generated tokens per second of each phase, over whole runs; mean and interval over seeds."""
    rows = []
    for run in filter(lambda r: r.is_rl, runs.values()):
        row = {"run": run.name, "algorithm": run.algorithm, "trainer": run.trainer}
        for phase in PHASES:
            seconds = np.array([record["phase_seconds"].get(phase, 0.0) for record in run.records])
            row[f"{phase}_seconds"] = seconds.mean()
            tokens = np.array([record["generated_tokens"] for record in run.records])
            row[f"{phase}_tokens_per_second"] = (tokens / seconds).mean() if (seconds > 0).all() else np.nan
        rate = np.array([r["generated_tokens"] / sum(r["phase_seconds"].values()) for r in run.records])
        row |= _columns("tokens_per_second", seed_interval(rate))
        row["seconds"] = np.mean([sum(r["phase_seconds"].values()) for r in run.records])
        rows.append(row)
    return pd.DataFrame(rows)


def memory(runs: dict[str, Run]) -> pd.DataFrame:
    """Megabytes (1e6 bytes) of weights, gradients, optimizer state and masters by component, and the measured peak."""
    rows = []
    for run in filter(lambda r: r.is_rl, runs.values()):
        record = run.records[0]
        for component in COMPONENTS:
            parts = record["memory"].get(component)
            if parts:
                rows.append(
                    {
                        "run": run.name,
                        "algorithm": run.algorithm,
                        "trainer": run.trainer,
                        "component": component,
                        "parameters": parts["parameters"],
                        **{f"{p}_megabytes": parts.get(p, 0) / 1e6 for p in PARTS},
                        "run_peak_megabytes": record["peak_memory"]["peak_bytes"] / 1e6,
                        "peak_source": record["peak_memory"]["source"],
                    }
                )
    return pd.DataFrame(rows)


def estimators(runs: dict[str, Run]) -> pd.DataFrame:
    """What each run's settings resolve to, one column a run: the answer to "which GRPO is this?"."""
    table = {}
    for run in filter(lambda r: r.is_rl, runs.values()):
        settings = run.records[0]["settings"]
        table[run.name] = {
            "algorithm": run.algorithm,
            "trainer": run.trainer,
            **run.records[0]["estimator"],
            "rewards": ", ".join(f"{weight:g} x {name}" for name, weight in settings["rewards"].items()),
            "updates per rollout batch": f"{settings['epochs']} x {settings['minibatches']}",
            "responses per batch": f"{settings['prompts_per_step']} x {settings['group_size']}",
            "learning rate": settings["optimizer"]["learning_rate"],
        }
    return pd.DataFrame(table)


def provenance(runs: dict[str, Run]) -> pd.DataFrame:
    """Which command, commit and machine made each run's numbers."""
    rows = []
    for run in runs.values():
        for seed, record in zip(run.seeds, run.records, strict=True):
            rows.append(
                {
                    "run": run.name,
                    "seed": seed,
                    "commit": record["commit"],
                    "device": record.get("device"),
                    "cpu": record["hardware"]["cpu"],
                    "gpu": record["hardware"]["gpu"],
                    "threads": record["threads"],
                    "seconds": record["seconds"],
                    "torch": record["packages"]["torch"],
                    "transformers": record["packages"]["transformers"],
                    "trl": record["packages"]["trl"],
                    "command": shlex.join(record["command"]),
                }
            )
    return pd.DataFrame(rows)


def curve(run: Run, x: str, y: str) -> pd.DataFrame:
    """Mean over seeds of metric y against metric x, step by step, with the lowest and highest seed.

    Each seed's y is averaged over 3 neighboring steps: one rollout batch of a few hundred responses is noisy.
    """
    if x == "seconds":  # of training alone: start-up is left out, for our loop and TRL's alike
        xs = [frame["step_seconds"].cumsum() for frame in run.metrics]
    else:
        xs = [frame[x] for frame in run.metrics]
    smooth = [frame[y].rolling(3, min_periods=1, center=True).mean() for frame in run.metrics]
    steps = min(len(frame) for frame in run.metrics)
    values = np.array([s.to_numpy()[:steps] for s in smooth], dtype=float)
    xs = np.array([column.to_numpy()[:steps] for column in xs], dtype=float)
    return pd.DataFrame(
        {"x": xs.mean(axis=0), "mean": values.mean(axis=0), "low": values.min(axis=0), "high": values.max(axis=0)}
    )


def curves(runs: dict[str, Run]) -> pd.DataFrame:
    """The learning curves as numbers: accuracy of each step against generated tokens and seconds."""
    tables = []
    for run in filter(lambda r: r.is_rl, runs.values()):
        tokens, seconds = curve(run, "generated_tokens", "accuracy"), curve(run, "seconds", "accuracy")
        table = tokens.rename(
            columns={"x": "generated_tokens", "mean": "accuracy", "low": "lowest_seed", "high": "highest_seed"}
        )
        table.insert(1, "seconds", seconds["x"])
        table.insert(0, "step", range(len(table)))
        table.insert(0, "run", run.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
