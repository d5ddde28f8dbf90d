"""Task -> train.jsonl, dev.jsonl, test.jsonl, demonstrations.jsonl and text.jsonl, each row with its prompt.

By hand: python -m evaluation.data --task '{"name": "gsm8k", "settings": {"path": "DIR"}}' --prompt '{}' --out DIR
"""

import argparse
import random
from dataclasses import asdict
from pathlib import Path

from algos.pieces.settings import from_dict
from evaluation.config import PromptSettings
from evaluation.options import read_json
from evaluation.tasks import TaskSettings, load_task
from evaluation.tasks.files import write_jsonl


def unanswered_text(demonstrations: list[dict], seed: int) -> list[dict]:
    """The task's text as a base model may have read it: few of its questions are answered.

    After a third of the questions stands another question, after a third the working without its last line, which
    holds the answer, and after a third the whole worked solution.
    """
    rng = random.Random(seed)
    rows = []
    for row in demonstrations:
        working = row["answer"].rpartition("\n")[0].strip()
        another = rng.choice(demonstrations)["question"]
        rows.append({**row, "answer": rng.choice([another, working or another, row["answer"]])})
    return rows


def write_splits(task: TaskSettings, prompt: PromptSettings, out: Path) -> None:
    """Write the splits into out, beside the stage's record; nothing is written if any row is bad."""
    from algos.training.stage.record import Record

    splits = load_task(task)
    splits["text"] = unanswered_text(splits["demonstrations"], task.seed)

    def asked(row: dict) -> str | list[dict]:
        return row.get("messages") or prompt.prompt(row["question"])

    record = Record(out, "data", {"task": asdict(task), "prompt": asdict(prompt)}, threads=1, name=out.name)
    for split, rows in splits.items():
        write_jsonl(
            out / f"{split}.jsonl",
            ({"id": f"{split}/{i}", "prompt": asked(row), **row} for i, row in enumerate(rows)),
        )
    for row in splits["demonstrations"][:8]:
        record.sample(step=0, prompt=asked(row), response=row["answer"])
    record.log(0, {f"{split}_problems": len(rows) for split, rows in splits.items()})
    record.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--task", required=True, help="the study's task section, as JSON")
    parser.add_argument("--prompt", default="{}", help="the study's prompt section, as JSON")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    write_splits(
        from_dict(TaskSettings, read_json(args.task, "--task"), "task"),
        from_dict(PromptSettings, read_json(args.prompt, "--prompt"), "prompt"),
        args.out,
    )


if __name__ == "__main__":
    from algos.training.stage.record import main_guard

    main_guard(main)
