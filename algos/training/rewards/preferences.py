"""Several responses per prompt -> preference pairs: ranked by the gold answer, seen by a rater who errs.

A row holds one prompt, its responses, and all pairs of a right with a wrong response, so that the pairs of a prompt
stay together (InstructGPT, arXiv:2203.02155). pairs are [chosen, rejected] as the rater says: each is flipped with
probability flip_share, against the gold answer. gold_pairs are the true ones.
By hand: python -m algos.training.rewards.preferences --settings '{"seed": 0}' --policy DIR --prompts FILE --out DIR
"""

import random
from dataclasses import asdict
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict
from algos.training.rewards.config import PreferenceConfig
from algos.training.sampling.respond import draw_problems, respond
from algos.training.stage.record import Progress, Record, load_settings, main_guard, stage_parser, use_threads
from evaluation.tasks.files import write_jsonl


def preference_row(problem: dict, responses: list[dict], flip_share: float, rng: random.Random) -> dict:
    """One prompt's row from its graded responses; repeated responses count once, truncated ones not at all."""
    distinct = {row["response"]: row["correct"] for row in responses if not row["truncated"]}
    texts, correct = list(distinct), list(distinct.values())
    gold_pairs = [[i, j] for i in range(len(texts)) for j in range(len(texts)) if correct[i] and not correct[j]]
    pairs = [pair[::-1] if rng.random() < flip_share else pair for pair in gold_pairs]
    return {
        "id": problem["id"],
        "prompt": problem["prompt"],
        "responses": texts,
        "correct": correct,
        "gold_pairs": gold_pairs,
        "pairs": pairs,
    }


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True, help="checkpoint to sample from")
    parser.add_argument("--prompts", required=True, help="train problems, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(PreferenceConfig, load_settings(args.settings), "preferences")
    problems = draw_problems(args.prompts, config.prompts, config.seed, "preferences.prompts")
    rng = random.Random(f"flips {config.seed}")  # not the numbers that chose the problems
    record = Record(args.out, "preferences", asdict(config), args.threads, name=args.name, seed=config.seed)
    progress = Progress(len(problems), "preferences", unit="prompt")
    responses = respond(args.policy, problems, config.responses, config, progress)
    progress.close()
    rows = [
        preference_row(problem, responses[i * config.responses : (i + 1) * config.responses], config.flip_share, rng)
        for i, problem in enumerate(problems)
    ]
    rows = [row for row in rows if row["pairs"]]
    held_out = round(len(rows) * config.held_out_share)
    if not 0 < held_out < len(rows):
        raise SettingsError(
            f"preferences: only {len(rows)} of {len(problems)} prompts have both right and wrong responses, too "
            "few to train and to measure a reward model; raise preferences.prompts or .responses."
        )
    for split, part in {"held_out": rows[:held_out], "train": rows[held_out:]}.items():
        write_jsonl(Path(args.out) / f"{split}.jsonl", part)
    flips = sum(p != g for row in rows for p, g in zip(row["pairs"], row["gold_pairs"], strict=True))
    pairs = sum(len(row["pairs"]) for row in rows)
    record.log(
        0,
        {
            "accuracy": sum(r["correct"] for r in responses) / len(responses),
            "prompts_with_pairs": len(rows),
            "pairs": pairs,
            "flipped_share": flips / pairs,
        },
    )
    for row in rows[:8]:
        chosen, rejected = row["pairs"][0]
        record.sample(
            step=0, prompt=row["prompt"], chosen=row["responses"][chosen], rejected=row["responses"][rejected]
        )
    record.finish()


if __name__ == "__main__":
    main_guard(main)
