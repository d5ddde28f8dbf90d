"""On-policy distillation: sample from the student, score with the teacher, lower their divergence token by token.

Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, algorithm 1. Each step trains on the student's own responses with
probability on_policy_share, else on given responses: the teacher's accepted samples or demonstrations. No gradient
flows through the sampling. With objective policy_gradient the teacher's and the student's log-probabilities of the
sampled tokens stand in for the full distributions. The mathematics is in algos/distillation.py. By hand:
    python -m algos.training.supervised.distillation --settings '{"seed": 0}' --from STUDENT --teacher DIR \\
        --prompts FILE --out DIR
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from algos import distillation
from algos.pieces.settings import SettingsError, from_dict
from algos.pieces.types import Batch, Totals, make_batch
from algos.training.models.checkpoints import check_positions, import_model, load_policy, resolve_device, save_policy
from algos.training.models.logprobs import token_logits
from algos.training.models.packing import Layout
from algos.training.models.tokens import encode_prompt, load_tokenizer
from algos.training.sampling.sampler import decode_ids, sample
from algos.training.stage.config import EVERY_TEN_MINUTES, Saving, loaded_dtype, read_saving
from algos.training.stage.environment import resident_bytes
from algos.training.stage.record import (
    Phases,
    Progress,
    Record,
    component_memory,
    load_settings,
    main_guard,
    peak_memory,
    resumable_parser,
    use_threads,
    warn_if_budget_left,
)
from algos.training.stage.saves import Saves
from algos.training.supervised.config import DistillationConfig
from algos.training.supervised.examples import Step, Texts, as_batch, encode_examples, schedule
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks import check_prompts, check_rows
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.grader import grader_of


def accumulate_gradients(
    batch: Batch, student, teacher, config: DistillationConfig, phases: Phases
) -> dict[str, float]:
    """Add the gradient of one optimizer step to the student, micro-batch by micro-batch. Returns the step's metrics."""
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
                teacher_logprobs, student_logprobs = (
                    torch.log_softmax(logits / config.temperature, dim=-1).gather(-1, ids[..., None]).squeeze(-1)
                    for logits in (teacher_logits, student_logits)
                )
                loss = distillation.policy_gradient_loss(teacher_logprobs, student_logprobs, mask, totals)
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
    on_step: Callable[[int, dict, list[list[int]]], bool],
    generator: torch.Generator,
    first: int = 0,
) -> None:
    """Train the student for config.steps optimizer steps, or fewer.

    on_step gets each step's number, its metrics and the token ids of its responses; if it returns True, training ends.
    generator draws the student's responses. first: the number of the first step, where a saved state goes on.
    """
    for number, step in enumerate(schedule(config, texts)[first:], first):
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
        if on_step(number, metrics, responses):
            break


