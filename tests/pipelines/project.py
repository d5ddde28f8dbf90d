"""A copy of the project to run studies in, and how Snakemake is called there or in the test's own process."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pipelines.study  # noqa: F401  # before a copy's Snakefile puts the copy in front of the path

PROJECT = Path(__file__).parents[2]
STUDY = "pipelines/studies/smoke.yaml"
PARTS = (".gitignore", "Snakefile", "README.md", "pyproject.toml", "profiles", "pipelines", "algos", "evaluation")
COMMAND = re.compile(r"^Shell command: (python -m .*)$", re.M)  # as a dry run prints a job's
ELSEWHERE = '"engine": "vllm"'  # a job with this setting gets a process: vLLM starts once in one


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


def snakemake_here(folder: Path, *arguments: str, study: str = STUDY) -> tuple[int, str]:
    """Snakemake in this process, which saves 4 s of imports: its exit status and what it says.

    It reads the Snakefile of the folder, else the project's. The modules are those of this process.
    """
    from snakemake import cli, workflow  # in this order

    said, path, status = io.StringIO(), list(sys.path), 0
    snakefile = next(place / "Snakefile" for place in (folder, PROJECT) if (place / "Snakefile").is_file())
    words = ["--cores", "2", "--snakefile", str(snakefile), *arguments, "--configfile", study]
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main(words)
        except SystemExit as stop:
            status = stop.code
    sys.path[:] = path
    vars(workflow).pop("storage", None)  # it has any attribute: vLLM trips over it
    return status, said.getvalue()


def dry_run(folder: Path, *arguments: str, study: str = STUDY) -> str:
    """What a dry run says."""
    status, said = snakemake_here(folder, "-n", *arguments, study=study)
    assert status == 0, said
    return said


def planned(tree: Path, *arguments: str, study: str = STUDY) -> dict[str, int]:
    """Jobs per rule that a dry run would do."""
    return jobs_of(dry_run(tree, *arguments, study=study))


def jobs_of(said: str) -> dict[str, int]:
    """Jobs per rule in what Snakemake says."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said, re.M) if rule != "total"}


def planned_after_edits(tree: Path, files: list[str]) -> list[dict[str, int]]:
    """planned, by the copy's own code in a process of its own, after an edit of each of these files in turn."""
    code = "import json, sys, project; print(json.dumps([project.planned_after_edit(f) for f in sys.argv[1:]]))"
    path = {"PYTHONPATH": f"{tree}:{Path(__file__).parent}"}
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, cwd=tree, env=environment(tree) | path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def planned_after_edit(file: str) -> dict[str, int]:
    text = Path(file).read_text(encoding="utf-8")
    Path(file).write_text(text + "\n# edited\n", encoding="utf-8")
    jobs = planned(Path.cwd())
    Path(file).write_text(text, encoding="utf-8")
    return jobs


def run_here(folder: Path, study: str, *targets: str) -> None:
    """The jobs of a study, one after the other in this process, by the commands that a dry run prints."""
    plan = dry_run(folder, "--printshellcmds", *targets, study=study)
    commands, jobs = COMMAND.findall(plan), jobs_of(plan)
    assert len(commands) == sum(jobs.values()) - jobs.get("all", 0)
    with contextlib.chdir(folder):
        for command in commands:
            words = shlex.split(command)
            words = words[: words.index("2>")] if "2>" in words else words
            if ELSEWHERE in command:
                subprocess.run([sys.executable, *words[1:]], env=environment(PROJECT), check=True, timeout=900)
            else:
                run_module(*words[2:])


def run_module(module: str, *arguments: str) -> None:
    """What `python -m module` does, in this process."""
    with patch.object(sys, "argv", [module, *arguments]):
        import_module(f"{module}.__main__" if hasattr(import_module(module), "__path__") else module).main()


def results(tree: Path) -> Path:
    return tree / "results" / "smoke"


def record(tree: Path, stage: str, seed: int = 0) -> Path:
    """The folder of one seed of a stage."""
    return results(tree) / "stages" / stage / f"seed{seed}"
