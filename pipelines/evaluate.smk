# (7) checkpoint + test problems -> one scored row per response


rule evaluate:
    input:
        checkpoint=f"{RUN_DIR}/checkpoint",
        problems=f"{DATA}/test.jsonl",
    output:
        stage_files(f"{RUN_DIR}/evaluation"),
        scores=f"{RUN_DIR}/evaluation/scores.json",
        responses=f"{RUN_DIR}/evaluation/responses.jsonl",
    log:
        f"{RUN_DIR}/evaluation/evaluate.log",
    resources:
        gpu=1,
    params:
        settings=as_json(STUDY.resolved("evaluation")),
        out=f"{RUN_DIR}/evaluation",
    message:
        "Evaluate {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m evaluation.evaluate --name {wildcards.run}/seed{wildcards.seed} --settings {params.settings:q}"
        " --checkpoint {input.checkpoint} --problems {input.problems} --out {params.out} --threads {threads} 2> {log}"
