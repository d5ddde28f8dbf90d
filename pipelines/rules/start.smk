# (1) Where the graph begins: the task's problems, and the models


rule data:
    output:
        expand("{data}/{split}.jsonl", data=[DATA], split=SPLITS),
        record(DATA),
    log:
        f"{DATA}/log.txt",
    benchmark:
        f"{DATA}/benchmark.tsv"
    resources:
        **SMALL,
    params:
        task=task,
        prompt=prompt,
        code=task_code,
        out=data_out,
    message:
        "Make the problems"
    shell:
        "python -m evaluation.data --task {params.task:q} --prompt {params.prompt:q} --out {params.out:q} 2> {log:q}"


rule other_data:
    output:
        expand("{data}/{split}.jsonl", data=[OTHER_DATA], split=SPLITS),
        record(OTHER_DATA),
    log:
        f"{OTHER_DATA}/log.txt",
    benchmark:
        f"{OTHER_DATA}/benchmark.tsv"
    resources:
        **SMALL,
    params:
        task=other_task,
        prompt=prompt,
        code=other_task_code,
        out=other_data_out,
    message:
        "Make the problems of another task"
    shell:
        "python -m evaluation.data --task {params.task:q} --prompt {params.prompt:q} --out {params.out:q} 2> {log:q}"


rule model:
    input:
        tokenizer,
        texts=f"{DATA}/demonstrations.jsonl",
    output:
        record(MODEL),
        checkpoint=directory(f"{MODEL}/checkpoint"),
    log:
        f"{MODEL}/build.log",
    benchmark:
        f"{MODEL}/benchmark.tsv"
    resources:
        mem_mb=model_mem_mb,
        runtime=model_runtime,
    params:
        settings=model_settings,
        files=model_files,
        tokenizer=tokenizer_option,
        seed=STUDY.settings.seed,
        out=model_out,
    message:
        "Make the model {wildcards.model}"
    shell:
        "python -m algos.training.models.build --name {wildcards.model} --settings {params.settings:q}"
        " --seed {params.seed} --texts {input.texts:q} {params.tokenizer:q} --out {params.out:q} --threads {threads}"
        " 2> {log:q}"
