"""A study's files -> tables: one row a stage, with intervals over seeds and questions. No model, no plot."""

import json
import re
import shlex
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algos.pieces.settings import SettingsError
from evaluation.statistics import Interval, mean_interval, seed_interval, share_interval, spread
from evaluation.statistics.robust import exact_share, failed, interquartile_mean, performance_profile
from evaluation.statistics.verdicts import ONE_SEED, Comparison, Judgement, own_interval
from evaluation.tasks.files import read_jsonl

PHASES = ("generate", "reward", "logprobs", "update")  # of every RL stage; some have others, such as offload
COMPONENTS = ("policy", "critic", "reference", "reward_model", "behavior")
COUNTS = ("response_tokens", "distinct_answers")  # per-problem metrics that are counts
LOSSES = ("text_loss",)  # in nats, without bounds; all others are shares
PARTS = ("weights", "gradients", "optimizer", "master")
WORK = ("generated_tokens", "trained_tokens", "teacher_tokens", "optimizer_steps")  # facts that some kinds record
NO_INTERVAL = Interval(float("nan"), float("nan"), float("nan"))


@dataclass
class Stage:
    """An evaluated stage over its seeds, or an evaluated model: its place in the study's graph, and its files."""

    name: str
    kind: str
    start: str | None  # the stage or model that the stage starts from
    like: str | None  # the stage whose settings the study file copies
    edges: dict[str, str]
    seeds: list[int]
    records: list[dict]  # run.json of each seed
    scores: list[dict]  # scores.json of each seed's evaluation
    metrics: list[pd.DataFrame] = field(repr=False, default_factory=list)  # metrics.jsonl of each seed, without dev
    dev: list[pd.DataFrame] = field(repr=False, default_factory=list)  # its lines of dev accuracy; may be empty
    tuning: dict | None = field(repr=False, default=None)  # tuning.json of a stage that is tuned

    @property
    def is_rl(self) -> bool:
        return self.kind == "rl"

    @property
    def settings(self) -> dict:
        """The settings of the first seed, as the stage ran with them."""
        return self.records[0]["settings"]

    @property
    def algorithm(self) -> str:
        return self.records[0].get("algorithm", "")

    @property
    def trainer(self) -> str:
        return self.records[0].get("trainer") or self.settings.get("trainer") or ""

    def grid(self, metric: str, seeds: list[int] | None = None) -> np.ndarray:
        """Scores (seeds, questions) of a per-problem metric; seeds: these in this order, by default all."""
        chosen = self.seeds if seeds is None else seeds
        return np.array([self.scores[self.seeds.index(s)]["per_problem"][metric] for s in chosen], dtype=float)

    def interval(self, metric: str) -> Interval:
        """Mean with its 95 % interval, which stays within 0..1 for shares."""
        scores = self.grid(metric)
        if metric in LOSSES:
            return spread(scores).interval(whole=False)
        return mean_interval(scores).within(0.0, np.inf) if metric in COUNTS else share_interval(scores)

    @property
    def reach(self) -> list[int]:
        """The k of every pass@k that all seeds have: the samples of the evaluation, and those of its `reach`."""
        names = set.intersection(*(set(scores["per_problem"]) for scores in self.scores))
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"pass@(\d+)", name)))

    def failed(self, metric: str, start: "Stage | None") -> np.ndarray:
        """Which seeds have failed: their runs did not end, or see evaluation.statistics.robust."""
        low = failed(self.grid(metric).mean(axis=1), float(start.grid(metric).mean()) if start else 0.0)
        return low | np.array([seed in self.broken for seed in self.seeds])

    @property
    def broken(self) -> dict[int, str]:
        """The seeds whose runs have failed while they trained, and why; scored is the last good checkpoint of each."""
        return {s: r["failure"]["reason"] for s, r in zip(self.seeds, self.records, strict=False) if "failure" in r}

    @property
    def whole(self) -> list[pd.DataFrame]:
        """The metrics of each seed whose run came to its end."""
        return [frame for seed, frame in zip(self.seeds, self.metrics, strict=True) if seed not in self.broken]

    @property
    def whole_dev(self) -> list[pd.DataFrame]:
        """The lines of dev accuracy of each seed whose run came to its end."""
        return [frame for seed, frame in zip(self.seeds, self.dev, strict=True) if seed not in self.broken]

    def against(self, other: "Stage", metric: str, pool: Hashable | None = None) -> Comparison:
        """The paired difference self - other: same questions, seed against seed (see paired_seeds)."""
        pairs = self.paired_seeds(other)
        if not pairs:
            return Comparison(None, float(self.grid(metric).mean() - other.grid(metric).mean()))
        mine, theirs = (list(seeds) for seeds in zip(*pairs, strict=True))
        found = spread(self.grid(metric, mine) - other.grid(metric, theirs))
        return Comparison(found, found.mean, found.seeds == 1 or self.rests_on_one_seed(other), pool)

    def rests_on_one_seed(self, other: "Stage") -> bool:
        """Whether the difference says nothing about another seed of one of the two.

        A start with one seed is the start that all seeds of the stage have: they are compared with this checkpoint.
        """
        if self.start == other.name:
            return len(self.seeds) == 1
        return len(other.seeds) == 1 or (len(self.seeds) == 1 and other.start != self.name)

    def minus(self, other: "Stage", metric: str) -> Interval:
        """The paired difference self - other with its 95 % interval; without one where no seeds can be paired."""
        found = self.against(other, metric)
        if metric in LOSSES and found.spread is not None:
            return replace(found.spread.interval(whole=False), one_seed=found.one_seed)
        return own_interval(found)

    def paired_seeds(self, other: "Stage") -> list[tuple[int, int]]:
        """Which seed is set against which: (of self, of other).

        A stage and its start: each seed against the one that it went on from. Else a stage with one seed stands against
        all seeds of the other one, and stages with several against the same seeds.
        """
        if other.start == self.name and self.start != other.name:
            return [(a, b) for b, a in other.paired_seeds(self)]
        if len(other.seeds) == 1 or (len(self.seeds) == 1 and self.start != other.name):
            return [(a, b) for a in self.seeds for b in other.seeds]
        return [(seed, seed) for seed in self.seeds if seed in other.seeds]

    def minus_start(self, start: "Stage", metric: str) -> Interval:
        """The paired difference to the stage that this one starts from. Raises SettingsError for a seed without one."""
        if len(self.paired_seeds(start)) < len(self.seeds):
            raise SettingsError(
                f"{self.name} has the seeds {self.seeds} and starts from {start.name}, which has {start.seeds}; "
                "their difference is not paired."
            )
        return self.minus(start, metric)


