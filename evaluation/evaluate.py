"""Checkpoints of a stage -> graded responses, one row each -> scores.

Greedy accuracy is of one response at temperature 0. mean@k, pass@k and maj@k are of k responses at the study's
temperature, so mean@k is the accuracy of the sampling policy. Grading is strict unless the name says flexible.
One call evaluates all seeds of a stage, one after the other. Every checkpoint has its own random generators, so its
responses are the same whether it is evaluated alone or after others.
By hand, for results/stages/grpo/seed0/checkpoint and seed1's:
    python -m evaluation.evaluate --settings '{"seed": 0}' --problems results/data/test.jsonl \\
        --out results/stages/grpo/evaluation results/stages/grpo/seed0 results/stages/grpo/seed1
"""

import gc
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.pieces.settings import SettingsError, from_dict
from algos.training.models.checkpoints import load_policy, resolve_device
from algos.training.models.tokens import load_tokenizer
from algos.training.sampling.respond import GREEDY, opened, sampled
from algos.training.stage.alone import Alone
from algos.training.stage.record import Progress, Record, load_settings, main_guard, stage_parser, use_threads
from evaluation.config import EvaluationConfig
from evaluation.statistics import clustered_standard_error, majority_at_k, pass_at_k, wilson
from evaluation.tasks import check_prompts, check_rows
from evaluation.tasks.files import read_jsonl, write_json, write_jsonl
from evaluation.text import paragraphs, text_loss


def scores(rows: list[dict], samples: int, text_losses: Sequence[float] = ()) -> dict:
    """Scores of graded rows: {"overall": means and intervals, "per_problem": one list per metric, in problem order}.

    text_losses: of the paragraphs of config.text, which stand where other metrics have problems.
    """
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
    if text_losses:
        per_problem["text_loss"] = list(text_losses)
    overall: dict[str, Any] = {name: float(np.mean(values)) for name, values in per_problem.items()}
    interval = wilson(sum(per_problem["greedy"]), len(grid))
    overall["greedy_wilson95"] = [interval.low, interval.high]
    overall[f"mean@{samples}_standard_error"] = clustered_standard_error(np.array(grid, dtype=float))
    return {"problems": len(grid), "samples": samples, "overall": overall, "per_problem": dict(per_problem)}


def responses(
    checkpoint: Path, problems: list[dict], config: EvaluationConfig, name: str
) -> tuple[list[dict], list[float]]:
    """A greedy response and the sampled ones of a checkpoint to every problem, graded, in the order of the problems.

    And its loss on each paragraph of config.text, if there is one.
    """
    device = resolve_device(config.device)
    tokenizer, policy = load_tokenizer(str(checkpoint)), load_policy(str(checkpoint), device, config.dtype)
    progress = Progress(len(problems), f"evaluate {name}", unit="problem")
    rows: list[dict] = []
    with closing(opened(config, policy, tokenizer, str(checkpoint), problems)) as engine:
        for samples in (0, config.samples):
            generator = torch.Generator(device).manual_seed(config.seed)
            for part, _ in sampled(engine, policy, tokenizer, problems, samples, config, generator):
                rows += part
                if samples:
                    drawn = rows[len(problems) :]
                    progress.update(len(drawn) // samples, accuracy=float(np.mean([row["correct"] for row in drawn])))
    progress.close()
    losses = text_loss(policy, tokenizer, paragraphs(config.text)) if config.text else []
    order = {problem["id"]: i for i, problem in enumerate(problems)}
    return sorted(rows, key=lambda row: (order[row["problem"]], row["sample"])), losses


def evaluate(
    seed_folder: Path, problems: list[dict], config: EvaluationConfig, out: Path, threads: int, **facts
) -> None:
    """Evaluate seed_folder/checkpoint; writes responses.jsonl, scores.json and the record into out."""
    name = f"{seed_folder.parent.name}/{seed_folder.name}"
    record = Record(out, "evaluation", asdict(config), threads, name=name, seed=config.seed)
    rows, losses = responses(seed_folder / "checkpoint", problems, config, name)
    write_jsonl(out / "responses.jsonl", rows)
    result = scores(rows, config.samples, losses)
    record.log(0, {k: v for k, v in result["overall"].items() if not isinstance(v, list)})
    prompts = {problem["id"]: problem["prompt"] for problem in problems}
    for row in rows[:: max(len(rows) // 8, 1)][:8]:
        record.sample(step=0, prompt=prompts[row["problem"]], response=row["response"], correct=row["correct"])
    write_json(out / "scores.json", result)
    record.finish(**facts)


def check_folders(folders: list[Path]) -> None:
    """Refuse a folder without a checkpoint, and two folders whose results would overwrite each other."""
    for folder in folders:
        if not (folder / "checkpoint").is_dir():
            raise SettingsError(f"{folder} has no folder checkpoint; name the folder of one seed of a stage.")
    names = [folder.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"two folders are called {name}, and results are written by that name; evaluate one stage a call."
            )


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="STAGE/SEED", help="folders that hold checkpoint/")
    parser.add_argument("--problems", required=True, help="test problems, or dev problems of a trial; JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(EvaluationConfig, load_settings(args.settings), "evaluation")
    problems = read_jsonl(args.problems)
    check_rows(problems, args.problems)
    check_prompts(problems, args.problems)
    check_folders(args.folders)
    alone = Alone(Path(args.out))  # a rule's output, which Snakemake deletes: the locks of the seeds lie in it
    for i, folder in enumerate(args.folders):
        facts = {"start_up_seconds": 0.0} if i else {}  # the process starts once
        evaluate(folder, problems, config, Path(args.out) / folder.name, args.threads, **facts)
        gc.collect()  # a model in a reference cycle would stay until after the next one is loaded
    alone.release()


if __name__ == "__main__":
    main_guard(main)
