# (8) All scores -> tables and figures, each with a caption; all records -> MLflow


rule report:
    input:
        evaluations,  # newer than everything else that a stage writes
    output:
        html=report(f"{REPORT}/report.html", caption="../captions/report.rst", category="Report"),
        comparison=report(f"{REPORT}/comparison.csv", caption="../captions/comparison.rst", category="Tables"),
        markdown=f"{REPORT}/comparison.md",
        pairs=report(f"{REPORT}/pairs.csv", caption="../captions/pairs.rst", category="Tables"),
        pairwise=report(f"{REPORT}/pairwise.csv", caption="../captions/pairwise.rst", category="Tables"),
        pairwise_markdown=f"{REPORT}/pairwise.md",
        profile=f"{REPORT}/profile.csv",
        pass_at_k=report(f"{REPORT}/pass_at_k.csv", caption="../captions/pass_at_k.rst", category="Tables"),
        memory=report(f"{REPORT}/memory.csv", caption="../captions/memory.rst", category="Tables"),
        throughput=report(f"{REPORT}/throughput.csv", caption="../captions/throughput.rst", category="Tables"),
        curves=f"{REPORT}/curves.csv",
        scaling=f"{REPORT}/scaling.csv",
        dynamics=f"{REPORT}/dynamics.csv",
        estimators=f"{REPORT}/estimators.csv",
        provenance=f"{REPORT}/provenance.csv",
        tuning=[
            report(f"{REPORT}/{table}.csv", caption="../captions/tuning.rst", category="Tables")
            for table in tuning_tables_of(STUDY.report())
        ],
        figures=[
            report(f"{REPORT}/{figure}.svg", caption=f"../captions/{figure}.rst", category="Figures")
            for figure in figures_of(STUDY.report())
        ],
    log:
        f"{REPORT}/report.log",
    benchmark:
        f"{REPORT}/benchmark.tsv"
    resources:
        **SMALL,
    params:
        study=study,
        results=study_results,
        out=report_out,
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
    benchmark:
        f"{RESULTS}/mlflow_mirror.benchmark.tsv"
    resources:
        **SMALL,
    params:
        mirror=mirror,
    message:
        "Mirror the runs into MLflow"
    shell:
        "python -m algos.training.stage.mirror {params.mirror:q} --summary {output.summary:q} 2> {log:q}"


onstart:
    progress.follow()
    if any(job.rule.name != "claims" for job in workflow.dag.needrun_jobs()):  # the claims make nothing of the study
        if running := one_at_a_time.hold(RESULTS):
            raise WorkflowError(f"{running} makes {RESULTS} now. Wait until it has ended, or end it; then run this again.")
        # Mirrors the runs into MLflow while they grow; the rule `mlflow` does it once more at the end.
        subprocess.Popen(
            [sys.executable, "-m", "algos.training.stage.mirror", *MIRROR, "--watch", str(os.getpid())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


onsuccess:
    one_at_a_time.release(RESULTS)


onerror:
    one_at_a_time.release(RESULTS)
