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
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
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


@dataclass
class Answers:
    """What a checkpoint says: graded rows, a greedy one and the sampled ones of each problem in turn."""

    rows: list[dict]
    text_losses: list[float] = field(default_factory=list)  # of the paragraphs of config.text
    reach: list[list[bool]] = field(default_factory=list)  # of config.reach: which of its samples are right, by problem
    others: list[dict] = field(default_factory=list)  # graded rows of the problems of another task


def scores(rows: list[dict], samples: int, text_losses: Sequence[float] = (), reach: Sequence[list[bool]] = ()) -> dict:
    """Scores of graded rows: {"overall": means and intervals, "per_problem": one list per metric, in problem order}.

    text_losses: of the paragraphs of config.text, which stand where other metrics have problems. reach: of the first
    problems, which of many samples are right.
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
    if reach:
        most = len(reach[0])
        per_problem[f"pass@{most}"] = [pass_at_k(most, sum(right), most) for right in reach]
        per_problem[f"mean@{most}"] = [float(np.mean(right)) for right in reach]
    overall: dict[str, Any] = {name: float(np.mean(values)) for name, values in per_problem.items()}
    interval = wilson(sum(per_problem["greedy"]), len(grid))
    overall["greedy_wilson95"] = [interval.low, interval.high]
    overall[f"mean@{samples}_standard_error"] = clustered_standard_error(np.array(grid, dtype=float))
    return {"problems": len(grid), "samples": samples, "overall": overall, "per_problem": dict(per_problem)}


def responses(
    checkpoint: Path, problems: list[dict], config: EvaluationConfig, name: str, others: Sequence[dict] = ()
) -> Answers:
    """A greedy response and the sampled ones of a checkpoint to every problem, graded, in the order of the problems.

    And what config.text and config.reach ask for; others: problems of another task, answered as these are.
    """
    device = resolve_device(config.device)
    tokenizer, policy = load_tokenizer(str(checkpoint)), load_policy(str(checkpoint), device, config.dtype)
    progress = Progress(len(problems), f"evaluate {name}", unit="problem")
    right: list[bool] = []  # of the sampled rows to the problems

    def answered(asked: list[dict], samples: int) -> Iterator[dict]:
        """Graded rows; every draw begins with the same random numbers."""
        generator = torch.Generator(device).manual_seed(config.seed)
        for part, _ in sampled(engine, policy, tokenizer, asked, samples, config, generator):
            yield from part
            if asked is problems and samples:
                right.extend(row["correct"] for row in part)
                progress.update(len(right) // samples, accuracy=float(np.mean(right)))

    def greedy_and_sampled(asked: list[dict]) -> list[dict]:
        rows = [row for samples in (0, config.samples) for row in answered(asked, samples)]
        order = {problem["id"]: i for i, problem in enumerate(asked)}
        return sorted(rows, key=lambda row: (order[row["problem"]], row["sample"]))

    found = Answers([])
    with closing(opened(config, policy, tokenizer, str(checkpoint), [*problems, *others])) as engine:
        found.rows = greedy_and_sampled(problems)
        if config.reach:
            wanted = config.reach.samples
            correct = [row["correct"] for row in answered(problems[: config.reach.problems], wanted)]
            found.reach = [correct[i : i + wanted] for i in range(0, len(correct), wanted)]
        found.others = greedy_and_sampled(list(others)) if others else []
    progress.close()
    found.text_losses = text_loss(policy, tokenizer, paragraphs(config.text)) if config.text else []
    return found


def evaluate(
    seed_folder: Path,
    problems: list[dict],
    config: EvaluationConfig,
    out: Path,
    threads: int,
    others: Sequence[dict] = (),
    **facts,
) -> None:
    """Evaluate seed_folder/checkpoint; writes responses.jsonl, scores.json and the record into out.

    others: problems of another task; their responses are other_responses.jsonl.
    """
    name = f"{seed_folder.parent.name}/{seed_folder.name}"
    record = Record(out, "evaluation", asdict(config), threads, name=name, seed=config.seed)
    found = responses(seed_folder / "checkpoint", problems, config, name, others)
    rows, result = found.rows, scores(found.rows, config.samples, found.text_losses, found.reach)
    write_jsonl(out / "responses.jsonl", rows)
    if others:
        write_jsonl(out / "other_responses.jsonl", found.others)
        there = scores(found.others, config.samples)
        for part in ("overall", "per_problem"):
            result[part] |= {f"other_{name}": there[part][name] for name in ("greedy", f"mean@{config.samples}")}
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


def checked_problems(path: str | None) -> list[dict]:
    """The problems of a file, none for no file. Raises SettingsError for a row that cannot be asked or graded."""
    if path is None:
        return []
    problems = read_jsonl(path)
    check_rows(problems, path)
    check_prompts(problems, path)
    return problems


def main() -> None:
    parser = stage_parser(__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="STAGE/SEED", help="folders that hold checkpoint/")
    parser.add_argument("--problems", required=True, help="test problems, or dev problems of a trial; JSONL")
    parser.add_argument("--other-problems", metavar="FILE", help="test problems of another task; JSONL")
    args = parser.parse_args()
    use_threads(args.threads)
    config = from_dict(EvaluationConfig, load_settings(args.settings), "evaluation")
    problems, others = (checked_problems(path) for path in (args.problems, args.other_problems))
    check_folders(args.folders)
    alone = Alone(Path(args.out))  # a rule's output, which Snakemake deletes: the locks of the seeds lie in it
    for i, folder in enumerate(args.folders):
        facts = {"start_up_seconds": 0.0} if i else {}  # the process starts once
        evaluate(folder, problems, config, Path(args.out) / folder.name, args.threads, others, **facts)
        gc.collect()  # a model in a reference cycle would stay until after the next one is loaded
    alone.release()


if __name__ == "__main__":
    main_guard(main)