def collect(results: Path, study: dict) -> dict[str, Stage]:
    """All evaluated stages of a study, in the order of its file."""
    return {name: _stage(results, name, facts) for name, facts in study["stages"].items() if facts["evaluated"]}


def record_folders(results: Path, name: str, facts: dict) -> list[tuple[Path, Path]]:
    """The folders of each seed's record and of its evaluation, of a stage or of a model that the study starts from."""
    if facts["kind"] == "model":
        model = results / "models" / name
        return [(model, model / "evaluation" / name)]
    stage = results / "stages" / name
    return [(stage / f"seed{seed}", stage / "evaluation" / f"seed{seed}") for seed in facts["seeds"]]


def _stage(results: Path, name: str, facts: dict) -> Stage:
    folders = record_folders(results, name, facts)
    lines = [read_jsonl(record / "metrics.jsonl") for record, _ in folders]
    return Stage(
        name,
        facts["kind"],
        facts["from"],
        facts["like"],
        facts["edges"],
        facts["seeds"],
        [finished_record(record) for record, _ in folders],
        [read_json(evaluation / "scores.json") for _, evaluation in folders],
        [pd.DataFrame([line for line in seed if "dev_accuracy" not in line]) for seed in lines],
        [pd.DataFrame([line for line in seed if "dev_accuracy" in line]) for seed in lines],
        read_json(results / "stages" / name / "tuning.json") if facts.get("tuned") else None,
    )


def finished_record(folder: Path) -> dict:
    """A stage's run.json. Raises SettingsError while the stage runs: its scores would be those of an earlier run."""
    record = read_json(folder / "run.json")
    if record["status"] not in ("finished", "failed"):
        raise SettingsError(f"{folder / 'run.json'}: status is {record['status']}; let the stage finish first.")
    return record


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise SettingsError(f"{path} is missing: the stage that writes it has not finished.")
    return json.loads(path.read_text(encoding="utf-8"))


def rl_stages(stages: dict[str, Stage]) -> list[Stage]:
    return [stage for stage in stages.values() if stage.is_rl]


def columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


Judge = Callable[[Stage, Stage], Judgement]  # of the difference: the first minus the second


