# (7) The checkpoints of all seeds of a stage + test problems -> one scored row for each response


def seed_folders(wildcards):
    return [STUDY.folder(wildcards.stage, seed) for seed in STUDY.seeds_of(wildcards.stage)]


def checkpoints(wildcards):
    return [f"{folder}/checkpoint" for folder in seed_folders(wildcards)]


def evaluation_out(wildcards):
    return f"{RESULTS}/stages/{wildcards.stage}/evaluation"


def model_evaluation_out(wildcards):
    return f"{RESULTS}/models/{wildcards.model}/evaluation"


rule evaluate_model:
    input:
        f"{MODEL}/checkpoint",
        problems=f"{DATA}/test.jsonl",
    output:
        directory(f"{MODEL}/evaluation"),
    wildcard_constraints:
        model=one_of_these(STUDY.evaluated_models),
    log:
        f"{MODEL}/evaluate.log",
    resources:
        gpu=1,
    params:
        settings=as_json(STUDY.evaluation()),
        out=model_evaluation_out,
        folder=model_out,
    message:
        "Evaluate {wildcards.model}"
    shell:
        "python -m evaluation.evaluate --settings {params.settings:q} --problems {input.problems:q}"
        " --out {params.out:q} --threads {threads} {params.folder:q} 2> {log:q}"


rule evaluate:
    input:
        checkpoints,
        problems=f"{DATA}/test.jsonl",
    output:
        directory(f"{STAGE}/evaluation"),
    wildcard_constraints:
        stage=one_of_these(STUDY.evaluated),
    log:
        f"{STAGE}/evaluate.log",
    resources:
        gpu=1,
    params:
        settings=as_json(STUDY.evaluation()),
        out=evaluation_out,
        folders=seed_folders,
    message:
        "Evaluate {wildcards.stage}"
    shell:
        "python -m evaluation.evaluate --settings {params.settings:q} --problems {input.problems:q}"
        " --out {params.out:q} --threads {threads} {params.folders:q} 2> {log:q}"
