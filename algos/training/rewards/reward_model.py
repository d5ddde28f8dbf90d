"""Preference pairs -> Bradley-Terry reward model.

P(chosen beats rejected) = sigmoid(R_chosen - R_rejected) (Bradley and Terry 1952; Stiennon et al., arXiv:2009.01325).
All pairs of a prompt are in one batch and weigh 1 together (Ouyang et al. 2022, arXiv:2203.02155, section 3.5). Each
response passes through the model once, however many pairs hold it. The loss leaves the scores' offset free; a small
centering term fixes it (arXiv:2312.09244). At the end the scores are normalized to mean 0 and standard deviation 1 over
all responses to the held-out prompts.
By hand: python -m algos.training.rewards.reward_model --settings '{"seed": 0}' --from DIR --data DIR --out DIR
"""

import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import ScalarModel, check_positions, import_model, resolve_device
from algos.training.models.packing import Layout, shares_prompts
from algos.training.models.tokens import encode_prompt, encode_response, load_tokenizer
from algos.training.rewards.config import RewardModelConfig
from algos.training.stage.config import EVERY_TEN_MINUTES, Saving, read_saving
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
from algos.training.supervised.examples import Example, as_batch
from algos.training.update.optimize import make_optimizer, optimizer_step
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.rows import check_prompts


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor | None = None,
    centering: float = 0.0,
    margin: float | Tensor = 0.0,
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2, averaged over pairs.

    chosen, rejected  (N,) scores of the two responses of each pair
    weights           (N,) weight of each pair, summing to 1; None: 1 / N each
    """
    if weights is None:
        weights = torch.full_like(chosen, 1 / len(chosen))
    losses = softplus(-(chosen - rejected - margin)) + centering * (chosen + rejected) ** 2
    return (weights * losses).sum()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of the pairs whose chosen response scores higher; ties count half."""
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean().item()


def check_pairs(rows: list[dict], where: str) -> None:
    """Raise SettingsError unless there are rows, each with a prompt, texts as responses, and pairs [i, j] of these."""
    if not rows:
        raise SettingsError(f"{where} is empty; at least one prompt with pairs is needed.")
    check_prompts(rows, where, ids=False)
    for number, row in enumerate(rows, 1):
        texts, pairs = row.get("responses"), row.get("pairs")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise SettingsError(f"{where}, row {number}: 'responses' must be a list of texts, got {str(texts)[:80]!r}.")
        known = range(len(texts))
        if (
            not isinstance(pairs, list)
            or not pairs
            or not all(
                isinstance(p, list) and len(p) == 2 and all(type(i) is int and i in known for i in p) for p in pairs
            )
        ):
            wanted = f"pairs [i, j] of its {len(texts)} responses"
            raise SettingsError(f"{where}, row {number}: 'pairs' must be {wanted}, got {str(pairs)[:80]!r}.")


