# Paths, wildcards and named helper functions, so that the rules contain no Python. What a user writes in a study file
# reaches a command as a value of `params`, quoted with :q. Neither Snakemake nor the shell reads it.
import json
import os
import re
import shlex
import subprocess
import sys

from algos.pieces.settings import SettingsError
from evaluation.config import figures_of
from pipelines import digests
from pipelines.kinds import SPLITS
from pipelines.study import load

try:
    STUDY = load(os.path.relpath(workflow.configfiles[-1]), config)
except SettingsError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process:  # not again in every job
    for warning in STUDY.warnings:
        print(f"warning: {warning}", file=sys.stderr)

# The jobs' Python is the one that runs Snakemake. Snakemake formats the prefix, so its own braces are doubled.
shell.prefix(f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; ".replace("{", "{{").replace("}", "}}"))

RESULTS = STUDY.results
DATA = f"{RESULTS}/data"
MODEL = f"{RESULTS}/models/{{model}}"
STAGE = f"{RESULTS}/stages/{{stage}}"
SEED = f"{STAGE}/seed{{seed}}"


def one_of_these(names):
    """A wildcard's constraint: one of the names, or nothing at all."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of_these(STUDY.settings.models),
    stage=one_of_these(STUDY.stages),
    seed=r"\d+",


def of_kind(kind):
    return one_of_these(STUDY.of_kind(kind))


def record(folder):
    """The files of every job's record."""
    return [f"{folder}/{name}" for name in ("run.json", "metrics.jsonl", "samples.jsonl")]


def as_json(values):
    """Settings for a command line. Sorted, so that moving a line in the study file runs nothing again."""
    return json.dumps(values, sort_keys=True)


def name(wildcards):
    return f"{wildcards.stage}/seed{wildcards.seed}"


def settings(wildcards):
    """All settings of a stage, defaults filled in: it runs again when one of them changes, and only then."""
    return as_json(STUDY.resolved(wildcards.stage, int(wildcards.seed)))


def sources(wildcards):
    """What a stage reads: the places that its edges lead to, and the prompts."""
    return STUDY.inputs(wildcards.stage, int(wildcards.seed))


def edges(wildcards):
    """The same as options of its command."""
    return STUDY.options(wildcards.stage, int(wildcards.seed))


def threads_of(wildcards):
    return STUDY.threads(wildcards.stage)


def out(wildcards):
    return STUDY.folder(wildcards.stage, int(wildcards.seed))


def code(wildcards):
    """A digest of the algorithm's and the rewards' own files. Editing one of them runs its stages again."""
    return digests.of_run(STUDY.parsed(wildcards.stage, int(wildcards.seed)))
