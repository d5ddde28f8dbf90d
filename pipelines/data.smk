# (1) task -> train, dev and test problems, demonstrations; base model and student with their tokenizer


rule data:
    output:
        expand("{data}/{split}.jsonl", data=DATA, split=["train", "dev", "test", "demonstrations"]),
        run=f"{DATA}/run.json",
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
        directory(f"{RESULTS}/models/base"),
    log:
        f"{RESULTS}/models/base.log",
    params:
        settings=as_json(STUDY.model("base_model")),
        seed=STUDY.config["seed"],
    message:
        "Make the base model"
    shell:
        "python -m algos.training.base_model --settings {params.settings:q} --seed {params.seed}"
        " --texts {input.texts} --out {output} 2> {log}"


rule student_model:
    input:
        texts=f"{DATA}/demonstrations.jsonl",
        tokenizer=f"{RESULTS}/models/base",
    output:
        directory(f"{RESULTS}/models/student"),
    log:
        f"{RESULTS}/models/student.log",
    params:
        settings=as_json(STUDY.model("student")),
        seed=STUDY.config["seed"],
    message:
        "Make the student model"
    shell:
        "python -m algos.training.base_model --settings {params.settings:q} --seed {params.seed}"
        " --texts {input.texts} --tokenizer {input.tokenizer} --out {output} 2> {log}"
