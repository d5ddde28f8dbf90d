"""The stages of a study file as a graph: `like` and `vary` resolved, every edge checked, no circle."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from graphlib import CycleError, TopologicalSorter

from algos import ALGORITHMS, check_name
from algos.pieces.settings import SettingsError, one_of
from algos.training.config import RunConfig
from evaluation.tuning.space import TuneSettings, configurations, tune_settings
from pipelines.kinds import BUDGET, COMMON, COMPARED, EVALUATED, KINDS, SPLITS, TRAINING_SPLITS
from pipelines.source import varied

NAME = re.compile(r"[a-z][a-z0-9_]*")
# A mapping that a stage writes anew, and what it is where nothing is written; all others are merged key by key.
REPLACED = {f.name: f.default_factory() for f in fields(RunConfig) if f.name == "rewards"}
Setting = tuple[tuple[str, ...], object]  # the keys from the stage down to a value, and the value


@dataclass(frozen=True)
class Stage:
    """One stage, or one of those that `vary` or `tune` makes."""

    name: str
    kind: str
    values: dict  # all its settings but those of the study: shared, of the stages that it is like, its own
    own: dict  # as it is written, and what `vary` or `tune` sets
    like: str | None
    varies: str | None  # the stage of the file whose `vary` or `tune` makes this one
    edges: dict[str, str] = field(default_factory=dict)
    tune: TuneSettings | None = None
    trials: tuple[str, ...] = ()  # of a stage that is tuned: the stages that try its configurations
    trial_of: str | None = None  # of a trial: the stage that is tuned
    chosen: dict[str, object] = field(default_factory=dict)  # of a trial: the settings that it tries


def merged(shared: dict, own: dict) -> dict:
    """own over shared, mapping by mapping; null in own stands in place of whatever is shared."""
    result = copy.deepcopy(shared)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both and key not in REPLACED else copy.deepcopy(value)
    return result


class Expansion:
    """Resolves `like`, `vary` and `tune`. Raises SettingsError for unknown names, circles and keys that cannot be."""

    def __init__(self, written: dict[str, dict], defaults: dict[str, dict]):
        self.written, self.defaults = written, defaults
        self.made = {name: made for parent in written for name, made in self._made(parent).items()}
        self.families = [name for name, stage in written.items() if stage.get("vary") is not None]
        self.names = [name for parent in written for name in self._members(parent)]
        self.tuned = {name: tune for name in self.names if (tune := self._tune(name)) is not None}
        self.trials = {name: self._trials(name) for name in self.tuned}

    def _members(self, parent: str) -> list[str]:
        return [n for n, (p, _) in self.made.items() if p == parent] if parent in self.families else [parent]

    def _made(self, parent: str) -> dict[str, tuple[str, dict]]:
        """The stages that the `vary` of a stage makes: their names, the stage, and the value of each key."""
        vary = self.written[parent].get("vary")
        return {} if vary is None else {name: (parent, chosen) for name, chosen in varied(parent, vary).items()}

    def stages(self) -> dict[str, Stage]:
        """All stages in the order of the file, the trials of a stage before it."""
        return {
            stage.name: stage
            for name in self.names
            for stage in [*(self._trial(name, i) for i in range(len(self.trials.get(name, ())))), self._stage(name)]
        }

    def _tune(self, name: str) -> TuneSettings | None:
        """How a stage is tuned, by its own `tune` or that of a stage that it is like."""
        where, values = f"stages.{name}.tune", self._values(name)
        if values.get("tune") is None:
            return None
        if values["kind"] not in EVALUATED:
            raise SettingsError(
                f"{where}: a stage of kind {values['kind']} makes no policy that dev could judge; remove this key."
            )
        if name in self.made:
            raise SettingsError(
                f"{where}: {self.made[name][0]} has `vary`; a stage varies or is tuned, so remove one of them, or "
                "write `tune: null`."
            )
        return tune_settings(values["tune"], where)

    def _trials(self, name: str) -> list[dict[str, object]]:
        """What each trial of a stage sets, by the place of the setting: {"optimizer.learning_rate": 1.0e-4}."""
        kind, algorithm, _ = self._chain(name, ())
        where, names = f"stages.{name}.tune", {}
        for key in self.tuned[name].space:
            place = _place(key, kind, algorithm, f"{where}.space")
            if place[0] in KINDS[kind].edges or {*place} & {*COMPARED}:
                raise SettingsError(
                    f"{where}.space: {key} is what stages are compared by, or what they run on; tune another setting, "
                    "and write a stage for each of its values."
                )
            if {*place} & {*BUDGET}:
                raise SettingsError(
                    f"{where}.space: {key} would change the budget, which is the same for all trials; tune another "
                    "setting."
                )
            if ".".join(place) in names.values():
                raise SettingsError(f"{where}.space: {key} is there under another name; remove one of the two.")
            names[key] = ".".join(place)
        made = configurations(self.tuned[name], where)
        return [{names[key]: value for key, value in chosen.items()} for chosen in made]

    def _trial(self, name: str, number: int) -> Stage:
        """A trial: the stage with one configuration and the seeds of the tuning, evaluated on dev and never on test."""
        made, tune, chosen = self._stage(name, number), self.tuned[name], self.trials[name][number]
        values = made.values | {"seeds": list(tune.seeds), "evaluate": False}
        return replace(
            made,
            name=_trial_name(name, number),
            values=values,
            varies=name,
            tune=None,
            trials=(),
            trial_of=name,
            chosen=chosen,
        )

    def _stage(self, name: str, trial: int = 0) -> Stage:
        """A stage. One that is tuned is planned with the settings of a trial, as the choice among them comes later."""
        parent, chosen = self.made.get(name, (name, {}))
        own = {k: v for k, v in self.written[parent].items() if k != "vary"} | chosen
        values = self._values(name)
        kind = values.pop("kind")
        for key in ("like", "tune"):
            values.pop(key, None)
        trials = self.trials.get(name, [])
        for place, value in trials[trial].items() if trials else ():
            _set(values, tuple(place.split(".")), value, f"stages.{name}")
        edges = {key: values.pop(key) for key in KINDS[kind].edges if values.get(key) is not None}
        for key in KINDS[kind].edges:
            values.pop(key, None)
        for key, target in edges.items():
            if not isinstance(target, str):
                raise SettingsError(f"stages.{name}.{key} must be the name of one stage or model, got {target!r}.")
        return Stage(
            name,
            kind,
            values,
            own,
            own.get("like"),
            parent if chosen else None,
            edges,
            self.tuned.get(name),
            tuple(_trial_name(name, i) for i in range(len(trials))),
        )

    def _values(self, name: str) -> dict:
        """The settings of a stage: those of its kind, of its algorithm, of the stages that it is like, its own."""
        kind, algorithm, written = self._chain(name, ())
        values = copy.deepcopy(self.defaults.get(kind, {}))
        for place, value in [*_brought(algorithm), *written]:
            _set(values, place, value, f"stages.{self.made.get(name, (name,))[0]}")
        return values

    def _chain(self, name: str, seen: tuple[str, ...]) -> tuple[str, str | None, list[Setting]]:
        """The kind and the algorithm of a stage, and what it and those that it is like write, the farthest first."""
        if name in seen:
            raise SettingsError(f"stages.{seen[0]}.like: a circle, {' -> '.join([*seen, name])}; remove one `like`.")
        parent, chosen = self.made.get(name, (name, {}))
        own = {k: v for k, v in self.written[parent].items() if k != "vary"}
        where = f"stages.{parent}"
        written: list[Setting] = []
        if "like" in own:
            self.known(own["like"], self.names, f"{where}.like")
            kind, algorithm, written = self._chain(own["like"], (*seen, name))
            if own.get("kind", kind) != kind:
                raise SettingsError(
                    f"{where}.kind is {own['kind']}, but {own['like']}, which it is like, is of kind {kind}; "
                    "remove kind."
                )
        elif "kind" not in own:
            raise SettingsError(f"{where}: write `kind:`, one of {', '.join(KINDS)}, or `like:` and a stage.")
        else:
            kind = own["kind"]
            one_of(kind, KINDS, f"{where}.kind")
            algorithm = self.defaults.get(kind, {}).get("algorithm")
        for key in own:
            one_of(key, KINDS[kind].keys, f"{where}, key")
        algorithm = chosen.get("algorithm", own.get("algorithm", algorithm))
        if kind == "rl":
            self._check_algorithm(algorithm, where)
        varied = [(_place(key, kind, algorithm, f"{where}.vary"), value) for key, value in chosen.items()]
        return kind, algorithm, [*written, *(((key,), value) for key, value in own.items()), *varied]

    @staticmethod
    def _check_algorithm(name: object, where: str) -> None:
        if name is None:
            raise SettingsError(f"{where}: write `algorithm: <name>`; `python -m algos list` prints the names.")
        check_name(name, f"{where}: algorithm")

    def known(self, name: object, allowed: list[str], where: str) -> None:
        """Raise SettingsError unless the name is allowed; a stage with `vary` is named by the stages that it makes."""
        if name in self.families:
            raise SettingsError(f"{where}: {name} varies; name one of {', '.join(self._members(str(name)))}.")
        one_of(name, allowed, where)


def _trial_name(stage: str, number: int) -> str:
    return f"{stage}-trial={number}"


def _place(key: str, kind: str, algorithm: str | None, where: str) -> tuple[str, ...]:
    """Where a varied key stands: a setting of the stage, a dotted part of one, or a hyperparameter of its algorithm."""
    allowed = [name for name in KINDS[kind].keys if name not in COMMON]
    hparams = list(vars(ALGORITHMS[algorithm].defaults)) if algorithm is not None else []
    first, *rest = key.split(".")
    one_of(first, [*allowed, *hparams], where)
    return ("settings", first) if not rest and first not in allowed else (first, *rest)


def _brought(algorithm: str | None) -> list[Setting]:
    """The settings that an algorithm brings for its runs; its rewards are added to the shared ones."""
    run = ALGORITHMS[algorithm].run if algorithm is not None else {}
    rewards = [(("rewards", name), weight) for name, weight in run.get("rewards", {}).items()]
    return [*(((key,), value) for key, value in run.items() if key != "rewards"), *rewards]


def _set(values: dict, place: tuple[str, ...], value: object, where: str) -> None:
    """Set the value at a place, which may lie within a mapping that nobody has written yet."""
    *sections, last = place
    for section in sections:
        if values.get(section) is None:
            values[section] = dict(REPLACED.get(section, {}))
        values = values[section]
        if not isinstance(values, dict):
            raise SettingsError(f"{where}: {section} must be a mapping, got {values!r}.")
    values |= merged(values, {last: value})


def check_names(models: dict, stages: dict) -> None:
    """Raise SettingsError for a name that no folder may have, or that stands for two things."""
    for section, names in (("models", models), ("stages", stages)):
        for name in names:
            if not NAME.fullmatch(name):
                raise SettingsError(f"{section}.{name}: a name is lower-case letters, digits and _, got {name!r}.")
            if name in SPLITS:
                raise SettingsError(f"{section}.{name}: this is the name of a split of the data; choose another.")
    for name in stages:
        if name in models:
            raise SettingsError(f"stages.{name}: there is a model of this name; choose another.")


def check_edges(stages: dict[str, Stage], models: dict, expansion: Expansion) -> None:
    """Raise SettingsError for an edge that is missing, leads nowhere, to the wrong kind, or in a circle."""
    kind_of = {split: "split" for split in SPLITS} | dict.fromkeys(models, "model")
    kind_of |= {name: stage.kind for name, stage in stages.items() if stage.trial_of is None}
    for stage in stages.values():
        for name, edge in KINDS[stage.kind].edges.items():
            where = f"stages.{stage.name}.{name}"
            possible = [n for n, kind in kind_of.items() if kind in edge.sources and n not in ("dev", "test")]
            target = stage.edges.get(name)
            if target is None:
                if edge.required:
                    raise SettingsError(f"{where} is missing: {_wanted(edge.sources)}. There are: {_list(possible)}.")
                continue
            if target in ("dev", "test") and "split" in edge.sources:
                raise SettingsError(
                    f"{where}: {target} is there to measure with; train on {' or '.join(TRAINING_SPLITS)}."
                )
            expansion.known(target, list(kind_of), where)
            if target not in possible:
                raise SettingsError(
                    f"{where}: {target} is {_named(kind_of[target])}, but this must be {_wanted(edge.sources)}. "
                    f"There are: {_list(possible)}."
                )
    try:
        TopologicalSorter({name: set(s.edges.values()) for name, s in stages.items()}).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        key = next(k for k, target in stages[circle[0]].edges.items() if target == circle[1])
        raise SettingsError(
            f"stages.{circle[0]}.{key}: a circle, {' -> '.join(circle)}; a stage cannot come from itself."
        ) from None


def _named(kind: str) -> str:
    return {"split": "a split of the data", "model": "a model"}.get(kind, f"a stage of kind {kind}")


def _wanted(sources: tuple[str, ...]) -> str:
    kinds = [source for source in sources if source not in ("model", "split")]
    first = {"model": ["a model"], "split": [f"a split ({' or '.join(TRAINING_SPLITS)})"]}
    parts = [*first.get(sources[0], []), *([f"a stage of kind {' or '.join(kinds)}"] if kinds else [])]
    return ", or ".join(parts)


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


def ancestors(stages: dict[str, Stage], starts: list[str], needed: Callable[[Stage], dict[str, str]]) -> set[str]:
    """The stages that the given ones need, themselves included."""
    found, waiting = set(), list(starts)
    while waiting:
        name = waiting.pop()
        if name in stages and name not in found:
            found.add(name)
            waiting += needed(stages[name]).values()
    return found
