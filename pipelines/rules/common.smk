# Paths, wildcards and named helper functions, so that the rules contain no Python. What a user writes in a study file
# reaches a command as a value of `params`, quoted with :q. Neither Snakemake nor the shell reads it.
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict

from algos.pieces.settings import SettingsError
from evaluation.config import figures_of, text_file, tuning_tables_of
from pipelines import digests
from pipelines.kinds import SPLITS
from pipelines.study import load
from pipelines.workflow import one_at_a_time, progress
from pipelines.workflow.resources import gpus, memory, minutes, model_memory, policy_shape, saved_shape
from pipelines.workflow.visible_gpus import take_one, visible_gpus
from pipelines.workflow.work import of_evaluation, of_stage

try:
    STUDY = load(os.path.relpath(workflow.configfiles[-1]), config)
except SettingsError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process:  # not again in every job
    for warning in STUDY.warnings:
        print(f"warning: {warning}", file=sys.stderr)

# The jobs' Python is the one that runs Snakemake. When stages save their states stands here and not in `params`, whose
# change would make them again. A stage ends when its Snakemake does, killed or not: PPID is the shell's parent. Where all
# get SIGTERM, as in a job that is preempted, the shell and so its Snakemake wait until the stage has saved its state.
# Of several GPUs a job sees one.
# Snakemake formats the prefix, so its own braces are doubled.
SAVING = json.dumps(asdict(STUDY.settings.saving))
EXPORTS = f"PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH STAGE_SAVING={shlex.quote(SAVING)} STAGE_PARENT=$PPID"
shell.prefix(f"trap : TERM; export {EXPORTS}; {take_one(visible_gpus())}".replace("{", "{{").replace("}", "}}"))

RESULTS = STUDY.results
if workflow.is_main_process and (running := one_at_a_time.look(RESULTS)):
    print(f"note: {running} makes {RESULTS} now; --unlock would be of no use", file=sys.stderr)
DATA = f"{RESULTS}/data"
OTHER_DATA = f"{DATA}/other_task"
MODEL = f"{RESULTS}/models/{{model}}"
STAGE = f"{RESULTS}/stages/{{stage}}"
SEED = f"{STAGE}/seed{{seed}}"
REPORT = f"{RESULTS}/report"
MIRROR = [
    *("--results", RESULTS, "--experiment", STUDY.name, "--uri", STUDY.tracking_uri),
    *(["--register-models"] if STUDY.settings.mlflow.register_models else []),
]
# GPUs, by `--resources gpu=N` or the profile; or else those of this machine, where the jobs run on it
GRANTED = workflow.global_resources.get("gpu").value or 0
if not GRANTED and workflow.resource_settings.nodes is None and (GRANTED := len(visible_gpus())):
    workflow.register_resource("gpu", GRANTED)
SMALL = {"mem_mb": 2000, "runtime": 30}  # resources of a job without a model


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


# the study as a whole


def task(wildcards):
    return as_json(STUDY.task())


def prompt(wildcards):
    return as_json(STUDY.prompt())


def task_code(wildcards):
    return digests.of_task(STUDY.settings.task)


def data_out(wildcards):
    return DATA


def other_task(wildcards):
    return as_json(asdict(STUDY.other_task))


def other_task_code(wildcards):
    return digests.of_task(STUDY.other_task)


def other_data_out(wildcards):
    return OTHER_DATA


def other_problems(wildcards):
    """The test problems of another task, where the study names one."""
    return [f"{OTHER_DATA}/test.jsonl"] if STUDY.other_task else []


def other_problems_option(wildcards):
    return ["--other-problems", *other_problems(wildcards)] if STUDY.other_task else []


def study(wildcards):
    return json.dumps(STUDY.report())  # not sorted: the report keeps the order of the study file


def study_results(wildcards):
    return RESULTS


def report_out(wildcards):
    return REPORT


def mirror(wildcards):
    return MIRROR


def evaluations(wildcards):
    stages = [f"stages/{stage}" for stage in STUDY.evaluated]
    models = [f"models/{model}" for model in STUDY.evaluated_models]
    return [f"{RESULTS}/{folder}/evaluation" for folder in models + stages]


# a model


def model_settings(wildcards):
    return as_json(STUDY.model_settings(wildcards.model))


def model_files(wildcards):
    """A digest of the folder or file of a user's own model. A change in it loads the model again."""
    model = STUDY.model(wildcards.model)
    return digests.of_folder(model.path or model.gguf)


def model_out(wildcards):
    return f"{RESULTS}/models/{wildcards.model}"


