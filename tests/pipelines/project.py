"""A copy of the project to run studies in, and how Snakemake is called there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
STUDY = "pipelines/studies/smoke.yaml"
PARTS = (".gitignore", "Snakefile", "README.md", "pyproject.toml", "profiles", "pipelines", "algos", "evaluation")


def copy_project(to: Path) -> Path:
    """The project's files without results, so that a test may edit them."""
    to.mkdir()
    for part in PARTS:
        source = PROJECT / part
        if source.is_dir():
            shutil.copytree(source, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / part)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "copy"],
    ):
        subprocess.run(["git", *command], cwd=to, check=True)
    return to


def environment(tree: Path) -> dict[str, str]:
    """Jobs import the copy's modules, and find this Python."""
    return {**os.environ, "PYTHONPATH": str(tree), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def snakemake(tree: Path, *arguments: str, study: str = STUDY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--configfile", study]
    return subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=900)


def planned(tree: Path, *arguments: str, study: str = STUDY) -> dict[str, int]:
    """Jobs per rule that a dry run would do."""
    run = snakemake(tree, "-n", *arguments, study=study)
    assert run.returncode == 0, run.stderr
    table = re.findall(r"^(\w+) +(\d+)$", run.stdout + run.stderr, re.M)
    return {rule: int(count) for rule, count in table if rule != "total"}


def results(tree: Path) -> Path:
    return tree / "results" / "smoke"


def record(tree: Path, stage: str, seed: int = 0) -> Path:
    """The folder of one seed of a stage."""
    return results(tree) / "stages" / stage / f"seed{seed}"
