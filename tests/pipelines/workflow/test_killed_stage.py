"""A stage that is killed under Snakemake: Snakemake removes what it declares, and the stage goes on all the same."""

import json
import subprocess
import sys
import time

import psutil
import yaml
from project import STUDY, copy_project, environment, record, snakemake

TARGET = "results/smoke/stages/cold_start/seed0/run.json"


def stage_of(process: subprocess.Popen) -> psutil.Process:
    """The Python process of the stage that runs."""
    below = psutil.Process(process.pid).children(recursive=True)
    return next(p for p in below if p.cmdline()[1:3] == ["-m", "algos.training.supervised.sft"])


def test_a_stage_that_is_killed_goes_on_when_snakemake_makes_it_again(tmp_path):
    tree = copy_project(tmp_path / "project")
    config = yaml.safe_load((tree / STUDY).read_text())
    config["stages"] = {"cold_start": {**config["stages"]["cold_start"], "steps": 60, "batch_size": 8, "threads": 1}}
    config |= {"saving": {"steps": 2, "minutes": None}, "models": {"base": config["models"]["base"]}}
    (tree / STUDY).write_text(yaml.safe_dump(config))
    folder = record(tree, "cold_start")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", TARGET, "--configfile", STUDY]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=tree, env=environment(tree), stdout=log, stderr=log)
    try:
        deadline = time.time() + 600
        while not (folder / "resume" / "000000").exists():
            assert first.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        stage_of(first).kill()
        assert first.wait(timeout=300) == 1
    finally:
        for process in psutil.Process(first.pid).children(recursive=True) if first.poll() is None else []:
            process.kill()
        first.kill()
    assert not (folder / "metrics.jsonl").exists() and (folder / "resume").is_dir()

    again = snakemake(tree, TARGET)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    facts, lines = json.loads((folder / "run.json").read_text()), (folder / "metrics.jsonl").read_text().splitlines()
    assert facts["status"] == "finished" and facts["resumed"][0]["lines"] >= 1
    assert [json.loads(line)["step"] for line in lines] == [*range(0, 60, 10), 59]
    assert not (folder / "resume").exists()
