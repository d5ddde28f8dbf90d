"""Tasks: the sources of problems. One small file each; every problem is {"question", "answer"} as in GSM8K.

A task's load(config, sizes, seed) returns the splits train, dev, test and demonstrations. The last line of an answer is
`#### <answer>`; only graders read that line. To add a task: its file, and its line in TASKS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from pydantic import PositiveInt, model_validator

from algos.pieces.settings import SettingsError, from_dict, one_of, settings
from evaluation.tasks import gsm8k, gsm_symbolic, own_rows, word_problems
from evaluation.tasks.grader import Compare, Extract, Grader
from evaluation.tasks.rows import SPLITS, WHERE, check_prompts, check_rows


@dataclass(frozen=True)
class Task:
    config: type  # frozen dataclass of the task's own settings
    load: Callable[[Any, dict[str, int | None], int], dict[str, list[dict]]]


TASKS: dict[str, Task] = {
    "word_problems": Task(word_problems.WordProblemsConfig, word_problems.load),
    "gsm8k": Task(gsm8k.GSM8KConfig, gsm8k.load),
    "gsm_symbolic": Task(gsm_symbolic.GSMSymbolicConfig, gsm_symbolic.load),
    "rows": Task(own_rows.OwnRowsConfig, own_rows.load),
}
__all__ = ["TASKS", "Task", "TaskSettings", "check_prompts", "check_rows", "load_task"]
SHOWN_TOO = ("train", "demonstrations")  # a problem may be in both


@settings
class TaskSettings:
    """The study's `task` section."""

    name: str
    seed: int = 0  # of the generator, or of the split into train and dev
    train: PositiveInt | None = None  # problems per split; null: all that there are
    dev: PositiveInt | None = None
    test: PositiveInt | None = None
    demonstrations: PositiveInt | None = None  # worked solutions to train on
    extract: Extract = "hash"  # where the answer of a response stands: #### n, \boxed{}, <answer> tags, ...
    compare: Compare = "number"  # number: own code; math: formulas by Math-Verify; text: letter by letter
    settings: dict = field(default_factory=dict)  # the task's own; they may also stand beside these

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, given):
        """The task's own settings, written beside the common ones, as `settings`."""
        name = given.get("name") if isinstance(given, dict) else None
        if name == "rows" and (sizes := [key for key in SPLITS if type(given.get(key)) is int]):
            raise ValueError(f"{sizes[0]}: {given[sizes[0]]} names no file of rows; numbers of rows go into `sizes`")
        if not isinstance(name, str) or name not in TASKS or not isinstance(given.get("settings", {}), dict):
            return given
        own, common = ({f.name for f in fields(settings)} for settings in (TASKS[name].config, cls))

        def belongs(key: str) -> bool:
            if key in SPLITS:
                return key in own and isinstance(given[key], str)
            near = get_close_matches(key, own | common, n=1)  # a misspelled name is refused among its kind
            return key in own or (key not in common and near != [] and near[0] in own)

        moved = {key: value for key, value in given.items() if belongs(key)}
        rest = {key: value for key, value in given.items() if key not in moved}
        return {**rest, "settings": {**given.get("settings", {}), **moved}}

    def __post_init__(self):
        one_of(self.name, TASKS, "name")
        self.config, self.grader  # noqa: B018  checks the task's own settings

    @property
    def config(self):
        return from_dict(TASKS[self.name].config, self.settings, "settings")

    @property
    def grader(self) -> Grader:
        return Grader(self.extract, self.compare)


def load_task(task: TaskSettings) -> dict[str, list[dict]]:
    """The task's splits, checked: none empty, every row with a question and a gold answer, questions disjoint.

    Raises SettingsError naming the split and the row.
    """
    sizes = {split: getattr(task, split) for split in SPLITS}
    try:
        splits = TASKS[task.name].load(task.config, sizes, task.seed)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"task {task.name}: {error}.") from None
    splits = {split: [task.grader.placed(row) for row in rows] for split, rows in splits.items()}
    for split, rows in splits.items():
        check_rows(rows, f"task {task.name}, split {split}")
    splits = {split: [{k: v for k, v in row.items() if k != WHERE} for row in rows] for split, rows in splits.items()}
    seen: dict[str, str] = {}
    for split in ("test", "dev", "train", "demonstrations"):
        for row in splits[split]:
            if (known := seen.setdefault(row["question"], split)) != split and (known, split) != SHOWN_TOO:
                raise SettingsError(
                    f"task {task.name}: the {split} question {row['question'][:80]!r} is in "
                    f"{seen[row['question']]} too; splits must be disjoint."
                )
    return splits
