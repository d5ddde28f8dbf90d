"""A study file, validated before anything runs, and the command line of each of its stages.

python -m pipelines.study FILE     checks a study; prints its stages as a tree, with their jobs and what is done
"""

import sys
from pathlib import Path

from algos.pieces.settings import SettingsError, refusals
from algos.training.config import RunConfig
from pipelines.checks import check
from pipelines.kinds import KINDS, SPLITS
from pipelines.plan import Plan
from pipelines.source import Lines, located, read, refuse_keys_that_are_no_text


class Study(Plan):
    """One validated study. Its methods return plain data, ready for a command line."""

    def __init__(self, config: dict, source: str, lines: Lines | None = None):
        """config as read from YAML; source: the file's name, for messages. Raises SettingsError."""
        self.source = source
        inherited: dict[str, list[tuple[str, ...]]] = {}
        try:
            refuse_keys_that_are_no_text(config)
            super().__init__(config, inherited)
            check(self)
        except SettingsError as error:
            raise SettingsError(located(str(error), source, lines or {}, inherited)) from None

    @property
    def warnings(self) -> list[str]:
        """What the study makes possible but is seldom meant; a TRL baseline does not repeat the warnings of its run."""
        found = []
        for name in self.stages:
            config = self.parsed(name, self.seeds_of(name)[0])
            if isinstance(config, RunConfig) and config.trainer == "own":
                found += [f"stages.{name}: {warning}" for warning in config.warnings()]
            if name not in self.needed and self.stages[name].trial_of is None:
                found.append(f"stages.{name}: no evaluated stage needs it, so it is not run.")
        return found + self._unequal_tuning()

    def _unequal_tuning(self) -> list[str]:
        """A stage that tries other configurations than the first stage that is tuned: their budgets are not equal."""
        tried = {name: [self.stages[trial].chosen for trial in self.stages[name].trials] for name in self.tuned}
        judged = {name: (self.tuning(name)["metric"], self.tuning(name)["seeds"]) for name in self.tuned}
        return [
            f"stages.{name}.tune differs from that of {self.tuned[0]}: what the two gain cannot be compared; give "
            "both the same trials, space, seeds and metric."
            for name in self.tuned[1:]
            if (tried[name], judged[name]) != (tried[self.tuned[0]], judged[self.tuned[0]])
        ]

    def place(self, target: str, seed: int) -> str:
        """The file or folder that an edge leads to, for a stage with this seed."""
        if target in SPLITS:
            return f"{self.results}/data/{target}.jsonl"
        if target in self.settings.models:
            return f"{self.results}/models/{target}/checkpoint"
        stage = self.stages[target]
        folder = self.folder(target, self.seed_of(target, seed, f"stages.{target}", target))
        if stage.kind == "preferences":
            return folder
        return f"{folder}/{'accepted.jsonl' if stage.kind == 'rejection_sampling' else 'checkpoint'}"

    def options(self, name: str, seed: int) -> list[str]:
        """The edges of a stage as words of its command line."""
        kind, words = KINDS[self.stages[name].kind], []
        for key, target in self.edges(name).items():
            words += [kind.edges[key].option, self.place(target, seed)]
        if self.stages[name].tune is not None:
            words += ["--tuned", self.choice(name)]
        if self.stages[name].values.get("path") is not None:
            return [*words, "--pairs", self.stages[name].values["path"]]
        words += ["--prompts", self.place("train", seed)] if kind.prompts else []
        measured = getattr(self.parsed(name, seed), "dev_every", None) is not None
        return [*words, "--dev", self.place("dev", seed)] if measured else words

    def inputs(self, name: str, seed: int) -> list[str]:
        """The files and folders that a stage reads and that another rule makes."""
        words = self.options(name, seed)
        given = {word: value for word, value in zip(words[::2], words[1::2], strict=True) if word != "--pairs"}
        if self.stages[name].kind == "reward_model":
            given["--data"] += "/train.jsonl"
        return list(given.values())

    def report(self) -> dict:
        """What the report needs to know of the study besides the files on disk."""
        reach = self.parsed_evaluation.reach
        return {
            "study": self.name,
            "source": self.source,
            "task": self.settings.task.name,
            "samples": self.parsed_evaluation.samples,
            "margin": self.parsed_evaluation.margin,
            **({"reach": reach.samples} if reach else {}),
            "seed": self.settings.seed,
            "models": list(self.settings.models),
            "stages": {name: self._described_model(name) for name in self.evaluated_models}
            | {name: self._described(name) for name in self.stages if name in self.needed},
        }

    def _described_model(self, name: str) -> dict:
        """An evaluated model, as a stage without a start."""
        facts = {"from": None, "like": None, "trainer": None, "rewards": None}
        return {"kind": "model", "seeds": [self.settings.seed], "evaluated": True, "edges": {}, **facts}

    def _described(self, name: str) -> dict:
        stage, config = self.stages[name], self.resolved(name, self.seeds_of(name)[0])
        return {
            "kind": stage.kind,
            "seeds": self.seeds_of(name),
            "from": stage.edges.get("from"),
            "like": stage.like or stage.varies,
            "trainer": config.get("trainer"),
            "evaluated": name in self.evaluated,
            "edges": self.edges(name),
            "rewards": config.get("rewards"),  # all settings stand in each run.json
            **({"tuned": True} if stage.tune is not None else {}),
        }


def load(path: str | Path, config: dict | None = None) -> Study:
    """The study of a YAML file; config: its settings as changed on a command line. Raises SettingsError."""
    written, lines = read(path)
    return Study(written if config is None else config, str(path), lines)


def main(words: list[str]) -> None:
    from pipelines.tree import tree

    with refusals():
        study = load(words[0] if words else "pipelines/config.yaml")
        print(tree(study))
        for warning in study.warnings:
            print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