def model_mem_mb(wildcards, attempt):
    return attempt * model_memory(STUDY.model(wildcards.model))


def model_runtime(wildcards, attempt):
    return attempt * 60  # minutes: a download may be slow


def tokenizer(wildcards):
    """The checkpoint whose tokenizer a model takes, where it takes another one's."""
    other = STUDY.tokenizer_of(wildcards.model)
    return [f"{RESULTS}/models/{other}/checkpoint"] if other else []


def tokenizer_option(wildcards):
    return ["--tokenizer", *tokenizer(wildcards)] if tokenizer(wildcards) else []


def model_evaluation_out(wildcards):
    return f"{model_out(wildcards)}/evaluation"


def model_evaluation_mem_mb(wildcards, attempt):
    shape = saved_shape(f"{model_out(wildcards)}/checkpoint")
    return attempt * memory(of_evaluation(STUDY, 1), shape, evaluation_gpu(wildcards))


def model_evaluation_runtime(wildcards, attempt):
    shape = saved_shape(f"{model_out(wildcards)}/checkpoint")
    return attempt * minutes(of_evaluation(STUDY, 1), shape, evaluation_gpu(wildcards), threads=1)


# a stage, with one of its seeds


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


def pairs(wildcards):
    """A digest of a user's own pairs. Editing their file makes the stage again."""
    return digests.of_file(STUDY.stages[wildcards.stage].values.get("path"))


def stage_shape(wildcards):
    """The shape of its models; a loaded one's is known once its checkpoint is there, and None for pairs from a file."""
    start = STUDY.edges(wildcards.stage).get("from")
    return start and policy_shape(STUDY, wildcards.stage, STUDY.place(start, int(wildcards.seed)))


def stage_gpu(wildcards):
    return gpus(of_stage(STUDY, wildcards.stage).device, GRANTED)


def stage_mem_mb(wildcards, attempt):
    return attempt * memory(of_stage(STUDY, wildcards.stage), stage_shape(wildcards), stage_gpu(wildcards))


def stage_runtime(wildcards, attempt):
    work, threads = of_stage(STUDY, wildcards.stage), STUDY.threads(wildcards.stage)
    return attempt * minutes(work, stage_shape(wildcards), stage_gpu(wildcards), threads)


# the evaluation of all seeds of a stage


def seed_folders(wildcards):
    return [STUDY.folder(wildcards.stage, seed) for seed in STUDY.seeds_of(wildcards.stage)]


def checkpoints(wildcards):
    return [f"{folder}/checkpoint" for folder in seed_folders(wildcards)]


def evaluation_out(wildcards):
    return f"{RESULTS}/stages/{wildcards.stage}/evaluation"


def evaluation_settings(wildcards):
    return as_json(STUDY.evaluation())


def evaluation_text(wildcards):
    """A digest of the text whose loss is measured. Editing its file evaluates everything again."""
    text = STUDY.parsed_evaluation.text
    return digests.of_file(text and str(text_file(text)))


def evaluation_gpu(wildcards):
    return gpus(STUDY.parsed_evaluation.device, GRANTED)


def evaluation_shape(wildcards):
    return policy_shape(STUDY, wildcards.stage, checkpoints(wildcards)[0])


def evaluation_mem_mb(wildcards, attempt):
    work = of_evaluation(STUDY, len(checkpoints(wildcards)))
    return attempt * memory(work, evaluation_shape(wildcards), evaluation_gpu(wildcards))


def evaluation_runtime(wildcards, attempt):
    work = of_evaluation(STUDY, len(checkpoints(wildcards)))
    return attempt * minutes(work, evaluation_shape(wildcards), evaluation_gpu(wildcards), threads=1)


# a stage that is tuned, and its trials


def tuning(wildcards):
    return as_json(STUDY.tuning(wildcards.stage))


def trials(wildcards):
    """The scores on dev of each trial of a stage."""
    return [f"{RESULTS}/stages/{trial}/dev" for trial in STUDY.stages[wildcards.stage].trials]


def trial_out(wildcards):
    return f"{RESULTS}/stages/{wildcards.stage}/dev"


def trial_settings(wildcards):
    return as_json(STUDY.evaluation_of_trial())


def trial_mem_mb(wildcards, attempt):
    work = of_evaluation(STUDY, len(checkpoints(wildcards)), "dev")
    return attempt * memory(work, evaluation_shape(wildcards), evaluation_gpu(wildcards))


def trial_runtime(wildcards, attempt):
    work = of_evaluation(STUDY, len(checkpoints(wildcards)), "dev")
    return attempt * minutes(work, evaluation_shape(wildcards), evaluation_gpu(wildcards), threads=1)
