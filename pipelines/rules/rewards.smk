# Preference pairs from a policy or from a file; a reward model from them


rule preferences:
    input:
        sources,
    output:
        record(SEED),
        train=f"{SEED}/train.jsonl",
        held_out=f"{SEED}/held_out.jsonl",
    wildcard_constraints:
        stage=of_kind("preferences"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 20
    resources:
        gpu=stage_gpu,
        mem_mb=stage_mem_mb,
        runtime=stage_runtime,
    params:
        name=name,
        settings=settings,
        edges=edges,
        files=pairs,
        out=out,
    message:
        "Make the preference pairs {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.rewards.preferences --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"


rule reward_model:
    input:
        sources,
    output:
        record(SEED),
        checkpoint=directory(f"{SEED}/checkpoint"),
    wildcard_constraints:
        stage=of_kind("reward_model"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 20
    resources:
        gpu=stage_gpu,
        mem_mb=stage_mem_mb,
        runtime=stage_runtime,
    params:
        name=name,
        settings=settings,
        edges=edges,
        out=out,
    message:
        "Train the reward model {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.rewards.reward_model --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"
