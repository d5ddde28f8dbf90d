"""On-policy distillation: sample from the student, score with the teacher, lower their divergence token by token.

Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, algorithm 1. Each step trains on the student's own responses with
probability on_policy_share, else on given ones: the teacher's accepted samples or demonstrations. No gradient flows
through the sampling. With objective policy_gradient the teacher's and the student's log-probabilities of the sampled
tokens stand in for the full distributions. The mathematics is in algos/distillation.py. By hand:
    python -m algos.training.supervised.distillation --settings '{"seed": 0}' --model STUDENT --teacher DIR \\
        --prompts FILE --data FILE --out DIR
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from algos import distillation
from algos.pieces.settings import SettingsError
from algos.pieces.types import Batch, Totals, make_batch
from algos.training.models.checkpoints import (
    encode_prompt,
    import_model,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.models.logprobs import token_logits
from algos.training.models.packing import Layout
from algos.training.sampling.sampler import decode_ids, sample
from algos.training.stage.config import loaded_dtype, parse
from algos.training.stage.record import (
    Phases,
    Progress,
    Record,
    component_memory,
    load_settings,
    main_guard,
    peak_memory,
    resident_bytes,
    stage_parser,
    use_threads,
)
from algos.training.supervised.config import DistillationConfig
from algos.training.supervised.examples import Texts, as_batch, encode_examples, schedule
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks import check_rows
from evaluation.tasks.answers import extract_strict, gold_answer, is_correct
from evaluation.tasks.files import read_jsonl


def accumulate_gradients(
    batch: Batch, student, teacher, config: DistillationConfig, phases: Phases
) -> dict[str, float]:
    """Add the gradient of one optimizer step to the student, micro-batch by micro-batch; the step's metrics."""
    totals, parts = Totals.of(batch.response_mask), []
    for _, part in Layout(config.micro_batch_size).micro_batches(batch):
        ids, mask = part.response_ids, part.response_mask
        with phases("teacher"), torch.no_grad():
            teacher_logits = token_logits(teacher, part)  # (b, t, V)
        with phases("update"):
            student_logits = token_logits(student, part)
            if config.objective == "divergence":
                loss = distillation.loss(teacher_logits, student_logits, mask, config.beta, config.temperature, totals)
            else:
                theirs, own = (
                    torch.log_softmax(logits / config.temperature, dim=-1).gather(-1, ids[..., None]).squeeze(-1)
                    for logits in (teacher_logits, student_logits)
                )
                loss = distillation.policy_gradient_loss(theirs, own, mask, totals)
            loss.backward()
            metrics = distillation.diagnostics(teacher_logits, student_logits, ids, mask, config.temperature, totals)
        parts.append({"loss": loss.detach(), **metrics})
    return {name: float(sum(part[name] for part in parts)) for name in parts[0]}


def fit(
    student,
    teacher,
    tokenizer,
    optimizer,
    scheduler,
    texts: Texts,
    config: DistillationConfig,
    phases: Phases,
    on_step: Callable[[int, dict, list[list[int]]], None],
) -> None:
    """Train the student for config.steps optimizer steps.

    on_step gets each step's number, its metrics and the token ids of its responses.
    """
    generator = torch.Generator(student.device).manual_seed(config.seed)
    for number, step in enumerate(schedule(config, texts)):
        if step.on_policy:
            with phases("generate"):
                rollouts = sample(
                    student,
                    tokenizer,
                    [texts.prompts[i] for i in step.rows],
                    config.responses,
                    config.max_response_tokens,
                    config.temperature,
                    generator,
                )
            batch = make_batch(rollouts, torch.zeros(config.responses_per_step), tokenizer.pad_token_id)
        else:
            batch = as_batch([texts.examples[i] for i in step.rows], tokenizer.pad_token_id, student.device)
        learning_rate = scheduler.get_last_lr()[0]
        metrics = accumulate_gradients(batch, student, teacher, config, phases)
        with phases("update"):
            metrics["grad_norm"] = optimizer_step(student, optimizer, scheduler, config.optimizer.max_grad_norm)
        metrics |= {"learning_rate": learning_rate, "scored_tokens": int(batch.lengths.sum())}
        responses = [ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)]
        on_step(number, metrics, responses)


