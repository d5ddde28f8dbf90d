"""Checkpoint -> responses -> scores. One row a response, kept.

Greedy accuracy is of one response at temperature 0; mean@k, pass@k and maj@k are of k responses at the study's
temperature, so mean@k is the accuracy of the sampling policy. Graded strictly unless the name says flexible.
By hand: python -m evaluation.evaluate --settings '{"seed": 0}' --checkpoint DIR --problems test.jsonl --out DIR
"""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np

from algos.pieces.settings import from_dict
from algos.training.sampling.respond import GREEDY, respond
from evaluation.config import EvaluationConfig
from evaluation.statistics import clustered_standard_error, majority_at_k, pass_at_k, wilson
from evaluation.tasks import check_rows
from evaluation.tasks.files import read_jsonl, write_json, write_jsonl


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
    from algos.training.stage.record import Progress, Record, load_settings, stage_parser, use_threads

    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--problems", required=True, help="test problems, JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(EvaluationConfig, load_settings(args.settings), "evaluation")
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
