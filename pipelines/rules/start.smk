# (1) Where the graph begins: the task's problems, and the models


def task(wildcards):
    return as_json(STUDY.task())


def prompt(wildcards):
    return as_json(STUDY.prompt())


def task_code(wildcards):
    return digests.of_task(STUDY.settings.task)


def model_settings(wildcards):
    return as_json(STUDY.model_settings(wildcards.model))


def model_files(wildcards):
    """A digest of the folder or file of a user's own model. A change in it loads the model again."""
    model = STUDY.model(wildcards.model)
    return digests.of_folder(model.path or model.gguf)


def model_out(wildcards):
    return f"{RESULTS}/models/{wildcards.model}"


def tokenizer(wildcards):
    """The checkpoint whose tokenizer a model takes, where it takes another one's."""
    other = STUDY.tokenizer_of(wildcards.model)
    return [f"{RESULTS}/models/{other}/checkpoint"] if other else []


def tokenizer_option(wildcards):
    return ["--tokenizer", *tokenizer(wildcards)] if tokenizer(wildcards) else []


rule data:
    output:
        expand("{data}/{split}.jsonl", data=[DATA], split=SPLITS),
        record(DATA),
    params:
        task=task,
        prompt=prompt,
        code=task_code,
        out=DATA,
    message:
        "Make the problems"
    shell:
        "python -m evaluation.data --task {params.task:q} --prompt {params.prompt:q} --out {params.out:q}"


rule model:
    input:
        tokenizer,
        texts=f"{DATA}/demonstrations.jsonl",
    output:
        record(MODEL),
        checkpoint=directory(f"{MODEL}/checkpoint"),
    log:
        f"{MODEL}/build.log",
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
