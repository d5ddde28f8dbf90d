"""Supervised fine-tuning (SFT): next-token training on pairs of prompt and response.

The loss is the mean negative log-likelihood over the response tokens of an optimizer step, end-of-sequence included;
prompts are context only. With trainer trl the same examples, in the same order, go to TRL's SFTTrainer. By hand:
    python -m algos.training.supervised.sft --settings '{"seed": 0}' --from DIR --data FILE --out DIR
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from algos.pieces.masked import masked_sum
from algos.pieces.settings import from_dict
from algos.pieces.types import Totals
from algos.training.models.checkpoints import (
    check_positions,
    import_model,
    load_policy,
    resolve_device,
    save_policy,
)
from algos.training.models.logprobs import token_logprobs
from algos.training.models.packing import Layout, shares_prompts
from algos.training.models.tokens import load_tokenizer
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
)
from algos.training.stage.saves import Saves
from algos.training.supervised.config import SupervisedConfig
from algos.training.supervised.examples import Example, as_batch, encode_examples, ordered_batches
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks import check_prompts, check_rows
from evaluation.tasks.files import read_jsonl


def fit(
    model,
    tokenizer,
    optimizer,
    scheduler,
    examples: list[Example],
    config: SupervisedConfig,
    phases: Phases,
    on_step: Callable[[int, dict], None],
    first: int = 0,
) -> None:
    """Train the model for config.steps optimizer steps; on_step gets the number and the metrics of each step.

    first: the number of the first step, where a saved state goes on.
    """
    layout = Layout(share_prompts=shares_prompts(model.base_model))
    for step, chosen in enumerate(ordered_batches(examples, config)[first:], first):
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


@dataclass
class State:
    """All that a step changes."""

    model: Any
    optimizer: Any
    scheduler: Any
    step: int = 0  # steps done
    tokens: int = 0  # trained on


def train(
    config: SupervisedConfig,
    model_path: str,
    data_path: str,
    out: str,
    name: str = "",
    threads: int = 1,
    saving: Saving = EVERY_TEN_MINUTES,
) -> None:
    """Fine-tune the model on the rows of data_path (prompt, answer); writes checkpoint/ and the record."""
    import_model(model_path)
    rows = read_jsonl(data_path)
    check_rows(rows, data_path, gold=False)
    check_prompts(rows, data_path, ids=False)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    run: Callable[..., None] = fit
    if config.trainer == "trl":
        from algos.training.trl import supervised as trl_supervised

        trl_supervised.prepare(config, device)
        run = trl_supervised.fit
    before = resident_bytes()
    tokenizer = load_tokenizer(model_path)
    model = load_policy(model_path, device, loaded_dtype(config))
    examples = encode_examples(tokenizer, rows)
    longest = max(len(prompt) + len(response) for prompt, response in examples)
    check_positions(model, longest, "the longest prompt and its response")
    state = State(model, *make_optimizer(model, config.optimizer, config.steps))
    saves = None if config.trainer == "trl" else Saves(out, saving, [model_path, data_path])
    record = Record(
        out,
        "sft",
        asdict(config),
        threads,
        saves,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        examples=len(rows),
        device=str(device),
    )
    phases, progress = Phases(device), Progress(config.steps, name or "sft")
    if saves is not None and saves.hold(state, phases):
        run = partial(fit, first=state.step)
    else:
        for row in rows[:8]:
            record.sample(step=0, prompt=row["prompt"], response=row["answer"])

    def on_step(step: int, metrics: dict) -> None:
        tokens, seconds = metrics.pop("batch_tokens"), phases.next_step()
        state.step, state.tokens = step + 1, state.tokens + tokens
        if step % config.log_every == 0 or step == config.steps - 1:
            rate = tokens / seconds["update_seconds"]
            record.log(step, {**metrics, "trained_tokens": state.tokens, "update_tokens_per_second": rate, **seconds})
            progress.update(step + 1, loss=metrics["loss"], **{"tokens/s": rate})
        if saves is not None:
            saves.after_step()

    run(model, tokenizer, state.optimizer, state.scheduler, examples, config, phases, on_step)
    progress.close()
    save_policy(model, tokenizer, Path(out) / "checkpoint")
    record.finish(
        phase_seconds=phases.total,
        trained_tokens=state.tokens,
        optimizer_steps=config.steps,
        memory=component_memory(policy=(model, state.optimizer)),
        peak_memory=peak_memory(device, before),
    )


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0], tunable=True)
    parser.add_argument("--from", dest="model", required=True, metavar="DIR", help="checkpoint to start from")
    parser.add_argument("--data", required=True, metavar="FILE", help="rows with prompt and answer, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(SupervisedConfig, load_settings(args.settings, args.tuned), "settings")
    train(config, args.model, args.data, args.out, args.name, args.threads, read_saving(args.saving))


if __name__ == "__main__":
    main_guard(main)
