"""Checkpoint -> responses -> scores. One row a response, kept.

Greedy accuracy is of one response at temperature 0; mean@k, pass@k and maj@k are of k responses at the study's
temperature, so mean@k is the accuracy of the sampling policy. Graded strictly unless the name says flexible.
By hand: python -m evaluation.evaluate --settings '{"seed": 0}' --checkpoint DIR --problems test.jsonl --out DIR
"""

import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from algos.pieces.settings import DTYPES, SettingsError, one_of, positive, read_jsonl, write_json, write_jsonl
from evaluation.statistics import clustered_standard_error, majority_at_k, pass_at_k, wilson
from evaluation.tasks import check_rows
from evaluation.tasks.answers import extract_flexible, extract_strict, gold_answer, has_format, is_correct

GREEDY = -1  # the `sample` number of the greedy response


@dataclass(frozen=True)
class EvaluationConfig:
    """How every checkpoint is evaluated; the same for all."""

    seed: int = 0  # of the sampling
    samples: int = 8  # k of mean@k, pass@k and maj@k
    temperature: float = 1.0  # of the sampled responses
    max_response_tokens: int = 48
    rows_at_once: int = 512  # responses generated side by side; bounds memory
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        positive(self, "samples", "temperature", "max_response_tokens", "rows_at_once")
        one_of(self.dtype, DTYPES, "dtype")


def draw_problems(path: str, count: int, seed: int, where: str) -> list[dict]:
    """`count` problems of a JSONL file, chosen by the seed. Raises SettingsError if there are fewer."""
    problems = read_jsonl(path)
    check_rows(problems, path)
    if count > len(problems):
        raise SettingsError(f"{where} is {count}, but {path} has {len(problems)} problems.")
    return random.Random(seed).sample(problems, count)


def respond(checkpoint: str, problems: list[dict], samples: int, config, progress=None) -> list[dict]:
    """`samples` graded responses to every problem, sampled from the checkpoint; samples 0: one greedy response.

    config has seed, temperature, max_response_tokens, device and dtype. Rows are in the order of the problems.
    """
    import torch

    from algos.training.models.checkpoints import load_policy, load_tokenizer, resolve_device

    device = resolve_device(config.device)
    tokenizer, policy = load_tokenizer(checkpoint), load_policy(checkpoint, device, config.dtype)
    generator = torch.Generator(device).manual_seed(config.seed)
    rows = []
    for part, _ in sampled(policy, tokenizer, problems, samples, config, generator):
        rows += part
        if progress is not None:
            done = len(rows) // max(samples, 1)
            progress.update(done, accuracy=float(np.mean([r["correct"] for r in rows])))
    return rows


def sampled(policy, tokenizer, problems: list[dict], samples: int, config, generator):
    """Yields the graded rows of some of the problems, in their order, and the rollouts that they come from."""
    from algos.training.models.checkpoints import encode_prompt
    from algos.training.sampling.sampler import decode, sample

    group, temperature = max(samples, 1), config.temperature if samples else 0.0
    chunk = max(getattr(config, "rows_at_once", 512) // group, 1)
    for start in range(0, len(problems), chunk):
        part = problems[start : start + chunk]
        rollouts = sample(
            policy,
            tokenizer,
            [encode_prompt(tokenizer, p["prompt"]) for p in part],
            group,
            config.max_response_tokens,
            temperature,
            generator,
            group * len(part),
        )
        lengths, truncated = rollouts.response_mask.sum(dim=1).tolist(), rollouts.truncated.tolist()
        numbers = range(samples) if samples else (GREEDY,)
        yield (
            [
                graded(part[i // group], numbers[i % group], text, lengths[i], truncated[i])
                for i, text in enumerate(decode(tokenizer, rollouts))
            ],
            rollouts,
        )


def graded(problem: dict, number: int, response: str, tokens: int, truncated: bool) -> dict:
    """One response's row: what it said, what was understood, and whether that is right."""
    gold = gold_answer(problem["answer"])
    strict, flexible = extract_strict(response), extract_flexible(response)
    return {
        "problem": problem["id"],
        "sample": number,
        "response": response,
        "tokens": tokens,
        "truncated": truncated,
        "format": has_format(response),
        "strict": strict,
        "flexible": flexible,
        "gold": gold,
        "correct": is_correct(strict, gold),
        "correct_flexible": is_correct(flexible, gold),
    }


def scores(rows: list[dict], samples: int) -> dict:
    """Scores of graded rows: {"overall": means and intervals, "per_problem": one list per metric, in problem order}."""
    by_problem: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_problem[row["problem"]].append(row)
    per_problem: dict[str, list[float]] = defaultdict(list)
    grid = []
    for responses in by_problem.values():
        greedy = next(row for row in responses if row["sample"] == GREEDY)
        sampled = [row for row in responses if row["sample"] != GREEDY]
        correct = [row["correct"] for row in sampled]
        grid.append(correct)
        for name, value in {
            "greedy": greedy["correct"],
            "greedy_flexible": greedy["correct_flexible"],
            f"mean@{samples}": np.mean(correct),
            f"mean@{samples}_flexible": np.mean([r["correct_flexible"] for r in sampled]),
            f"pass@{samples}": pass_at_k(len(correct), sum(correct), samples),
            f"maj@{samples}": majority_at_k([row["strict"] for row in sampled], correct, samples),
            "format_rate": np.mean([row["format"] for row in sampled]),
            "truncation_rate": np.mean([row["truncated"] for row in sampled]),
            "response_tokens": np.mean([row["tokens"] for row in sampled]),
            "distinct_answers": len({row["strict"] for row in sampled if row["strict"] is not None}),
        }.items():
            per_problem[name].append(float(value))
    overall = {name: float(np.mean(values)) for name, values in per_problem.items()}
    interval = wilson(sum(per_problem["greedy"]), len(grid))
    overall["greedy_wilson95"] = [interval.low, interval.high]
    overall[f"mean@{samples}_standard_error"] = clustered_standard_error(np.array(grid, dtype=float))
    return {"problems": len(grid), "samples": samples, "overall": overall, "per_problem": dict(per_problem)}


def main() -> None:
    from algos.training.config import parse
    from algos.training.stage.record import Progress, Record, load_settings, stage_parser, use_threads

    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--problems", required=True, help="test problems, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = parse(EvaluationConfig, load_settings(args.settings), "evaluation")
    problems = read_jsonl(args.problems)
    check_rows(problems, args.problems)
    record = Record(args.out, "evaluate", asdict(config), args.threads, name=args.name, seed=config.seed)
    progress = Progress(len(problems), f"evaluate {args.name}", unit="problem")
    rows = respond(args.checkpoint, problems, 0, config) + respond(
        args.checkpoint, problems, config.samples, config, progress
    )
    progress.close()
    order = {problem["id"]: i for i, problem in enumerate(problems)}
    rows.sort(key=lambda row: (order[row["problem"]], row["sample"]))
    write_jsonl(Path(args.out) / "responses.jsonl", rows)
    result = scores(rows, config.samples)
    record.log(0, {k: v for k, v in result["overall"].items() if not isinstance(v, list)})
    for row in rows[:: max(len(rows) // 8, 1)][:8]:
        record.sample(
            step=0, prompt=problems[order[row["problem"]]]["prompt"], response=row["response"], correct=row["correct"]
        )
    write_json(Path(args.out) / "scores.json", result)
    record.finish()


if __name__ == "__main__":
    from algos.training.stage.record import main_guard

    main_guard(main)
