"""Next-token training on (prompt, response) pairs: cold start, rejection-sampling fine-tuning, distillation.

The loss is the mean negative log-likelihood over the response tokens of an optimizer step, end-of-sequence included;
prompts are context only. With trainer trl the same examples, in the same order, go to TRL's SFTTrainer. By hand:
    python -m algos.training.supervised.sft --settings '{"seed": 0}' --model DIR --data FILE --out DIR
"""

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from algos.pieces.masked import masked_sum
from algos.pieces.settings import read_jsonl
from algos.pieces.types import Batch, Rollouts, Totals, make_batch
from algos.training.config import SupervisedConfig, loaded_dtype, parse
from algos.training.models.checkpoints import (
    encode_prompt,
    encode_response,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.models.logprobs import token_logprobs
from algos.training.models.packing import Layout, shares_prompts
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
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks import check_rows

Example = tuple[list[int], list[int]]  # token ids of a prompt and of its response
LENGTH_POOL = 8  # batches whose examples are sorted by length together, to save padding


def example_batches(lengths: list[int], steps: int, batch_size: int, seed: int):
    """Example indices of each optimizer step: shuffled passes over all, examples of similar length together."""
    rng = random.Random(seed)
    pending: list[list[int]] = []
    order: list[int] = []
    for _ in range(steps):
        if not pending:
            while len(order) < LENGTH_POOL * batch_size:
                epoch = list(range(len(lengths)))
                rng.shuffle(epoch)
                order += epoch
            pool, order = order[: LENGTH_POOL * batch_size], order[LENGTH_POOL * batch_size :]
            pool.sort(key=lambda i: lengths[i])
            pending = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
            rng.shuffle(pending)
        yield pending.pop()


def encode_examples(tokenizer, rows: list[dict]) -> list[Example]:
    """Rows with prompt and answer as token ids, each response with its end-of-sequence."""
    return [(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["answer"])) for row in rows]


def ordered_batches(examples: list[Example], config: SupervisedConfig) -> list[list[Example]]:
    """The examples of each optimizer step: what both trainers train on, in this order."""
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    chosen = example_batches(lengths, config.steps, config.batch_size, config.seed)
    return [[examples[i] for i in step] for step in chosen]


def as_batch(examples: list[Example], pad_id: int, device) -> Batch:
    """(prompt, response) token ids as a batch; rewards and sampler log-probabilities are not used."""
    width = max(len(response) for _, response in examples)
    ids = torch.full((len(examples), width), pad_id)
    for row, (_, response) in enumerate(examples):
        ids[row, : len(response)] = torch.tensor(response)
    mask = torch.arange(width) < torch.tensor([len(response) for _, response in examples])[:, None]
    rollouts = Rollouts(
        [prompt for prompt, _ in examples],
        1,
        ids.to(device),
        mask.to(device),
        torch.zeros_like(ids, dtype=torch.float32, device=device),
        torch.zeros(len(examples), dtype=torch.bool, device=device),
    )
    number: dict[tuple[int, ...], int] = {}
    groups = [number.setdefault(tuple(prompt), len(number)) for prompt, _ in examples]
    return replace(make_batch(rollouts, torch.zeros(len(examples)), pad_id), groups=torch.tensor(groups, device=device))


def fit(
    model,
    tokenizer,
    optimizer,
    scheduler,
    examples: list[Example],
    config: SupervisedConfig,
    phases: Phases,
    on_step: Callable[[int, dict], None],
) -> None:
    """Train the model for config.steps optimizer steps; on_step gets the number and the metrics of each."""
    layout = Layout(share_prompts=shares_prompts(model.base_model))
    for step, chosen in enumerate(ordered_batches(examples, config)):
        with phases("update"):
            learning_rate = scheduler.get_last_lr()[0]
            batch = as_batch(chosen, tokenizer.pad_token_id, model.device)
            batch = replace(batch, packed=layout.pack(batch))
            logprobs, _ = token_logprobs(model, batch, temperature=1.0)
            loss = -masked_sum(logprobs, batch.response_mask) / Totals.of(batch.response_mask).response_tokens
            loss.backward()
            norm = optimizer_step(model, optimizer, scheduler, config.optimizer.max_grad_norm)
        tokens = int(batch.response_mask.sum())
        on_step(step, {"loss": loss.item(), "grad_norm": norm, "learning_rate": learning_rate, "batch_tokens": tokens})


def train(
    config: SupervisedConfig, model_path: str, data_path: str, out: str, stage: str, name: str, threads: int
) -> None:
    """Fine-tune the model on the rows of data_path (prompt, answer); writes checkpoint/, metrics.jsonl, run.json."""
    rows = read_jsonl(data_path)
    check_rows(rows, data_path, gold=False)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    run = fit
    if config.trainer == "trl":
        from algos.training.trl import supervised as trl_supervised

        trl_supervised.prepare(config, device)
        run = trl_supervised.fit
    before = resident_bytes()
    tokenizer = load_tokenizer(model_path)
    model = load_policy(model_path, device, loaded_dtype(config))
    examples = encode_examples(tokenizer, rows)
    optimizer, scheduler = make_optimizer(model, config.optimizer, config.steps)
    record = Record(
        out,
        stage,
        asdict(config),
        threads,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        examples=len(rows),
        device=str(device),
    )
    phases, progress, trained = Phases(device), Progress(config.steps, name or stage), 0
    for row in rows[:8]:
        record.sample(step=0, prompt=row["prompt"], response=row["answer"])

    def on_step(step: int, metrics: dict) -> None:
        nonlocal trained
        tokens, seconds = metrics.pop("batch_tokens"), phases.next_step()
        trained += tokens
        if step % config.log_every == 0 or step == config.steps - 1:
            rate = tokens / seconds["update_seconds"]
            record.log(step, {**metrics, "trained_tokens": trained, "update_tokens_per_second": rate, **seconds})
            progress.update(step + 1, loss=metrics["loss"], **{"tokens/s": rate})

    run(model, tokenizer, optimizer, scheduler, examples, config, phases, on_step)
    progress.close()
    save_policy(model, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        trained_tokens=trained,
        optimizer_steps=config.steps,
        memory=component_memory(policy=(model, optimizer)),
        peak_memory=peak_memory(device, before),
    )


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint to start from")
    parser.add_argument("--data", required=True, help="rows with prompt and answer, JSONL")
    parser.add_argument("--stage", default="supervised", help="cold_start, rejection_sampling, distillation, ...")
    args = parser.parse_args()
    use_threads(args.threads)
    config = parse(SupervisedConfig, load_settings(args.settings), "settings")
    train(config, args.model, args.data, args.out, args.stage, args.name, args.threads)


if __name__ == "__main__":
    main_guard(main)
