"""Preference pairs: sampled from a policy and ranked by the gold answer, or read from a file of the user's own.

Written are train.jsonl and held_out.jsonl. A row holds one prompt, its responses, and all pairs of the prompt, so that
the pairs of a prompt stay together (InstructGPT, arXiv:2203.02155):
    {"id", "prompt", "responses": [text], "correct": [bool], "gold_pairs": [[i, j]], "pairs": [[i, j]]}
A pair [i, j] says that response i is preferred to response j. gold_pairs are all pairs of a right and a wrong response.
pairs are the same pairs as a fallible rater orders them: each is flipped with probability flip_share.

The user's file (--pairs FILE) is JSONL with one pair a row:
    {"prompt": text or chat messages, "chosen": text, "rejected": text}
Rows with the same prompt become one row of the format above, without correct and gold_pairs, which nobody knows here.

By hand:
    python -m algos.training.rewards.preferences --settings '{"seed": 0}' --from DIR --prompts FILE --out DIR
    python -m algos.training.rewards.preferences --settings '{"seed": 0}' --pairs FILE --out DIR
"""

import json
import random
from dataclasses import asdict
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict
from algos.training.rewards.config import PreferenceConfig
from algos.training.sampling.respond import draw_problems, respond
from algos.training.stage.config import read_saving
from algos.training.stage.record import Progress, Record, load_settings, main_guard, resumable_parser, use_threads
from algos.training.stage.saves import Saves
from evaluation.tasks.files import read_jsonl, write_jsonl
from evaluation.tasks.rows import is_prompt


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


def sample_rows(
    policy: str, prompts: str, config: PreferenceConfig, name: str, saves: Saves | None = None
) -> tuple[list[dict], dict]:
    """(rows, metrics): pairs of responses sampled from the policy; prompts without a pair are left out."""
    problems = draw_problems(prompts, config.prompts, config.seed, "settings.prompts")
    rng = random.Random(f"flips {config.seed}")  # independent of the draw of the problems
    progress = Progress(len(problems), name or "preferences", unit="prompt")
    responses = respond(policy, problems, config.responses, config, progress, saves=saves)
    progress.close()
    rows = [
        preference_row(problem, responses[i * config.responses : (i + 1) * config.responses], config.flip_share, rng)
        for i, problem in enumerate(problems)
    ]
    rows = [row for row in rows if row["pairs"]]
    if not 0 < held_out_count(rows, config) < len(rows):
        raise SettingsError(
            f"preferences: only {len(rows)} of {len(problems)} prompts have both right and wrong responses, too "
            "few to train and to measure a reward model; raise prompts or responses."
        )
    flips = sum(p != g for row in rows for p, g in zip(row["pairs"], row["gold_pairs"], strict=True))
    accuracy = sum(r["correct"] for r in responses) / len(responses)
    return rows, {"accuracy": accuracy, "flipped_share": flips / pair_count(rows)}


def check_pair(row: dict, where: str) -> None:
    """Refuse a row that is not {"prompt", "chosen", "rejected"} with two different responses."""
    prompt = row.get("prompt")
    if not is_prompt(prompt):
        raise SettingsError(f"{where}: 'prompt' must be a text or a list of chat messages, got {prompt!r}.")
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise SettingsError(f"{where}: {key!r} must be a text that is not empty, got {row.get(key)!r}.")
    if row["chosen"] == row["rejected"]:
        raise SettingsError(f"{where}: 'chosen' and 'rejected' are the same text; a preference needs two responses.")


def rows_of_pairs(path: str) -> list[dict]:
    """The user's pairs as rows, one a prompt, in the order in which the prompts first appear."""
    if Path(path).is_file() and not path.endswith(".jsonl"):
        raise SettingsError(f"{path}: pairs are read from a JSONL file; write it as one that ends in .jsonl.")
    rows: dict[str, dict] = {}
    for number, pair in enumerate(read_jsonl(path), 1):
        check_pair(pair, f"{path}, row {number}")
        key = json.dumps(pair["prompt"], sort_keys=True)
        row = rows.setdefault(key, {"id": f"pairs/{len(rows)}", "prompt": pair["prompt"], "responses": [], "pairs": []})
        for text in (pair["chosen"], pair["rejected"]):
            if text not in row["responses"]:
                row["responses"].append(text)
        row["pairs"].append([row["responses"].index(pair["chosen"]), row["responses"].index(pair["rejected"])])
    return list(rows.values())


def read_rows(path: str, config: PreferenceConfig) -> list[dict]:
    """The user's rows in an order drawn by the seed, so that the held-out prompts come from the whole file."""
    rows = rows_of_pairs(path)
    if not 0 < held_out_count(rows, config) < len(rows):
        raise SettingsError(
            f"{path} has {len(rows)} different prompts; held_out_share {config.held_out_share} of them must leave at "
            "least one prompt to train on and one to measure on."
        )
    random.Random(config.seed).shuffle(rows)
    return rows


def held_out_count(rows: list[dict], config: PreferenceConfig) -> int:
    return round(len(rows) * config.held_out_share)


def pair_count(rows: list[dict]) -> int:
    return sum(len(row["pairs"]) for row in rows)


def main() -> None:
    parser = resumable_parser(__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="start", metavar="DIR", help="checkpoint to sample from; needs --prompts")
    source.add_argument("--pairs", metavar="FILE", help="pairs of your own, JSONL: prompt, chosen, rejected")
    parser.add_argument("--prompts", metavar="FILE", help="train problems, JSONL")
    args = parser.parse_args()
    if (args.start is None) != (args.prompts is None):
        parser.error("--from and --prompts go together; --pairs needs neither")
    use_threads(args.threads)
    config = from_dict(PreferenceConfig, load_settings(args.settings), "preferences")
    saves = Saves(args.out, read_saving(args.saving), [args.start, args.prompts, args.pairs])
    record = Record(args.out, "preferences", asdict(config), args.threads, saves, name=args.name, seed=config.seed)
    metrics: dict[str, float] = {}
    if args.pairs:
        rows = read_rows(args.pairs, config)
    else:
        rows, metrics = sample_rows(args.start, args.prompts, config, args.name, saves)
    held_out = held_out_count(rows, config)
    for split, part in {"held_out": rows[:held_out], "train": rows[held_out:]}.items():
        write_jsonl(Path(args.out) / f"{split}.jsonl", part)
    record.log(0, {**metrics, "prompts_with_pairs": len(rows), "pairs": pair_count(rows)})
    for row in rows[:8]:
        chosen, rejected = row["pairs"][0]
        record.sample(
            step=0, prompt=row["prompt"], chosen=row["responses"][chosen], rejected=row["responses"][rejected]
        )
    record.finish()


if __name__ == "__main__":
    main_guard(main)