def interval_for(one_seed: bool) -> str:
    return ONE_SEED if one_seed else "new seeds and questions"


def comparison(stages: dict[str, Stage], baselines: dict[str, str], k: int, judge: Judge) -> pd.DataFrame:
    """One row a stage: test scores, their difference to the stage's start, and a TRL baseline's to our own stage."""
    return pd.DataFrame([_comparison_row(stage, stages, baselines, k, judge) for stage in stages.values()])


def _comparison_row(stage: Stage, stages: dict[str, Stage], baselines: dict[str, str], k: int, judge: Judge) -> dict:
    main = f"mean@{k}"
    row: dict[str, Any] = {
        "stage": stage.name,
        "kind": stage.kind,
        "algorithm": stage.algorithm,
        "trainer": stage.trainer,
        "from": stage.start,
        "seeds": len(stage.seeds),
        "interval_for": interval_for(len(stage.seeds) == 1),
    }
    for metric in (
        main,
        "greedy",
        f"pass@{k}",
        f"maj@{k}",
        "greedy_flexible",
        f"mean@{k}_flexible",
        "format_rate",
        "truncation_rate",
        "response_tokens",
        "distinct_answers",
    ):
        row |= columns(metric, stage.interval(metric))
    has_text = all("text_loss" in scores["per_problem"] for scores in stage.scores)
    start, own = stages.get(stage.start or ""), stages.get(baselines.get(stage.name, ""))
    gain, greedy = (stage.minus_start(start, m) if start else NO_INTERVAL for m in (main, "greedy"))
    gap = judge(stage, own) if own else None
    if has_text:
        row |= columns("text_loss", stage.interval("text_loss"))
        row |= columns("text_loss_minus_start", stage.minus_start(start, "text_loss") if start else NO_INTERVAL)
    for name in (*(f"pass@{most}" for most in stage.reach if most != k), f"other_{main}", "other_greedy"):
        if all(name in scores["per_problem"] for scores in stage.scores):
            row |= columns(name, stage.interval(name))
            row |= columns(f"{name}_minus_start", stage.minus_start(start, name) if start else NO_INTERVAL)
    return row | {
        **columns("minus_start", gain),
        "against_start": judge(stage, start).verdict if start else None,
        **columns("greedy_minus_start", greedy),
        "own": own.name if own else None,
        **columns("minus_own", gap.interval if gap else NO_INTERVAL),
        "against_own": gap.verdict if gap else None,
        **_over_seeds(stage, start, main),
        **_cost(stage),
    }


def _over_seeds(stage: Stage, start: Stage | None, metric: str) -> dict[str, float]:
    """What the mean over seeds hides: the share of failed seeds, the mean of the others, and the middle."""
    seeds, bad = stage.grid(metric).mean(axis=1), stage.failed(metric, start)
    rest = [seed for seed, lost in zip(stage.seeds, bad, strict=True) if not lost]
    return {
        f"{metric}_median": float(np.median(seeds)),
        f"{metric}_iqm": interquartile_mean(seeds),
        **columns("failed_seeds", exact_share(int(bad.sum()), len(bad))),
        **columns(f"{metric}_without_failed", share_interval(stage.grid(metric, rest)) if rest else NO_INTERVAL),
    }


def profile(stages: dict[str, Stage], metric: str) -> pd.DataFrame:
    """The performance profile of each stage: the share of its seeds that score above each threshold."""
    thresholds = np.linspace(0, 1, 51)
    tables = [
        pd.DataFrame(
            {
                "stage": stage.name,
                "threshold": thresholds,
                "share_of_seeds_above": performance_profile(stage.grid(metric).mean(axis=1), thresholds),
            }
        )
        for stage in stages.values()
    ]
    return pd.concat(tables, ignore_index=True)


def _cost(stage: Stage) -> dict[str, float]:
    """What a stage spent, as means over its seeds; NaN for work that a stage of its kind does not record."""
    records = stage.records
    # share of tokens (PPO, GRPO) or of responses (GSPO) that clipping silenced; REINFORCE has nothing to clip
    shares = [frame["clip_fraction"].mean() for frame in stage.whole if stage.is_rl and "clip_fraction" in frame]
    return {
        "clip_fraction": np.mean(shares) if shares else np.nan,
        **{name: np.mean([record.get(name, np.nan) for record in records]) for name in WORK},
        "train_seconds": np.mean(
            [sum(training_seconds(record).values()) for record in records if "phase_seconds" in record] or [np.nan]
        ),
        "peak_megabytes": np.mean([r.get("peak_memory", {}).get("peak_bytes", np.nan) / 1e6 for r in records]),
        "state_megabytes": np.mean([_state_bytes(record) / 1e6 for record in records]),
    }


