# A stage that is tuned: the checkpoints of each trial + dev problems -> scores; the scores of all trials -> a choice.
# The stage reads the choice as --tuned. No rule here has the test problems.


rule evaluate_trial:
    input:
        checkpoints,
        problems=f"{DATA}/dev.jsonl",
    output:
        directory(f"{STAGE}/dev"),
    wildcard_constraints:
        stage=one_of_these(STUDY.trials),
    log:
        f"{STAGE}/dev.log",
    benchmark:
        f"{STAGE}/dev.benchmark.tsv"
    priority: 10
    resources:
        gpu=evaluation_gpu,
        mem_mb=trial_mem_mb,
        runtime=trial_runtime,
    params:
        settings=trial_settings,
        out=trial_out,
        folders=seed_folders,
    message:
        "Evaluate {wildcards.stage} on dev"
    shell:
        "python -m evaluation.evaluate --settings {params.settings:q} --problems {input.problems:q}"
        " --out {params.out:q} --threads {threads} {params.folders:q} 2> {log:q}"


rule choose:
    input:
        trials,
    output:
        choice=f"{STAGE}/tuning.json",
    wildcard_constraints:
        stage=one_of_these(STUDY.tuned),
    log:
        f"{STAGE}/tuning.log",
    benchmark:
        f"{STAGE}/tuning.benchmark.tsv"
    resources:
        **SMALL,
    params:
        tuning=tuning,
        results=study_results,
    message:
        "Choose the configuration of {wildcards.stage}"
    shell:
        "python -m evaluation.tuning.choose --tuning {params.tuning:q} --results {params.results:q}"
        " --out {output.choice:q} 2> {log:q}"
