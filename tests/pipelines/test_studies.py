"""Every study file that is shipped: it is planned, and it runs at tiny sizes. What users write is not read."""

import json
import re

import pytest
import torch
import yaml
from project import PROJECT, STUDY, copy_project, planned, snakemake
from studies import FILES
from tiny import tiny_model, tiny_tokenizer

from evaluation.tasks.files import read_jsonl
from pipelines.study import load

PATHS = [str(path.relative_to(PROJECT)) for path in FILES]
TASK = yaml.safe_load((PROJECT / STUDY).read_text())["task"] | {"train": 60, "dev": 4, "test": 6}
TAUGHT = {
    "steps": 120,
    "batch_size": 32,
    "optimizer": {"learning_rate": 1.0e-2, "warmup_steps": 5},
}  # some answers are right
TINY = {  # by kind: as small as a stage can be
    "sft": {"steps": 2, "batch_size": 4},
    "preferences": {"prompts": 40, "responses": 4, "held_out_share": 0.25},
    "reward_model": {"epochs": 1, "prompts_per_batch": 4},
    "rl": {"steps": 1, "prompts_per_step": 2, "group_size": 4, "minibatches": 1, "budget_tokens": None},
    "rejection_sampling": {"prompts": 24, "responses": 4, "budget_tokens": None},
    "expert_iteration": {
        "sampling": {"prompts": 24, "responses": 4},
        "training": {"steps": 2, "batch_size": 4},
        "rounds": 1,
    },
    "distillation": {"steps": 2, "prompts_per_step": 2, "responses": 2, "budget_tokens": None},
}


def tiny(path: str, folder) -> dict:
    """A study with its models replaced by tiny ones, its task by a small one, and its stages cut short."""
    config = yaml.safe_load((PROJECT / path).read_text())
    study = load(PROJECT / path)
    config["results"], config["seeds"] = "results/tiny", [0]
    for values in config["models"].values():
        if {"path", "package"} & values.keys():  # a pretrained model: a tiny one with a chat template, from a folder
            values.clear()
            values["path"] = str(folder)
        else:
            values |= {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 64}
            values |= {} if "tokenizer" in values else {"vocab_size": 160}
    if config["task"]["name"] == "gsm8k":
        config["task"] = {"name": "gsm8k", "path": str(folder), "dev": 4}
    else:
        config["task"] = TASK
    config["sampling"] = {"max_response_tokens": 24}
    config["defaults"] = {}
    config["evaluation"] = {"samples": 2}
    kept = one_of_each_form(study)
    config["stages"] = {name: stage for name, stage in config["stages"].items() if name in kept}
    for name, stage in config["stages"].items():
        made = name if name in study.stages else next(n for n, s in study.stages.items() if s.varies == name)
        kind = study.stages[made].kind
        stage.pop("prompts_per_step", None)
        own = TAUGHT if kind == "sft" and study.stages[made].edges["from"] in config["models"] else TINY[kind]
        stage.update(own, **({"seeds": [0]} if "seeds" in stage else {}))
    return config


def one_of_each_form(study, most: int = 2) -> set[str]:
    """Stages that differ in kind, edges, trainer, engine or algorithm, at most two of RL, and what they need."""
    forms, kept = {}, set()
    for name, stage in study.stages.items():
        kinds = tuple(sorted((key, study.stages[t].kind if t in study.stages else t) for key, t in stage.edges.items()))
        values = study.values(name, 0)
        form = (stage.kind, kinds, *(values.get(key) for key in ("trainer", "engine", "algorithm")))
        if stage.kind != "rl" or sum(known[0] == "rl" for known in forms) < most:
            forms.setdefault(form, name)
    waiting = list(forms.values())
    while waiting:
        stage = study.stages.get(waiting.pop())
        if stage is not None and stage.name not in kept:
            kept.add(stage.name)
            waiting += [stage.varies, stage.like, *stage.edges.values()]
            kept |= {stage.varies} - {None}
    return kept


