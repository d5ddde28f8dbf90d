# Preference pairs from the cold-start policy; a reward model from them


rule preferences:
    input:
        policy=f"{COLD_START}/checkpoint",
        prompts=f"{DATA}/train.jsonl",
    output:
        stage_files(f"{RESULTS}/preferences"),
        train=f"{RESULTS}/preferences/train.jsonl",
        held_out=f"{RESULTS}/preferences/held_out.jsonl",
    log:
        f"{RESULTS}/preferences/sample.log",
    priority: 20
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: as_json(STUDY.resolved("preferences")),
        out=f"{RESULTS}/preferences",
    message:
        "Sample preference pairs"
    shell:
        "python -m algos.training.rewards.preferences --name preferences --settings {params.settings:q} --policy {input.policy}"
        " --prompts {input.prompts} --out {params.out} --threads {threads} 2> {log}"


rule reward_model:
    input:
        policy=f"{COLD_START}/checkpoint",
        preferences=rules.preferences.output.train,
        held_out=rules.preferences.output.held_out,
    output:
        stage_files(REWARD_MODEL),
        checkpoint=directory(f"{REWARD_MODEL}/checkpoint"),
    log:
        f"{REWARD_MODEL}/train.log",
    priority: 20
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: as_json(STUDY.resolved("reward_model")),
        preferences=f"{RESULTS}/preferences",
    message:
        "Train the reward model"
    shell:
        "python -m algos.training.rewards.reward_model --name reward_model --settings {params.settings:q} --policy {input.policy}"
        " --preferences {params.preferences} --out {REWARD_MODEL} --threads {threads} 2> {log}"