def encode_rows(rows: list[dict], tokenizer) -> list[list[Example]]:
    """Token ids of prompt, and of response + end-of-sequence, for each response of each row."""
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    return [
        [(prompt, encode_response(tokenizer, text)) for text in row["responses"]]
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def score_examples(model: ScalarModel, examples: list[Example], pad_id: int, device, layout: Layout) -> Tensor:
    """Scores (N,) of prompts with their responses, in one forward pass."""
    batch = as_batch(examples, pad_id, device)
    return model.batch_scores(replace(batch, packed=layout.pack(batch)))


def pair_scores(scores: list[Tensor], rows: list[dict], key: str) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen, rejected, weights) over all pairs of the rows, (N,) each; the pairs of a row weigh 1 / rows together."""
    chosen = torch.cat([s[[i for i, _ in row[key]]] for s, row in zip(scores, rows, strict=True)])
    rejected = torch.cat([s[[j for _, j in row[key]]] for s, row in zip(scores, rows, strict=True)])
    weights = torch.cat([torch.full((len(row[key]),), 1 / len(row[key]) / len(rows)) for row in rows])
    return chosen, rejected, weights.to(chosen.device)


@torch.no_grad()
def measure(model: ScalarModel, rows: list[dict], encoded, pad_id: int, device, layout: Layout) -> dict:
    """Held-out pair accuracy against the gold answers and against the rater, averaged over prompts.

    A prompt's accuracy is the mean over its pairs. An interval must take prompts as trials: pairs of a prompt share
    responses and are not independent. Rows without gold_pairs, as the user's own, give the rater's accuracy alone.
    """
    scores = [score_examples(model, examples, pad_id, device, layout).cpu() for examples in encoded]
    metrics: dict[str, float] = {
        "held_out_prompts": len(rows),
        "held_out_pairs": sum(len(row["pairs"]) for row in rows),
    }
    labels = {"gold": "gold_pairs", "rater": "pairs"}
    for label, key in labels.items():
        if key not in rows[0]:
            continue
        each = [
            pair_accuracy(s[[i for i, _ in row[key]]], s[[j for _, j in row[key]]])
            for s, row in zip(scores, rows, strict=True)
        ]
        chosen, rejected, _ = pair_scores(scores, rows, key)
        metrics |= {
            f"pair_accuracy_{label}": sum(each) / len(each),
            f"held_out_loss_{label}": bradley_terry_loss(chosen, rejected).item(),
            f"margin_{label}": (chosen - rejected).mean().item(),
        }
    flat = torch.cat(scores)
    lengths = torch.tensor([float(len(prompt) + len(ids)) for examples in encoded for prompt, ids in examples])
    return {
        **metrics,
        "score_mean": flat.mean().item(),
        "score_std": flat.std().item(),
        "score_length_correlation": torch.corrcoef(torch.stack([flat, lengths]))[0, 1].item(),
    }


@dataclass
class State:
    """All that a step changes."""

    model: Any
    optimizer: Any
    scheduler: Any
    step: int = 0  # steps done


def batches(rows: int, config: RewardModelConfig) -> list[list[int]]:
    """The rows of each optimizer step: shuffled passes over all."""
    rng, chosen = random.Random(config.seed), []
    for _ in range(config.epochs):
        order = list(range(rows))
        rng.shuffle(order)
        chosen += [order[i : i + config.prompts_per_batch] for i in range(0, rows, config.prompts_per_batch)]
    return chosen


def train(
    config: RewardModelConfig,
    policy_path: str,
    data: str,
    out: str,
    name: str,
    threads: int,
    saving: Saving = EVERY_TEN_MINUTES,
) -> None:
    """Train on data/train.jsonl, measure on data/held_out.jsonl; writes checkpoint/ and the record into out."""
    import_model(policy_path)
    rows, held_out = (read_jsonl(Path(data) / f"{split}.jsonl") for split in ("train", "held_out"))
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    before = resident_bytes()
    for split, part in (("train", rows), ("held_out", held_out)):
        check_pairs(part, f"{data}/{split}.jsonl")
    tokenizer = load_tokenizer(policy_path)
    from transformers import AutoConfig

    width = AutoConfig.from_pretrained(policy_path, trust_remote_code=False).get_text_config().hidden_size
    model = ScalarModel.from_policy(policy_path, config.head, 1 / math.sqrt(width + 1), device, config.dtype, generator)
    if config.freeze_backbone:
        model.backbone.requires_grad_(False)
    encoded, held_out_encoded = encode_rows(rows, tokenizer), encode_rows(held_out, tokenizer)
    longest = max(len(prompt) + len(ids) for texts in encoded + held_out_encoded for prompt, ids in texts)
    check_positions(model.backbone, longest, "the longest prompt and its response")
    steps = batches(len(rows), config)
    total = len(steps)
    optimizer, scheduler = make_optimizer(model, config.optimizer, total)
    state, saves = State(model, optimizer, scheduler), Saves(out, saving, [policy_path, data])
    layout = Layout(share_prompts=shares_prompts(model.backbone))
    record = Record(
        out,
        "reward_model",
        asdict(config),
        threads,
        saves,
        name=name,
        seed=config.seed,
        device=str(device),
        train_pairs=sum(len(row["pairs"]) for row in rows),
    )
    phases, progress = Phases(device), Progress(total, name or "reward_model")
    saves.hold(state, phases)
    for chosen_rows in steps[state.step :]:
        with phases("update"):
            examples = [example for r in chosen_rows for example in encoded[r]]
            flat = score_examples(model, examples, tokenizer.pad_token_id, device, layout)
            scores = list(flat.split([len(encoded[r]) for r in chosen_rows]))
            chosen, rejected, weights = pair_scores(scores, [rows[r] for r in chosen_rows], "pairs")
            loss = bradley_terry_loss(chosen, rejected, weights, config.centering)
            loss.backward()
            norm = optimizer_step(model, optimizer, scheduler, config.optimizer.max_grad_norm)
        accuracy = pair_accuracy(chosen.detach(), rejected.detach())
        record.log(
            state.step,
            {
                "loss": loss.item(),
                "pair_accuracy": accuracy,
                "grad_norm": norm,
                "learning_rate": scheduler.get_last_lr()[0],
                **phases.next_step(),
            },
        )
        state.step += 1
        progress.update(state.step, loss=loss.item(), accuracy=accuracy)
        saves.after_step()
    progress.close()
    metrics = measure(model, held_out, held_out_encoded, tokenizer.pad_token_id, device, layout)
    record.log(total, metrics)
    model.offset, model.gain = metrics["score_mean"], 1 / max(metrics["score_std"], 1e-6)
    for row, examples in list(zip(held_out, held_out_encoded, strict=True))[:4]:
        known = row.get("correct", [None] * len(examples))
        with torch.no_grad():
            scored = score_examples(model, examples, tokenizer.pad_token_id, device, layout)
        for text, correct, score in zip(row["responses"], known, scored.tolist(), strict=True):
            record.sample(step=total, prompt=row["prompt"], response=text, correct=correct, reward=score)
    model.save(Path(out) / "checkpoint")
    record.finish(
        held_out=metrics,
        phase_seconds=phases.total,
        optimizer_steps=total,
        memory=component_memory(reward_model=(model, optimizer)),
        peak_memory=peak_memory(device, before),
    )


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--from",
        required=True,
        dest="start",
        metavar="DIR",
        help="checkpoint that gives the backbone",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with train.jsonl and held_out.jsonl")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(RewardModelConfig, load_settings(args.settings), "reward_model")
    train(config, args.start, args.data, args.out, args.name, args.threads, read_saving(args.saving))


if __name__ == "__main__":
    main_guard(main)