def check_same_vocabulary(student, teacher, student_tokenizer, teacher_tokenizer) -> None:
    """Raise SettingsError unless a token id means the same to both: they are compared on one text, token by token."""
    if student_tokenizer.get_vocab() != teacher_tokenizer.get_vocab():
        ours, theirs = (set(t.get_vocab().items()) for t in (student_tokenizer, teacher_tokenizer))
        raise SettingsError(
            f"student and teacher must share a tokenizer, but {len(ours ^ theirs)} of their tokens differ, as does "
            f"{min(ours ^ theirs)!r} (vocabularies of {len(ours)} and {len(theirs)})."
        )
    if student_tokenizer.eos_token_id != teacher_tokenizer.eos_token_id:
        raise SettingsError(
            f"student and teacher must end their responses with one token, not with {student_tokenizer.eos_token!r} "
            f"and {teacher_tokenizer.eos_token!r}."
        )
    widths = [model.get_output_embeddings().weight.shape[0] for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise SettingsError(
            f"student and teacher have output heads of {widths[0]} and {widths[1]} tokens; make them equal."
        )


def train(
    config: DistillationConfig,
    student_path: str,
    teacher_path: str,
    prompts_path: str,
    data_path: str | None,
    out: str,
    name: str = "",
    threads: int = 1,
) -> None:
    """Distill the teacher into the student; writes checkpoint/, metrics.jsonl, samples.jsonl and run.json.

    data_path (rows with prompt and answer) may be None if on_policy_share is 1.
    """
    problems = read_jsonl(prompts_path)
    check_rows(problems, prompts_path)
    if config.prompts_per_step > len(problems):
        raise SettingsError(
            f"prompts_per_step is {config.prompts_per_step}, but {prompts_path} has {len(problems)} problems."
        )
    rows = []
    if data_path is not None:
        rows = read_jsonl(data_path)
        check_rows(rows, data_path, gold=False)
    elif config.on_policy_share < 1:
        raise SettingsError(
            f"on_policy_share is {config.on_policy_share}: the other steps need given responses (--data)."
        )
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    run = fit
    if config.trainer == "trl":
        from algos.training.trl import supervised as trl_supervised

        trl_supervised.prepare(config, device)
        run = trl_supervised.fit_distillation
    import_model(student_path)
    before = resident_bytes()
    tokenizer = load_tokenizer(student_path)
    student = load_policy(student_path, device, loaded_dtype(config))
    teacher = load_policy(teacher_path, device, loaded_dtype(config)).requires_grad_(False)
    check_same_vocabulary(student, teacher, tokenizer, load_tokenizer(teacher_path))
    texts = Texts([encode_prompt(tokenizer, p["prompt"]) for p in problems], encode_examples(tokenizer, rows))
    optimizer, scheduler = make_optimizer(student, config.optimizer, config.steps)
    record = Record(
        out,
        "on_policy_distillation",
        asdict(config),
        threads,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        device=str(device),
    )
    phases, progress = Phases(device), Progress(config.steps, name or "on-policy distillation")
    steps = schedule(config, texts)
    generated = generated_responses = scored = 0

    def on_step(number: int, metrics: dict, responses: list[list[int]]) -> None:
        nonlocal generated, generated_responses, scored
        step, seconds, tokens = steps[number], phases.next_step(), sum(len(ids) for ids in responses)
        scored += metrics.pop("scored_tokens")
        line = {"on_policy": int(step.on_policy), **metrics, "response_tokens": tokens / len(responses)}
        said = decode_ids(tokenizer, responses)
        if step.on_policy:
            generated, generated_responses = generated + tokens, generated_responses + len(responses)
            asked = [problems[i] for i in step.rows for _ in range(config.responses)]
            line["accuracy"] = sum(
                is_correct(extract_strict(text), gold_answer(problem["answer"]))
                for text, problem in zip(said, asked, strict=True)
            ) / len(said)
        else:
            asked = [rows[i] for i in step.rows]
        if number % config.log_every == 0 or number == config.steps - 1:
            line |= {
                "generated_tokens": generated,
                "teacher_tokens": scored,
                **seconds,
                "step_seconds": sum(seconds.values()),
            }
            record.log(number, line)
            progress.update(number + 1, loss=metrics["loss"], **{"tokens/s": tokens / line["step_seconds"]})
        if number % config.sample_every == 0 or number == config.steps - 1:
            source = "student" if step.on_policy else "given"
            for row in range(min(4, len(said))):
                record.sample(step=number, source=source, prompt=asked[row]["prompt"], response=said[row])

    run(student, teacher, tokenizer, optimizer, scheduler, texts, config, phases, on_step)
    progress.close()
    save_policy(student, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        generated_tokens=generated,
        generated_responses=generated_responses,
        teacher_tokens=scored,  # prompts and responses that the teacher read: its share of the cost
        optimizer_steps=config.steps,
        memory=component_memory(policy=(student, optimizer), teacher=(teacher, None)),
        peak_memory=peak_memory(device, before),
    )


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the student: checkpoint to start from")
    parser.add_argument("--teacher", required=True, help="checkpoint to learn from, with the student's tokenizer")
    parser.add_argument("--prompts", required=True, help="train problems that the student answers, JSONL")
    parser.add_argument("--data", help="given responses, rows with prompt and answer, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = parse(DistillationConfig, load_settings(args.settings), "settings")
    train(config, args.model, args.teacher, args.prompts, args.data, args.out, args.name, args.threads)


if __name__ == "__main__":
    main_guard(main)
