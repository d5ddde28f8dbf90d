# The study on one screen. `snakemake --cores all` runs pipelines/config.yaml; another study:
#     snakemake --cores all --configfile pipelines/studies/smoke.yaml
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

if not workflow.configfiles:  # none was given

    configfile: "pipelines/config.yaml"


include: "pipelines/common.smk"
include: "pipelines/data.smk"
include: "pipelines/supervised.smk"
include: "pipelines/reward.smk"
include: "pipelines/train.smk"
include: "pipelines/evaluate.smk"
include: "pipelines/report.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/report.html",
        f"{RESULTS}/mlflow_mirror.json",
