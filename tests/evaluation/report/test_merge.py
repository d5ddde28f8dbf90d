"""Results folders of several machines become one, or are refused with the stage that does not fit."""

import copy
import json
import shutil

import pandas as pd
import pytest
from synthetic import rl, stage, study, write_results

from algos.pieces.settings import SettingsError
from evaluation.report import write
from evaluation.report.merge import main, merge
from evaluation.tasks.files import read_jsonl, write_json, write_jsonl

WHOLE = study(start=stage("sft", "base", seeds=[0], score=0.3, steps=10, trainer="own"), a=rl("start"), b=rl("start"))


def machine(folder, seeds, stages=("a", "b"), made=WHOLE, choice=None):
    """The results of one machine: the start, and these stages with these seeds. All as the whole study has them.

    choice: what the tuning of b chose.
    """
    whole = folder.parent / f"{folder.name}_whole"
    described = write_results(whole, made)
    for name in set(described["stages"]) - {"start", *stages}:
        del described["stages"][name]
    for name in stages:
        described["stages"][name]["seeds"] = list(seeds)
    shutil.copytree(whole, folder)
    for path in folder.glob("stages/[ab]/**/seed*"):
        name, seed = path.relative_to(folder / "stages").parts[0], int(path.name.removeprefix("seed"))
        if name not in stages or seed not in seeds:
            shutil.rmtree(path)
    for path in folder.glob("stages/*/seed*"):
        (path / "checkpoint").mkdir()
        (path / "checkpoint" / "model.safetensors").write_bytes(path.name.encode())
    if choice is not None:
        write_json(folder / "stages" / "b" / "tuning.json", choice)
    write(folder, described, folder / "report")
    return folder


def changed(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    return machine(folder / "first", [0, 1]), machine(folder / "second", [2])


@pytest.fixture
def machines(originals, tmp_path):
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in originals]


def test_the_joined_report_is_that_of_one_machine(machines, tmp_path):
    started = machines[1] / "stages" / "start" / "seed0"
    changed(started / "run.json", seconds=99.0)  # the start was run on both machines, with equal results
    rows = read_jsonl(started / "metrics.jsonl")
    write_jsonl(started / "metrics.jsonl", [{**row, "step_seconds": 7.0} for row in rows])
    described = merge(machines, tmp_path / "both")
    seeds = {name: facts["seeds"] for name, facts in described["stages"].items()}
    assert seeds == {"start": [0], "a": [0, 1, 2], "b": [0, 1, 2]}
    table = pd.read_csv(tmp_path / "both" / "report" / "comparison.csv").set_index("stage")
    assert list(table["seeds"]) == [1, 3, 3]
    parts = [pd.read_csv(folder / "report" / "comparison.csv").set_index("stage")["mean@2"] for folder in machines]
    assert table.loc["a", "mean@2"] == pytest.approx((2 * parts[0]["a"] + parts[1]["a"]) / 3, rel=1e-5)
    assert (tmp_path / "both" / "report" / "report.html").is_file()
    assert not list((tmp_path / "both").rglob("*.safetensors"))  # the report needs none


def test_the_choices_of_tuned_stages_are_joined_too(tmp_path):
    plain = stage("sft", "base", seeds=[0], score=0.3, steps=10, trainer="own")
    made = study(start=plain, a=rl("start"), b=rl("start", score=0.6) | {"like": "a", "tuned": True})
    trial = {"stage": "b-trial=0", "values": {"optimizer.learning_rate": 1e-3}, "score": 0.5, "low": 0.4, "high": 0.6}
    costs = {"generated_tokens": 100, "train_seconds": 2.0, "evaluate_seconds": 1.0, "failed": None}
    choice = {"stage": "b", "metric": "mean@2", "seeds": [100], "trials": [trial | costs], "chosen": 0, "settings": {}}
    folders = [machine(tmp_path / name, seeds, made=made, choice=choice) for name, seeds in (("x", [0, 1]), ("y", [2]))]
    merge(folders, tmp_path / "both")
    assert json.loads((tmp_path / "both" / "stages" / "b" / "tuning.json").read_text()) == choice
    assert list(pd.read_csv(tmp_path / "both" / "report" / "tuned.csv")["stage"]) == ["b"]


def test_machines_with_other_stages(originals, tmp_path):
    folders = [machine(tmp_path / name, [0, 1, 2], [name]) for name in ("a", "b")]
    assert main([*map(str, folders), "--out", str(tmp_path / "both")]) == 0
    assert list(pd.read_csv(tmp_path / "both" / "report" / "comparison.csv")["stage"]) == ["start", "a", "b"]


@pytest.mark.parametrize("key, value", [("samples", 4), ("study", "another"), ("margin", 1.0)])
def test_other_studies_are_refused(machines, tmp_path, key, value):
    changed(machines[1] / "report" / "study.json", **{key: value})
    with pytest.raises(SettingsError, match=f"first and .*second are not one study: {key} is "):
        merge(machines, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_stage_with_other_settings_is_refused(machines, tmp_path):
    path = machines[1] / "stages" / "a" / "seed2" / "run.json"
    settings = copy.deepcopy(json.loads(path.read_text())["settings"])
    settings["settings"]["clip_high"] = 0.28
    changed(path, settings=settings)
    with pytest.raises(SettingsError, match=r"stage a has other settings in .*: settings.clip_high: 0.2 -> 0.28"):
        merge(machines, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_stage_of_another_kind_or_start_is_refused(machines, tmp_path):
    described = json.loads((machines[1] / "report" / "study.json").read_text())
    described["stages"]["a"]["from"] = "base"
    write_json(machines[1] / "report" / "study.json", described)
    with pytest.raises(SettingsError, match=r"stage a is not the same in .*: from: start -> base"):
        merge(machines, tmp_path / "both")


def test_another_evaluation_is_refused(machines, tmp_path):
    changed(machines[1] / "stages" / "b" / "evaluation" / "seed2" / "run.json", settings={"temperature": 0.5})
    with pytest.raises(SettingsError, match="evaluation of stage b has other settings"):
        merge(machines, tmp_path / "both")


@pytest.mark.parametrize(
    "file, name",
    [
        ("stages/start/seed0/checkpoint/model.safetensors", "stages/start/seed0"),
        ("stages/start/seed0/metrics.jsonl", "stages/start/seed0"),
        ("stages/start/evaluation/seed0/responses.jsonl", "stages/start/evaluation/seed0"),
        ("data/test.jsonl", "data"),
    ],
)
def test_two_runs_of_one_stage_that_differ_are_refused(machines, tmp_path, file, name):
    path = machines[1] / file
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    with pytest.raises(SettingsError, match=rf"^{name} was run twice with different results.*{path.name}"):
        merge(machines, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_what_is_missing_or_in_the_way_is_named(machines, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(SettingsError, match="full is there already; name a new folder"):
        merge(machines, tmp_path / "full")
    (machines[1] / "report" / "study.json").unlink()
    with pytest.raises(SystemExit):
        main([*map(str, machines), "--out", str(tmp_path / "both")])
    assert "second/report/study.json is missing" in capsys.readouterr().err
