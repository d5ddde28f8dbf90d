"""A study's graph as text: every stage below the one that it starts from, with its jobs and what of them is done."""

import json
from collections.abc import Iterator
from pathlib import Path

from evaluation.tuning.space import shown
from pipelines.plan import Plan

STEMS = {False: ("├─ ", "│  "), True: ("└─ ", "   ")}


def tree(study: Plan) -> str:
    """One line a model and a stage; a stage's other edges stand behind it."""
    rows = [*_rows(study)]
    width = max(len(label) for label, *_ in rows)
    lines = [f"{label:<{width}}  {facts}" for label, facts, *_ in rows]
    jobs, done = sum(row[2] for row in rows), sum(row[3] for row in rows)
    trials = len(study.needed & {*study.trials})
    named = f"{len(study.needed) - trials} stages{f' with {trials} trials' if trials else ''}"
    stages = f"{named}, {jobs} jobs with data and evaluation, {done} of them done"
    return "\n".join([f"{study.name}: {stages} ({study.results})", *lines])


def _rows(study: Plan) -> Iterator[tuple[str, str, int, int]]:
    """Label, facts, jobs and finished jobs of the data, of each model and of each stage below it."""
    yield _row(study, "data", study.settings.task.name, [f"{study.results}/data"])
    if study.other_task is not None:
        yield _row(study, "other_task", study.other_task.name, [f"{study.results}/data/other_task"])
    for model in study.settings.models:
        config = study.model(model)
        what = config.source or f"{config.layers} layers of {config.hidden_size}"
        folders = [f"{study.results}/models/{model}"]
        folders += [f"{folders[0]}/evaluation/{model}"] if model in study.evaluated_models else []
        yield _row(study, model, f"model    {what}", folders)
        yield from _below(study, model, "")
    for name in [name for name, stage in study.stages.items() if "from" not in stage.edges]:
        yield _stage(study, name, "", name)


def _below(study: Plan, parent: str, indent: str) -> Iterator[tuple[str, str, int, int]]:
    children = [n for n, s in study.stages.items() if s.edges.get("from") == parent and s.trial_of is None]
    for name in children:
        stem, deeper = STEMS[name == children[-1]]
        yield _stage(study, name, f"{indent}{stem}", name)
        for number, trial in enumerate(study.stages[name].trials if name in study.needed else ()):
            yield _trial(study, trial, f"{indent}{deeper}trial {number}")
        yield from _below(study, name, f"{indent}{deeper}")


def _stage(study: Plan, name: str, indent: str, label: str) -> tuple[str, str, int, int]:
    stage, seeds = study.stages[name], study.seeds_of(name)
    folders = [study.folder(name, seed) for seed in seeds]
    if name in study.evaluated:  # one job for all seeds, finished with the last
        folders.append(f"{study.results}/stages/{name}/evaluation/seed{seeds[-1]}")
    config = study.parsed(name, seeds[0])
    what = getattr(config, "algorithm", "")
    others = [f"{key} {target}" for key, target in study.edges(name).items() if key != "from"]
    others += ["by TRL"] if getattr(config, "trainer", "own") == "trl" else []
    others += [f"tuned by {len(stage.trials)} trials"] if stage.tune is not None else []
    facts = "  ".join(filter(None, [stage.kind, what, f"seeds {','.join(map(str, seeds))}", *others]))
    if name not in study.needed:
        return f"{indent}{label}", f"{facts}  not run: nothing needs it", 0, 0
    return _row(study, f"{indent}{label}", facts, folders)


def _trial(study: Plan, name: str, label: str) -> tuple[str, str, int, int]:
    seeds = study.seeds_of(name)
    folders = [*(study.folder(name, seed) for seed in seeds), f"{study.results}/stages/{name}/dev/seed{seeds[-1]}"]
    facts = f"{shown(study.stages[name].chosen)}  seeds {','.join(map(str, seeds))}, on dev"
    return _row(study, label, facts, folders)


def _row(study: Plan, label: str, facts: str, folders: list[str]) -> tuple[str, str, int, int]:
    statuses = [_status(Path(folder) / "run.json") for folder in folders]
    done, failed = statuses.count("finished"), statuses.count("failed")
    state = "done" if done == len(folders) else f"{done} of {len(folders)} done"
    state += f", {failed} failed" if failed else ""
    return label, f"{facts}  [{state}]", len(folders), done


def _status(record: Path) -> str | None:
    try:
        return json.loads(record.read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError):
        return None
