"""Next-token training on (prompt, response) pairs: cold start, rejection-sampling fine-tuning, distillation.

The loss is the mean negative log-likelihood over the response tokens of an optimiser step, end-of-sequence included;
prompts are context only. By hand:
    python -m algos.training.supervised --settings '{"seed": 0}' --model DIR --data FILE --out DIR
"""

import random
from dataclasses import asdict
from pathlib import Path

import torch

from algos.training.config import SupervisedConfig, parse
from algos.training.logprobs import token_logprobs
from algos.training.models import (
    encode_prompt,
    encode_response,
    load_policy,
    load_tokenizer,
    resolve_device,
    save_policy,
)
from algos.training.optimise import make_optimiser, optimiser_step
from algos.training.record import (
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
from algos.training.types import Batch, Rollouts, make_batch
from evaluation.settings import read_jsonl
from evaluation.tasks import check_rows

LENGTH_POOL = 8  # batches whose examples are sorted by length together, to save padding


def example_batches(lengths: list[int], steps: int, batch_size: int, seed: int):
    """Example indices of each optimiser step: shuffled passes over all, examples of similar length together."""
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


def as_batch(examples: list[tuple[list[int], list[int]]], pad_id: int, device) -> Batch:
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
    return make_batch(rollouts, torch.zeros(len(examples)), pad_id)


def train(
    config: SupervisedConfig, model_path: str, data_path: str, out: str, stage: str, name: str, threads: int
) -> None:
    """Fine-tune the model on the rows of data_path (prompt, answer); writes checkpoint/, metrics.jsonl, run.json."""
    rows = read_jsonl(data_path)
    check_rows(rows, data_path, gold=False)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    before = resident_bytes()
    tokenizer = load_tokenizer(model_path)
    model = load_policy(model_path, device, config.dtype)
    examples = [(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["answer"])) for row in rows]
    optimiser, scheduler = make_optimiser(model, config.optimiser, config.steps)
    record = Record(
        out, stage, asdict(config), threads, name=name, seed=config.seed, examples=len(rows), device=str(device)
    )
    phases, progress, tokens = Phases(device), Progress(config.steps, name or stage), 0
    for row in rows[:8]:
        record.sample(step=0, prompt=row["prompt"], response=row["answer"])
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    for step, chosen in enumerate(example_batches(lengths, config.steps, config.batch_size, config.seed)):
        with phases("update"):
            batch = as_batch([examples[i] for i in chosen], tokenizer.pad_token_id, device)
            logprobs, _ = token_logprobs(model, batch, temperature=1.0)
            loss = -logprobs.sum() / batch.response_mask.sum()
            loss.backward()
            norm = optimiser_step(model, optimiser, scheduler, config.optimiser.max_grad_norm)
        tokens += int(batch.response_mask.sum())
        seconds = phases.next_step()
        if step % config.log_every == 0 or step == config.steps - 1:
            rate = int(batch.response_mask.sum()) / seconds["update_seconds"]
            record.log(
                step,
                {
                    "loss": loss.item(),
                    "grad_norm": norm,
                    "learning_rate": scheduler.get_last_lr()[0],
                    "trained_tokens": tokens,
                    "update_tokens_per_second": rate,
                    **seconds,
                },
            )
            progress.update(step + 1, loss=loss.item(), **{"tokens/s": rate})
    progress.close()
    save_policy(model, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        trained_tokens=tokens,
        optimiser_steps=config.steps,
        memory=component_memory(policy=(model, optimiser)),
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