def training_seconds(record: dict) -> dict[str, float]:
    """Seconds of a run by phase, without those that its accuracy on dev problems took."""
    return {phase: seconds for phase, seconds in record["phase_seconds"].items() if phase != "dev"}


def _state_bytes(record: dict) -> int:
    return sum(parts.get(part, 0) for parts in record.get("memory", {}).values() for part in PARTS)


def throughput(stages: dict[str, Stage]) -> pd.DataFrame:
    """Seconds and generated tokens per second of each phase of the RL stages, over whole runs; means over seeds."""
    rows = []
    found = [phase for stage in rl_stages(stages) for record in stage.records for phase in training_seconds(record)]
    phases = list(dict.fromkeys((*PHASES, *found)))
    for stage in rl_stages(stages):
        row: dict[str, Any] = {"stage": stage.name, "algorithm": stage.algorithm, "trainer": stage.trainer}
        tokens = np.array([record["generated_tokens"] for record in stage.records])
        for phase in phases:
            seconds = np.array([record["phase_seconds"].get(phase, 0.0) for record in stage.records])
            row[f"{phase}_seconds"] = seconds.mean()
            row[f"{phase}_tokens_per_second"] = (tokens / seconds).mean() if (seconds > 0).all() else np.nan
        total = np.array([sum(training_seconds(record).values()) for record in stage.records])
        rows.append(row | columns("tokens_per_second", seed_interval(tokens / total)) | {"seconds": total.mean()})
    return pd.DataFrame(rows)


def phases_of(table: pd.DataFrame) -> list[str]:
    """The phases of a table of throughput."""
    return [name.removesuffix("_seconds") for name in map(str, table) if name.endswith("_seconds")]


def memory(stages: dict[str, Stage]) -> pd.DataFrame:
    """Megabytes (1e6 bytes) of weights, gradients, optimizer state and masters by component, and the measured peak."""
    rows = []
    for stage in rl_stages(stages):
        record = stage.records[0]
        for component in filter(record["memory"].get, COMPONENTS):
            parts = record["memory"][component]
            rows.append(
                {
                    "stage": stage.name,
                    "algorithm": stage.algorithm,
                    "trainer": stage.trainer,
                    "component": component,
                    "parameters": parts["parameters"],
                    **{f"{p}_megabytes": parts.get(p, 0) / 1e6 for p in PARTS},
                    "peak_megabytes": record["peak_memory"]["peak_bytes"] / 1e6,
                    "peak_source": record["peak_memory"]["source"],
                }
            )
    return pd.DataFrame(rows)


def estimators(stages: dict[str, Stage]) -> pd.DataFrame:
    """The estimator that each RL stage's settings resolve to, one column a stage: which GRPO is this?"""
    table = {}
    for stage in rl_stages(stages):
        settings = stage.settings
        table[stage.name] = {
            "algorithm": stage.algorithm,
            "trainer": stage.trainer,
            **stage.records[0]["estimator"],
            "rewards": ", ".join(f"{weight:g} x {name}" for name, weight in settings["rewards"].items()),
            "updates per rollout batch": f"{settings['epochs']} x {settings['minibatches']}",
            "responses per batch": f"{settings['prompts_per_step']} x {settings['group_size']}",
            "learning rate": settings["optimizer"]["learning_rate"],
        }
    return pd.DataFrame(table)


def provenance(stages: dict[str, Stage]) -> pd.DataFrame:
    """The command, commit and machine that made each stage's numbers."""
    rows = []
    for stage in stages.values():
        for seed, record in zip(stage.seeds, stage.records, strict=True):
            rows.append(
                {
                    "stage": stage.name,
                    "seed": seed,
                    "commit": record["commit"],
                    "device": record.get("device"),
                    "cpu": record["hardware"]["cpu"],
                    "gpu": record["hardware"]["gpu"],
                    "threads": record["threads"],
                    "seconds": record["seconds"],
                    **{name: record["packages"].get(name) for name in ("torch", "transformers", "trl")},
                    "command": shlex.join(record["command"]),
                }
            )
    return pd.DataFrame(rows)