def chat_model(folder) -> None:
    """A tiny model with a chat template, and GSM8K's files beside it."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, dtype=torch.float32)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for split, count in (("train", 30), ("test", 6)):
        rows = [{"question": f"{split} {i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("path", PATHS)
def test_every_study_file_is_planned(path):
    run = snakemake(PROJECT, "-n", "--nolock", study=path)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    study = load(PROJECT / path)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", run.stdout + run.stderr, re.M))
    done = (PROJECT / study.results).exists()
    assert done or int(jobs["evaluate"]) == len(study.evaluated)


@pytest.mark.parametrize("path", [path for path in PATHS if path != STUDY])  # the smoke study runs as it is
def test_every_study_runs_with_tiny_models(path, tmp_path):
    (tmp_path / "model").mkdir()
    chat_model(tmp_path / "model")
    tree = copy_project(tmp_path / "project")
    config = tiny(path, tmp_path / "model")
    (tree / path).write_text(yaml.safe_dump(config, sort_keys=False))
    run = snakemake(tree, study=path)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    rows = (tree / "results/tiny/report/comparison.csv").read_text().splitlines()
    assert len(rows) == 1 + len(load(tree / path).evaluated)
    assert planned(tree, study=path) == {}


USERS_TEXT = "{question} {brace} {{two}} 'one' \"two\" `touch a` $(touch b) $HOME \\n ; touch c ü 数\nnext"


def test_what_users_write_reaches_the_commands_as_it_is(tmp_path):
    """Braces, quotes, line ends, commands of a shell and other alphabets in a template, a path and names."""
    tree = copy_project(tmp_path / "project")
    odd = USERS_TEXT.replace("{question}", "").replace("/", "")
    folder = re.sub(r"[{}\n]", "", odd)  # braces and line ends are refused there
    config = yaml.safe_load((tree / STUDY).read_text())
    model = tmp_path / f"model {odd}"
    model.mkdir()
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, dtype=torch.float32).save_pretrained(model)
    tokenizer.save_pretrained(model)
    config |= {"study": odd, "results": f"results/{folder}", "prompt": {"template": USERS_TEXT}}
    config["models"] = {"base": {"path": str(model)}}
    config["mlflow"] = {"tracking_uri": f"sqlite:///{tmp_path}/it's {{odd}}.db"}
    config["stages"] = {
        "one": {"kind": "sft", "from": "base", "data": "demonstrations", "steps": 1},
        "two": {"kind": "rl", "from": "one", "algorithm": "grpo", "vary": {"kl_coef": [0.1]}},
    }
    path = "pipelines/studies/it's $(touch d) ü.yaml"
    (tree / path).write_text(yaml.safe_dump(config))
    run = snakemake(tree, study=path)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    out = tree / "results" / folder
    question = read_jsonl(out / "data" / "test.jsonl")[0]
    assert question["prompt"] == USERS_TEXT.replace("{question}", question["question"])
    assert json.loads((out / "models" / "base" / "run.json").read_text())["settings"]["path"] == str(model)
    summary = json.loads((out / "mlflow_mirror.json").read_text())
    assert summary["errors"] == [] and summary["experiment"] == odd
    assert (out / "report" / "report.html").is_file() and (out / "stages" / "two-kl_coef=0.1" / "seed0").is_dir()
    assert not [name for name in "abcd" if list(tmp_path.rglob(name))]


def test_braces_in_the_results_folder_are_refused(tmp_path):
    tree = copy_project(tmp_path / "project")
    text = (tree / STUDY).read_text().replace("study: smoke\n", "study: smoke\nresults: results/{stage}\n")
    (tree / STUDY).write_text(text)
    run = snakemake(tree, "-n")
    assert run.returncode != 0 and "line 4: results: Snakemake reads braces as wildcards" in run.stdout + run.stderr
