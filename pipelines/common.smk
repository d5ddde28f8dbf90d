# Paths, wildcards and named helper functions, so that the rules contain no Python.
import json
import os
import shlex
import subprocess
import sys

from algos.pieces.settings import SettingsError
from pipelines import warm
from pipelines.study import Study

try:
    STUDY = Study(config, os.path.relpath(workflow.configfiles[0]) if workflow.configfiles else "--config")
except SettingsError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process:  # not again in every job
    for warning in STUDY.warnings:
        print(f"warning: {warning}", file=sys.stderr)

# The jobs' Python is this one; stages are forked from the warm process, where there is one (`warm.py`).
shell.prefix(
    f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
    f'if [ -S "${{{{{warm.SOCKET}:-}}}}" ]; then'
    f' python() {{{{ command python -I -S {shlex.quote(os.path.abspath(warm.__file__))} "$@"; }}}}; fi; '
)

RESULTS = STUDY.results
DATA = f"{RESULTS}/data"
RUN_DIR = f"{RESULTS}/runs/{{run}}/seed{{seed}}"
COLD_START = f"{RESULTS}/runs/cold_start/seed{STUDY.config['seed']}"
EXPERT_ITERATION = f"{RESULTS}/runs/expert_iteration/seed{{seed}}"
REWARD_MODEL = f"{RESULTS}/reward_model"
STAGE_FILES = ("run.json", "metrics.jsonl", "samples.jsonl")
SUPERVISED = ("rejection_sft", "trl_rejection_sft", "student_cold", "student_distilled")
TRACKING_URI = STUDY.config.get("mlflow", {}).get("tracking_uri") or f"sqlite:///{RESULTS}/mlflow.db"


wildcard_constraints:
    run="[a-z][a-z0-9_]*",
    seed=r"\d+",


def as_json(values):
    """Settings for a command line. Sorted, so that moving a line in the study file runs nothing again."""
    return json.dumps(values, sort_keys=True)


def stage_files(directory):
    """What every stage records beside its results."""
    return [f"{directory}/{name}" for name in STAGE_FILES]


def run_settings(wildcards):
    """Shared settings + this run's + its seed: only runs whose settings changed are trained again."""
    return as_json(STUDY.resolved(wildcards.run, int(wildcards.seed)))


def supervised_settings(wildcards):
    return as_json(STUDY.resolved(wildcards.run, int(wildcards.seed)))


def reward_model_of(wildcards):
    """The reward model's checkpoint, for runs whose rewards name it."""
    return f"{REWARD_MODEL}/checkpoint" if STUDY.needs_reward_model(wildcards.run) else []


def reward_model_option(wildcards, input):
    return f"--reward-model {input.reward_model}" if input.reward_model else ""


def supervised_model(wildcards):
    """What a supervised stage starts from: students from scratch, the rest from the cold start."""
    return f"{RESULTS}/models/student/checkpoint" if wildcards.run.startswith("student") else f"{COLD_START}/checkpoint"


def supervised_data(wildcards):
    """What a supervised stage is trained on: the teacher's accepted samples, or the cold start's demonstrations."""
    if wildcards.run == "student_cold":
        return f"{DATA}/demonstrations.jsonl"
    return f"{RESULTS}/rejection_sampling/seed{wildcards.seed}/accepted.jsonl"


def evaluated(name):
    """A file of every evaluated checkpoint, over all runs and seeds of the study."""
    return [f"{RESULTS}/runs/{run}/seed{seed}/{name}" for run, seeds in STUDY.checkpoints().items() for seed in seeds]


onstart:
    if workflow.local_exec:  # not where jobs run on other machines, or count elsewhere
        warm.start()
    # Mirrors the runs into MLflow while they grow; the rule `mlflow` does it once more at the end.
    subprocess.Popen([sys.executable, "-m", "algos.training.stage.mirror", "--results", RESULTS, "--uri", TRACKING_URI,
                      "--experiment", STUDY.config["study"], "--watch", str(os.getpid())],
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
