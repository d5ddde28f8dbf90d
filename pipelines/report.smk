# (8) all scores -> tables and figures, each with a caption; all records -> MLflow
REPORT = f"{RESULTS}/report"
FIGURES = ["accuracy", "curves_tokens", "curves_time", "memory", "throughput"]
if any(STUDY.needs_reward_model(run) for run in STUDY.runs):
    FIGURES.append("proxy_and_gold")


rule report:
    input:
        scores=evaluated("evaluation/scores.json"),  # newer than everything else that a run writes
        reward_model=f"{REWARD_MODEL}/run.json" if STUDY.has_reward_model else [],
    output:
        html=report(f"{REPORT}/report.html", caption="captions/report.rst", category="Report"),
        comparison=report(f"{REPORT}/comparison.csv", caption="captions/comparison.rst", category="Tables"),
        markdown=f"{REPORT}/comparison.md",
        memory=report(f"{REPORT}/memory.csv", caption="captions/memory.rst", category="Tables"),
        throughput=report(f"{REPORT}/throughput.csv", caption="captions/throughput.rst", category="Tables"),
        curves=f"{REPORT}/curves.csv",
        estimators=f"{REPORT}/estimators.csv",
        provenance=f"{REPORT}/provenance.csv",
        figures=[
            report(f"{REPORT}/{figure}.svg", caption=f"captions/{figure}.rst", category="Figures")
            for figure in FIGURES
        ],
    log:
        f"{REPORT}/report.log",
    params:
        study=json.dumps(STUDY.report()),  # not sorted: the report keeps the order of the study file
    message:
        "Write the report"
    shell:
        "python -m evaluation.report --study {params.study:q} --results {RESULTS} --out {REPORT} 2> {log}"


rule mlflow:
    input:
        rules.report.output.html,
    output:
        f"{RESULTS}/mlflow_mirror.json",
    log:
        f"{RESULTS}/mlflow_mirror.log",
    params:
        uri=TRACKING_URI,
        experiment=STUDY.config["study"],
    message:
        "Mirror the runs into MLflow"
    shell:
        "python -m algos.training.stage.mirror --results {RESULTS} --uri {params.uri:q} --experiment {params.experiment:q}"
        " --summary {output} 2> {log}"
