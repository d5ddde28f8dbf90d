# The study on one screen. `snakemake --cores all` runs pipelines/config.yaml; another study:
#     snakemake --cores all --configfile pipelines/studies/smoke.yaml
# The study file is the graph: every stage says what it starts from. There is one rule for each kind of stage.
from snakemake.utils import min_version

min_version("9.0")

if not workflow.configfiles:  # none was given

    configfile: "pipelines/config.yaml"


include: "pipelines/rules/common.smk"
include: "pipelines/rules/start.smk"
include: "pipelines/rules/supervised.smk"
include: "pipelines/rules/rewards.smk"
include: "pipelines/rules/rl.smk"
include: "pipelines/rules/tune.smk"
include: "pipelines/rules/evaluate.smk"
include: "pipelines/rules/report.smk"
include: "pipelines/rules/claims.smk"


localrules:  # small, or in need of the network: a cluster runs them where Snakemake runs
    all,
    data,
    choose,
    report,
    mlflow,
    claims,


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/report.html",
        f"{RESULTS}/mlflow_mirror.json",
