# (1) task -> train, dev and test problems, demonstrations; base model and student with their tokenizer


rule data:
    output:
        expand("{data}/{split}.jsonl", data=DATA, split=["train", "dev", "test", "demonstrations"]),
        stage_files(DATA),
    params:
        task=as_json(STUDY.task()),
        prompt=as_json(STUDY.prompt()),
    message:
        "Make the problems"
    shell:
        "python -m evaluation.data --task {params.task:q} --prompt {params.prompt:q} --out {DATA}"


rule base_model:
    input:
        texts=f"{DATA}/demonstrations.jsonl",
    output:
        stage_files(f"{RESULTS}/models/base"),
        checkpoint=directory(f"{RESULTS}/models/base/checkpoint"),
    log:
        f"{RESULTS}/models/base/build.log",
    params:
        settings=as_json(STUDY.resolved("base_model")),
        seed=STUDY.config["seed"],
    message:
        "Make the base model"
    shell:
        "python -m algos.training.models.build --name base_model --settings {params.settings:q} --seed {params.seed}"
        " --texts {input.texts} --out {RESULTS}/models/base --threads {threads} 2> {log}"


rule student_model:
    input:
        texts=f"{DATA}/demonstrations.jsonl",
        tokenizer=f"{RESULTS}/models/base/checkpoint",
    output:
        stage_files(f"{RESULTS}/models/student"),
        checkpoint=directory(f"{RESULTS}/models/student/checkpoint"),
    log:
        f"{RESULTS}/models/student/build.log",
    params:
        settings=as_json(STUDY.resolved("student")),
        seed=STUDY.config["seed"],
    message:
        "Make the student model"
    shell:
        "python -m algos.training.models.build --name student_model --settings {params.settings:q} --seed {params.seed}"
        " --texts {input.texts} --tokenizer {input.tokenizer} --out {RESULTS}/models/student --threads {threads} 2> {log}"
