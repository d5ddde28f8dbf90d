"""Every study file that is shipped is planned. What users write is not read. shipped/ runs the files at toy size."""

import json
import re

import pytest
import torch
import yaml
from project import STUDY, copy_project, planned, snakemake
from studies import FILES, PIPELINES
from tiny import tiny_model, tiny_tokenizer

from evaluation.tasks.files import read_jsonl
from pipelines.study import load


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_file_is_planned(path, tmp_path):
    (tmp_path / "pipelines").symlink_to(PIPELINES)  # a study may name a reward beside it
    study, jobs = load(path), planned(tmp_path, study=str(path))
    assert jobs["evaluate"] == len(study.evaluated)
    for kind in {stage.kind for stage in study.stages.values()}:
        assert jobs[kind] == sum(len(study.seeds_of(name)) for name in study.of_kind(kind) if name in study.needed)


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
        "one": {"kind": "sft", "from": "base", "data": "demonstrations", "steps": 1, "evaluate": False},
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
