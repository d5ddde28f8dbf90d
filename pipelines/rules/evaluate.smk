# (7) The checkpoints of all seeds of a stage + test problems -> one scored row for each response


rule evaluate_model:
    input:
        f"{MODEL}/checkpoint",
        other_problems,
        problems=f"{DATA}/test.jsonl",
    output:
        directory(f"{MODEL}/evaluation"),
    wildcard_constraints:
        model=one_of_these(STUDY.evaluated_models),
    log:
        f"{MODEL}/evaluate.log",
    benchmark:
        f"{MODEL}/evaluate.benchmark.tsv"
    resources:
        gpu=evaluation_gpu,
        mem_mb=model_evaluation_mem_mb,
        runtime=model_evaluation_runtime,
    params:
        settings=evaluation_settings,
        text=evaluation_text,
        others=other_problems_option,
        out=model_evaluation_out,
        folder=model_out,
    message:
        "Evaluate {wildcards.model}"
    shell:
        "python -m evaluation.evaluate --settings {params.settings:q} --problems {input.problems:q} {params.others:q}"
        " --out {params.out:q} --threads {threads} {params.folder:q} 2> {log:q}"


rule evaluate:
    input:
        checkpoints,
        other_problems,
        problems=f"{DATA}/test.jsonl",
    output:
        directory(f"{STAGE}/evaluation"),
    wildcard_constraints:
        stage=one_of_these(STUDY.evaluated),
    log:
        f"{STAGE}/evaluate.log",
    benchmark:
        f"{STAGE}/evaluate.benchmark.tsv"
    resources:
        gpu=evaluation_gpu,
        mem_mb=evaluation_mem_mb,
        runtime=evaluation_runtime,
    params:
        settings=evaluation_settings,
        text=evaluation_text,
        others=other_problems_option,
        out=evaluation_out,
        folders=seed_folders,
    message:
        "Evaluate {wildcards.stage}"
    shell:
        "python -m evaluation.evaluate --settings {params.settings:q} --problems {input.problems:q} {params.others:q}"
        " --out {params.out:q} --threads {threads} {params.folders:q} 2> {log:q}"
