"""A shipped study at toy size: tiny models, few rows, short stages; and what runs it within the test's process."""

from pathlib import Path

import yaml
from project import planned, run_here
from studies import PIPELINES, SMOKE

from pipelines.study import Study, load

STUDIES = PIPELINES / "studies"
FOR_GPUS = ("gsm8k_0.5b", "gsm8k_1.5b", "gsm8k_zero", "r1_qwen", "preference_qwen", "gsm8k_smollm2")
TAUGHT = {  # a model that is built here: some of its answers are right
    "steps": 120,
    "batch_size": 32,
    "optimizer": {"learning_rate": 1.0e-2, "warmup_steps": 5},
}
TINY = {  # by kind: as small as a stage can be
    "sft": {"steps": 2, "batch_size": 4},
    "preferences": {"prompts": 24, "responses": 4, "held_out_share": 0.25},
    "reward_model": {"epochs": 1, "prompts_per_batch": 4},
    "rl": {
        "steps": 1,
        "prompts_per_step": 2,
        "group_size": 4,
        "minibatches": 1,
        "budget_tokens": None,
        "dev_problems": 5,
    },
    "rejection_sampling": {"prompts": 24, "responses": 4, "budget_tokens": None},
    "expert_iteration": {
        "sampling": {"prompts": 24, "responses": 4},
        "training": {"steps": 2, "batch_size": 4},
        "rounds": 1,
    },
    "distillation": {"steps": 2, "prompts_per_step": 2, "responses": 2, "budget_tokens": None},
}
TASK = SMOKE["task"] | {"train": 60, "dev": 10, "test": 6, "demonstrations": 200}


def toy(path: Path, loaded: Path, task: dict, most_rl: int) -> dict:
    """A study with its models replaced by tiny ones, its task by a small one, and its stages cut short.

    loaded: the folder of the tiny model that stands for a loaded one. most_rl: RL stages that are kept, with the stages
    that they need.
    """
    config, study = yaml.safe_load(path.read_text(encoding="utf-8")), load(path)
    config |= {"results": "results/toy", "seeds": [0], "task": task, "evaluation": {"samples": 2}}
    config["sampling"] = {"max_response_tokens": 24}
    for name, values in config["models"].items():
        if not study.model(name).built:
            config["models"][name] = {"path": str(loaded)}
        else:
            values |= {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 64}  # vLLM: 32 a head
            values |= {} if "tokenizer" in values else {"vocab_size": 160}
    kept = one_of_each_form(study, most_rl)
    config["stages"] = {name: stage for name, stage in config["stages"].items() if name in kept}
    for name, stage in config["stages"].items():
        made = name if name in study.stages else next(n for n, s in study.stages.items() if s.varies == name)
        kind, start = study.stages[made].kind, study.stages[made].edges.get("from")
        taught = kind == "sft" and start in config["models"] and study.model(start).built
        stage.update(TAUGHT if taught else TINY[kind], **({"seeds": [0]} if "seeds" in stage else {}))
        stage.pop("threads", None)  # two cost more than they compute
        if "reward_settings" in stage:
            stage["reward_settings"].pop("overlong_tokens", None)  # longer than the responses here
    return config


def one_of_each_form(study: Study, most_rl: int) -> set[str]:
    """Stages that differ in kind, edges, trainer, engine, algorithm, rewards or tuning, and what they need."""
    forms, kept = {}, set()
    for name, stage in study.stages.items():
        kinds = tuple(sorted((key, study.stages[t].kind if t in study.stages else t) for key, t in stage.edges.items()))
        values = study.values(name, study.seeds_of(name)[0])
        form = (stage.kind, kinds, *(values.get(key) for key in ("trainer", "engine", "algorithm")))
        form += (tuple(values.get("rewards") or ()),)
        form = ("tuned",) if stage.tune else form  # one of them, with all of its trials
        room = stage.kind != "rl" or stage.tune or sum(known[0] == "rl" for known in forms) < most_rl
        if stage.trial_of is None and room:
            forms.setdefault(form, name)
    waiting = list(forms.values())
    while waiting:
        stage = study.stages.get(waiting.pop())
        if stage is not None and stage.name not in kept:
            kept.add(stage.name)
            waiting += [stage.varies, stage.like, *stage.edges.values()]
            kept |= {stage.varies} - {None}
    return kept


def run_toy(path: Path, folder: Path, loaded: Path, task: dict, most_rl: int = 2) -> Path:
    """Runs a study at toy size below a folder; nothing is left to do then. Returns the folder of its results."""
    file, config = folder / path.name, toy(path, loaded, task, most_rl)
    config["mlflow"] = {"tracking_uri": f"sqlite:///{folder.parent / 'mlflow.db'}"}  # of all: a new one takes 2 s
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "pipelines").symlink_to(PIPELINES)  # a study may name a reward beside it
    run_here(folder, str(file))
    rows = (folder / "results" / "toy" / "report" / "comparison.csv").read_text(encoding="utf-8").splitlines()
    stages = load(file).report()["stages"]
    assert [row.partition(",")[0] for row in rows[1:]] == [name for name in stages if stages[name]["evaluated"]]
    assert planned(folder, study=str(file)) == {}
    return folder / "results" / "toy"
