"""Studies through a real Slurm: the smoke study whole, a node that dies, a job that is preempted. By hand, as root:

    pip install -e '.[slurm]' && pytest tests/cluster/slurm_study.py

with Debian's slurm-wlm and munge. The name keeps it out of the other tests: it starts daemons.
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
STEPS = 600  # of the small study: it is still going when its node dies, half a second after it was seen
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
    config["stages"] = {"cold_start": {**config["stages"]["cold_start"], "steps": STEPS, "log_every": 1}}
    config["models"] = {"base": config["models"]["base"]}
    (tree / STUDY).write_text(yaml.safe_dump(config))


def start(tree: Path) -> subprocess.Popen:
    words = ["--slurm-init-seconds-before-status-checks", "5", "--configfile", STUDY]
    with (tree / "log").open("w") as log:
        return subprocess.Popen([*COMMAND, *words], cwd=tree, env=environment(tree), stderr=log)


def the_training(tree: Path, process: subprocess.Popen) -> dict[str, str]:
    """The job that trains, as soon as it has taken some steps."""
    metrics = record(tree, "cold_start") / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 20):
        time.sleep(0.2)
    (job,) = [j for j in jobs() if "rule_sft" in j.get("Comment", "") and j["JobState"] == "RUNNING"]
    return job


def state(job: dict[str, str]) -> str:
    (known,) = [j for j in jobs() if j["JobId"] == job["JobId"]]
    return known["JobState"]


def run_again(job: dict[str, str]) -> None:
    """Wait until Slurm has put the job back into its queue, and let it start: at once, not in two minutes."""
    while state(job) != "PENDING":
        time.sleep(1)
    subprocess.run(["scontrol", "update", f"JobId={job['JobId']}", "StartTime=now"], check=True)


def finished(tree: Path, process: subprocess.Popen) -> tuple[dict, dict[str, dict[str, str]]]:
    """What the stage records, and the last job of each rule."""
    assert process.wait() == 0, (tree / "log").read_text()[-5000:]
    folder = record(tree, "cold_start")
    facts, lines = json.loads((folder / "run.json").read_text()), (folder / "metrics.jsonl").read_text().splitlines()
    assert facts["status"] == "finished" and [json.loads(line)["step"] for line in lines] == [*range(STEPS)]
    ours = [job for job in jobs() if "rule_" in job.get("Comment", "")]
    by_rule = {re.search(r"rule_(\w+?)_wildcards|rule_(\w+)", job["Comment"])[1]: job for job in ours}
    assert {rule: job["JobState"] for rule, job in by_rule.items()} == dict.fromkeys(by_rule, "COMPLETED")
    assert by_rule["sft"]["NumCPUs"] == "2" and by_rule["evaluate"]["NumCPUs"] == "1"  # the stage's threads
    assert not any("gpu" in value for job in by_rule.values() for value in job.values())  # `device: auto`, none granted
    return facts, by_rule


def test_a_study_finishes_although_a_node_dies(cluster, tmp_path):
    tree = copy_project(tmp_path / "project")
    small_study(tree)
    process = start(tree)
    job = the_training(tree, process)
    subprocess.run([SLURM, "kill", job["NodeList"]], check=True)
    run_again(job)
    _, by_rule = finished(tree, process)
    assert by_rule["sft"]["Restarts"] == "1" and by_rule["sft"]["NodeList"] != job["NodeList"]
    subprocess.run([SLURM, "revive", job["NodeList"]], check=True)


def test_a_stage_that_is_preempted_goes_on_where_it_was(cluster, tmp_path):
    tree = copy_project(tmp_path / "project")
    small_study(tree)
    process = start(tree)
    job = the_training(tree, process)
    urgent = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 20"]
    subprocess.run(urgent, check=True)
    facts, by_rule = finished(tree, process)
    assert by_rule["sft"]["JobId"] != job["JobId"]  # it ended within its grace, and Snakemake tries it again
    (attempt,) = facts["resumed"]
    assert attempt["lines"] > 20 and attempt["lost_seconds"] < 60


def test_the_smoke_study_goes_through_it_whole(cluster, tmp_path):
    tree = copy_project(tmp_path / "project")
    process, before = start(tree), len(jobs())
    assert process.wait() == 0, (tree / "log").read_text()[-5000:]
    assert (tree / "results" / "smoke" / "report" / "report.html").exists()
    assert {job["JobState"] for job in jobs()[before:]} == {"COMPLETED"}
    statuses = {json.loads(p.read_text())["status"] for p in (tree / "results" / "smoke").rglob("run.json")}
    assert statuses == {"finished"}
