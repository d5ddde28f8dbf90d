# (8) All scores -> tables and figures, each with a caption; all records -> MLflow
REPORT = f"{RESULTS}/report"
MLFLOW = STUDY.settings.mlflow
MIRROR = [
    *("--results", RESULTS, "--experiment", STUDY.name),
    *("--uri", STUDY.tracking_uri),
    *(["--register-models"] if MLFLOW.register_models else []),
]


def study(wildcards):
    return json.dumps(STUDY.report())  # not sorted: the report keeps the order of the study file


def mirror(wildcards):
    return MIRROR


def evaluations(wildcards):
    stages = [f"stages/{stage}" for stage in STUDY.evaluated]
    models = [f"models/{model}" for model in STUDY.evaluated_models]
    return [f"{RESULTS}/{folder}/evaluation" for folder in models + stages]


rule report:
    input:
        evaluations,  # newer than everything else that a stage writes
    output:
        html=report(f"{REPORT}/report.html", caption="../captions/report.rst", category="Report"),
        comparison=report(f"{REPORT}/comparison.csv", caption="../captions/comparison.rst", category="Tables"),
        markdown=f"{REPORT}/comparison.md",
        pairs=report(f"{REPORT}/pairs.csv", caption="../captions/pairs.rst", category="Tables"),
        memory=report(f"{REPORT}/memory.csv", caption="../captions/memory.rst", category="Tables"),
        throughput=report(f"{REPORT}/throughput.csv", caption="../captions/throughput.rst", category="Tables"),
        curves=f"{REPORT}/curves.csv",
        estimators=f"{REPORT}/estimators.csv",
        provenance=f"{REPORT}/provenance.csv",
        figures=[
            report(f"{REPORT}/{figure}.svg", caption=f"../captions/{figure}.rst", category="Figures")
            for figure in figures_of(STUDY.report())
        ],
    log:
        f"{REPORT}/report.log",
    params:
        study=study,
        results=RESULTS,
        out=REPORT,
    message:
        "Write the report"
    shell:
        "python -m evaluation.report --study {params.study:q} --results {params.results:q} --out {params.out:q} 2> {log:q}"


rule mlflow:
    input:
        rules.report.output.html,
    output:
        summary=f"{RESULTS}/mlflow_mirror.json",
    log:
        f"{RESULTS}/mlflow_mirror.log",
    params:
        mirror=mirror,
    message:
        "Mirror the runs into MLflow"
    shell:
        "python -m algos.training.stage.mirror {params.mirror:q} --summary {output.summary:q} 2> {log:q}"


onstart:
    # Mirrors the runs into MLflow while they grow; the rule `mlflow` does it once more at the end.
    subprocess.Popen(
        [sys.executable, "-m", "algos.training.stage.mirror", *MIRROR, "--watch", str(os.getpid())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
