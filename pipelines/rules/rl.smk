# (2-6) Prompts, a policy, settings and a seed -> checkpoint, metrics.jsonl, run.json


rule rl:
    input:
        sources,
    output:
        record(SEED),
        checkpoint=directory(f"{SEED}/checkpoint"),
    wildcard_constraints:
        stage=of_kind("rl"),
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
        "Train {wildcards.stage}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.train --name {params.name:q} --settings {params.settings:q}"
        " {params.edges:q} --out {params.out:q} --threads {threads} 2> {log:q}"
        " || [ $? -eq 3 ]"  # 3: recorded as failed, with its last good checkpoint