def check_same_vocabulary(student, teacher, student_tokenizer, teacher_tokenizer) -> None:
    """Raise SettingsError unless a token id means the same to both, which are compared on one text, token by token."""
    if student_tokenizer.get_vocab() != teacher_tokenizer.get_vocab():
        students, teachers = (set(t.get_vocab().items()) for t in (student_tokenizer, teacher_tokenizer))
        different = students ^ teachers
        raise SettingsError(
            f"student and teacher must share a tokenizer, but {len(different)} of their tokens differ, such as "
            f"{min(different)!r} (vocabularies of {len(students)} and {len(teachers)})."
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


def read_texts(config: DistillationConfig, prompts_path: str, data_path: str | None) -> tuple[list[dict], list[dict]]:
    """The problems that the student answers and the given rows. SettingsError if they do not fit the settings."""
    problems, rows = read_jsonl(prompts_path), []
    check_rows(problems, prompts_path)
    check_prompts(problems, prompts_path, ids=False)
    if config.prompts_per_step > len(problems):
        raise SettingsError(
            f"prompts_per_step is {config.prompts_per_step}, but {prompts_path} has {len(problems)} problems."
        )
    share = f"on_policy_share is {config.on_policy_share:g}"
    if data_path is None and config.on_policy_share < 1:
        raise SettingsError(f"{share}: the other steps need given responses (--data).")
    if data_path is not None and config.on_policy_share == 1:
        raise SettingsError(
            f"{share}: given responses (--data {data_path}) are without effect; leave them out, or set on_policy_share "
            "below 1."
        )
    if data_path is not None:
        rows = read_jsonl(data_path)
        check_rows(rows, data_path, gold=False)
        check_prompts(rows, data_path, ids=False)
    return problems, rows


@dataclass
class State:
    """All that a step changes."""

    student: Any
    optimizer: Any
    scheduler: Any
    generator: torch.Generator  # draws the student's responses
    steps: int = 0  # done
    generated: int = 0  # tokens
    generated_responses: int = 0
    scored: int = 0  # tokens, prompts and responses, that the teacher read
    finished: bool = False


class Monitor:
    """Writes the metrics and samples of every step, and counts tokens."""

    def __init__(self, config: DistillationConfig, record: Record, name: str, phases: Phases, tokenizer, state: State):
        self.config, self.record, self.phases, self.tokenizer, self.state = config, record, phases, tokenizer, state
        total, unit = (config.steps, "step") if config.budget_tokens is None else (config.budget_tokens, "token")
        self.progress = Progress(total, name or "on-policy distillation", unit)

    def step(self, number: int, step: Step, asked: list[dict], metrics: dict, responses: list[list[int]]) -> bool:
        """Takes the responses to the rows `asked`. Returns whether this step is the last one."""
        config, state, seconds = self.config, self.state, self.phases.next_step()
        tokens, said = sum(len(ids) for ids in responses), decode_ids(self.tokenizer, responses)
        state.steps, state.scored = number + 1, state.scored + metrics.pop("scored_tokens")
        line = {"on_policy": int(step.on_policy), **metrics, "response_tokens": tokens / len(responses)}
        if step.on_policy:
            state.generated += tokens
            state.generated_responses += len(said)
            line["accuracy"] = sum(
                grader.correct(grader.strict(text), grader.gold(problem))
                for text, problem in zip(said, asked, strict=True)
                for grader in [grader_of(problem)]
            ) / len(said)
        state.finished = last = number == config.steps - 1 or (
            config.budget_tokens is not None and state.generated >= config.budget_tokens
        )
        if number % config.log_every == 0 or last:
            self._log(number, line, seconds, tokens)
        if number % config.sample_every == 0 or last:
            source = "student" if step.on_policy else "given"
            for row in range(min(4, len(said))):
                self.record.sample(step=number, source=source, prompt=asked[row]["prompt"], response=said[row])
        return last

    def _log(self, number: int, line: dict, seconds: dict, tokens: int) -> None:
        counts = {"generated_tokens": self.state.generated, "teacher_tokens": self.state.scored}
        line = {**line, **counts, **seconds, "step_seconds": sum(seconds.values())}
        self.record.log(number, line)
        budget = self.config.budget_tokens
        done = number + 1 if budget is None else min(self.state.generated, budget)
        self.progress.update(done, loss=line["loss"], **{"tokens/s": tokens / line["step_seconds"]})

    def close(self) -> None:
        self.progress.close()
        warn_if_budget_left(self.config, "steps", self.state.generated)


def train(
    config: DistillationConfig,
    student_path: str,
    teacher_path: str,
    prompts_path: str,
    data_path: str | None,
    out: str,
    name: str = "",
    threads: int = 1,
    saving: Saving = EVERY_TEN_MINUTES,
) -> None:
    """Distill the teacher into the student; writes checkpoint/, metrics.jsonl, samples.jsonl and run.json.

    data_path: rows with prompt and answer where on_policy_share is below 1, else None.
    """
    for path in (student_path, teacher_path):
        import_model(path)
    problems, rows = read_texts(config, prompts_path, data_path)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    run: Callable[..., None] | None = None  # TRL's
    if config.trainer == "trl":
        from algos.training.trl import supervised as trl_supervised

        trl_supervised.prepare(config, device)
        run = trl_supervised.fit_distillation
    before = resident_bytes()
    tokenizer = load_tokenizer(student_path)
    student = load_policy(student_path, device, loaded_dtype(config))
    teacher = load_policy(teacher_path, device, loaded_dtype(config)).requires_grad_(False)
    check_same_vocabulary(student, teacher, tokenizer, load_tokenizer(teacher_path))
    texts = Texts([encode_prompt(tokenizer, p["prompt"]) for p in problems], encode_examples(tokenizer, rows))
    longest = max(
        max((len(prompt) for prompt in texts.prompts), default=0) + config.max_response_tokens,
        max((len(prompt) + len(response) for prompt, response in texts.examples), default=0),
    )
    for role, model in (("student", student), ("teacher", teacher)):
        check_positions(model, longest, "the longest prompt and its response", role)
    generator = torch.Generator(device).manual_seed(config.seed)
    optimizer, scheduler = make_optimizer(student, config.optimizer, config.steps)
    state = State(student, optimizer, scheduler, generator)
    saves = Saves(out, saving, [student_path, teacher_path, prompts_path, data_path]) if run is None else None
    record = Record(
        out,
        "distillation",
        asdict(config),
        threads,
        saves,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        device=str(device),
    )
    phases = Phases(device)
    monitor, steps = Monitor(config, record, name, phases, tokenizer, state), schedule(config, texts)
    if saves is not None:
        saves.hold(state, phases)

    def on_step(number: int, metrics: dict, responses: list[list[int]]) -> bool:
        step = steps[number]
        if step.on_policy:
            asked = [problems[i] for i in step.rows for _ in range(config.responses)]
        else:
            asked = [rows[i] for i in step.rows]
        last = monitor.step(number, step, asked, metrics, responses)
        if saves is not None:
            saves.after_step()
        return last

    models = (student, teacher, tokenizer, optimizer, scheduler)
    if run is not None:
        run(*models, texts, config, phases, on_step)
    elif not state.finished:
        fit(*models, texts, config, phases, on_step, generator, state.steps)
    monitor.close()
    save_policy(student, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        generated_tokens=state.generated,
        generated_responses=state.generated_responses,
        teacher_tokens=state.scored,  # its share of the cost
        optimizer_steps=state.steps,
        memory=component_memory(policy=(student, optimizer), teacher=(teacher, None)),
        peak_memory=peak_memory(device, before),
    )


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0], tunable=True)
    parser.add_argument("--from", dest="student", required=True, metavar="DIR", help="the student to start from")
    parser.add_argument("--teacher", required=True, metavar="DIR", help="a checkpoint with the student's tokenizer")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="train problems for the student, JSONL")
    parser.add_argument(
        "--data", metavar="FILE", help="given responses, if on_policy_share is below 1: prompt and answer"
    )
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(DistillationConfig, load_settings(args.settings, args.tuned), "settings")
    paths = (args.student, args.teacher, args.prompts, args.data)
    train(config, *paths, args.out, args.name, args.threads, read_saving(args.saving))


if __name__ == "__main__":
    main_guard(main)
