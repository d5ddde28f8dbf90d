# Training on given or accepted text, without a reward's gradient: sft, rejection sampling, expert iteration, distillation


rule sft:
    input:
        sources,
    output:
        record(SEED),
        checkpoint=directory(f"{SEED}/checkpoint"),
    wildcard_constraints:
        stage=of_kind("sft"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 10
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
        "Fine-tune {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.sft --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"


rule rejection_sampling:
    input:
        sources,
    output:
        record(SEED),
        accepted=f"{SEED}/accepted.jsonl",
    wildcard_constraints:
        stage=of_kind("rejection_sampling"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 10
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
        "Sample and keep the correct responses of {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.rejection_sampling --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"


rule expert_iteration:
    input:
        sources,
    output:
        record(SEED),
        accepted=f"{SEED}/accepted.jsonl",
        checkpoint=directory(f"{SEED}/checkpoint"),
    wildcard_constraints:
        stage=of_kind("expert_iteration"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 10
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
        "Iterate {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.expert_iteration --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"


rule distillation:
    input:
        sources,
    output:
        record(SEED),
        checkpoint=directory(f"{SEED}/checkpoint"),
    wildcard_constraints:
        stage=of_kind("distillation"),
    log:
        f"{SEED}/log.txt",
    benchmark:
        f"{SEED}/benchmark.tsv"
    threads: threads_of
    priority: 10
    resources:
        gpu=stage_gpu,
        mem_mb=stage_mem_mb,
        runtime=stage_runtime,
    params:
        name=name,
        settings=settings,
        edges=edges,
        code=code,
        out=out,
    message:
        "Distill into {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.distillation --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"
