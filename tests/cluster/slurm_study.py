"""A study through a real Slurm, one node of which dies. By hand, as root, with Debian's slurm-wlm and munge:

    pip install -e '.[slurm]' && pytest tests/cluster/slurm_study.py

The name keeps it out of the other tests: it starts daemons. Its steps were made by hand; it has not been run as a test.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))
from project import PROJECT, STUDY, copy_project, environment, record

SLURM = str(PROJECT / "tests" / "cluster" / "slurm.sh")
COMMAND = [sys.executable, "-m", "snakemake", "--workflow-profile", "slurm", "--slurm-status-command", "squeue"]


@pytest.fixture(scope="module")
def cluster():
    subprocess.run([SLURM, "start"], check=True)
    yield
    subprocess.run([SLURM, "stop"], check=True)


def jobs() -> list[dict[str, str]]:
    """What Slurm knows of its jobs, those that have ended too."""
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in shown.splitlines() if "JobId=" in line]


def small_study(tree: Path) -> None:
    """The smoke study with one stage: a model, a job that trains it, one that evaluates it."""
    config = yaml.safe_load((tree / STUDY).read_text())
    config["stages"] = {"cold_start": config["stages"]["cold_start"]}
    config["models"] = {"base": config["models"]["base"]}
    (tree / STUDY).write_text(yaml.safe_dump(config))


def state(job: dict[str, str]) -> str:
    (known,) = [j for j in jobs() if j["JobId"] == job["JobId"]]
    return known["JobState"]


def test_a_study_finishes_although_a_node_dies(cluster, tmp_path):
    tree = copy_project(tmp_path / "project")
    small_study(tree)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "--slurm-init-seconds-before-status-checks", "5", "--configfile", STUDY],
            cwd=tree,
            env=environment(tree),
            stderr=log,
        )
    metrics = record(tree, "cold_start") / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.5)
    (job,) = [j for j in jobs() if "rule_sft" in j["Comment"] and j["JobState"] == "RUNNING"]
    node = job["NodeList"]
    subprocess.run([SLURM, "kill", node], check=True)
    while state(job) != "PENDING":  # Slurm has missed the node
        time.sleep(1)
    subprocess.run(["scontrol", "update", f"JobId={job['JobId']}", "StartTime=now"], check=True)  # not in two minutes
    assert process.wait() == 0, (tmp_path / "log").read_text()

    facts = json.loads((metrics.parent / "run.json").read_text())
    assert facts["status"] == "finished" and len(metrics.read_text().splitlines()) == 13  # every tenth of 120 steps
    by_rule = {re.search(r"rule_(\w+?)_wildcards|rule_(\w+)", job["Comment"])[1]: job for job in jobs()[-3:]}
    assert by_rule["sft"]["Restarts"] == "1" and by_rule["sft"]["NodeList"] != node
    assert {rule: job["JobState"] for rule, job in by_rule.items()} == dict.fromkeys(by_rule, "COMPLETED")
    assert by_rule["sft"]["NumCPUs"] == "2" and by_rule["evaluate"]["NumCPUs"] == "1"  # the stage's threads
    assert not any("gpu" in value for job in by_rule.values() for value in job.values())  # `device: auto`, none granted
    subprocess.run([SLURM, "revive", node], check=True)
