# (2-6) prompts + settings + seed -> checkpoint, metrics.jsonl, run.json


rule train:
    input:
        policy=f"{COLD_START}/checkpoint",
        prompts=f"{DATA}/train.jsonl",
        reward_model=reward_model_of,
    output:
        stage_files(RUN_DIR),
        checkpoint=directory(f"{RUN_DIR}/checkpoint"),
    wildcard_constraints:
        run="|".join(STUDY.runs),
    log:
        f"{RUN_DIR}/train.log",
    priority: 10
    resources:
        gpu=1,
    params:
        settings=run_settings,
        reward_model=reward_model_option,
        out=RUN_DIR,
    message:
        "Train {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.train --name {wildcards.run}/seed{wildcards.seed} --settings {params.settings:q}"
        " --policy {input.policy} --prompts {input.prompts} {params.reward_model} --out {params.out}"
        " --threads {threads} 2> {log}"
