# Training without a reward's gradient: cold start, rejection-sampling fine-tuning, expert iteration, distillation


rule cold_start:
    input:
        model=f"{RESULTS}/models/base/checkpoint",
        data=f"{DATA}/demonstrations.jsonl",
    output:
        stage_files(COLD_START),
        checkpoint=directory(f"{COLD_START}/checkpoint"),
    log:
        f"{COLD_START}/train.log",
    threads: 2
    resources:
        gpu=1,
    params:
        settings=as_json(STUDY.resolved("cold_start", STUDY.config["seed"])),
    message:
        "Cold start"
    shell:
        "python -m algos.training.supervised.sft --stage cold_start --name cold_start --settings {params.settings:q}"
        " --model {input.model} --data {input.data} --out {COLD_START} --threads {threads} 2> {log}"


rule accept:
    input:
        policy=f"{RESULTS}/runs/{STUDY.teacher}/seed{{seed}}/checkpoint" if STUDY.has_rejection_sampling else [],
        prompts=f"{DATA}/train.jsonl",
    output:
        stage_files(f"{RESULTS}/rejection_sampling/seed{{seed}}"),
        accepted=f"{RESULTS}/rejection_sampling/seed{{seed}}/accepted.jsonl",
    log:
        f"{RESULTS}/rejection_sampling/seed{{seed}}/sample.log",
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: as_json(STUDY.resolved("accept", int(wildcards.seed))),
        out=lambda wildcards, output: str(Path(output.accepted).parent),
    message:
        "Sample the teacher and keep what is correct, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.rejection_sampling --name rejection_sampling/seed{wildcards.seed} --settings {params.settings:q}"
        " --policy {input.policy} --prompts {input.prompts} --out {params.out} --threads {threads} 2> {log}"


rule fine_tune:
    input:
        model=supervised_model,
        data=supervised_data,
    output:
        stage_files(RUN_DIR),
        checkpoint=directory(f"{RUN_DIR}/checkpoint"),
    wildcard_constraints:
        run="|".join(SUPERVISED),
    log:
        f"{RUN_DIR}/train.log",
    resources:
        gpu=1,
    params:
        settings=supervised_settings,
        out=RUN_DIR,
    message:
        "Train {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.sft --stage {wildcards.run} --name {wildcards.run}/seed{wildcards.seed}"
        " --settings {params.settings:q} --model {input.model} --data {input.data} --out {params.out}"
        " --threads {threads} 2> {log}"


rule expert_iteration:
    input:
        policy=f"{COLD_START}/checkpoint",
        prompts=f"{DATA}/train.jsonl",
    output:
        stage_files(EXPERT_ITERATION),
        accepted=f"{EXPERT_ITERATION}/accepted.jsonl",
        checkpoint=directory(f"{EXPERT_ITERATION}/checkpoint"),
    log:
        f"{EXPERT_ITERATION}/train.log",
    priority: 10
    resources:
        gpu=1,
    params:
        settings=lambda wildcards: as_json(STUDY.resolved("expert_iteration", int(wildcards.seed))),
        out=EXPERT_ITERATION,
    message:
        "Expert iteration, seed {wildcards.seed}"
    shell:
        "python -m algos.training.supervised.expert_iteration --name expert_iteration/seed{wildcards.seed}"
        " --settings {params.settings:q} --policy {input.policy} --prompts {input.prompts} --out {params.out}"
        " --threads {threads} 2> {log}"


if STUDY.students:

    rule distill:
        input:
            student=f"{RESULTS}/runs/student_cold/seed{{seed}}/checkpoint",
            teacher=f"{RESULTS}/runs/{STUDY.teacher}/seed{{seed}}/checkpoint",
            prompts=f"{DATA}/train.jsonl",
            data=f"{RESULTS}/rejection_sampling/seed{{seed}}/accepted.jsonl",
        output:
            stage_files(RUN_DIR),
            checkpoint=directory(f"{RUN_DIR}/checkpoint"),
        wildcard_constraints:
            run="|".join(STUDY.students),
        log:
            f"{RUN_DIR}/train.log",
        resources:
            gpu=1,
        params:
            settings=run_settings,
            out=RUN_DIR,
        message:
            "Distill into {wildcards.run}, seed {wildcards.seed}"
        shell:
            "python -m algos.training.supervised.distillation --name {wildcards.run}/seed{wildcards.seed}"
            " --settings {params.settings:q} --model {input.student} --teacher {input.teacher}"
            " --prompts {input.prompts} --data {input.data} --out {params.out} --threads {threads} 2> {log}"
