"""A study as its file writes it: its settings, the graph of its stages, and the settings of each stage."""

import os
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from algos import ALGORITHMS
from algos.pieces.settings import DType, SettingsError, from_dict, one_of, settings, without_nulls
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.sampling.config import EngineName, VllmConfig
from algos.training.stage.config import Saving
from algos.training.stage.masking import has_password
from algos.training.supervised.config import DistillationConfig
from evaluation.config import FOLDER_NAME, PromptSettings, StudyEvaluation
from evaluation.tasks import TaskSettings
from pipelines.graph import Expansion, Stage, ancestors, check_edges, check_names
from pipelines.kinds import COMMON, EVALUATED, KINDS

LARGEST_SEED = 2**32 - 1  # that NumPy takes
UNASKED = ("train", "dev", "demonstrations")  # splits of the other task, of which nothing is used
PLACED = ("device", "dtype")  # set for the study as a whole, unless a stage says otherwise


@settings
class SamplingSettings:
    """What all stages that sample share, unless one says otherwise."""

    max_response_tokens: PositiveInt = 48
    temperature: PositiveFloat = 1.0
    engine: EngineName = "transformers"  # of all stages but TRL's, and of the evaluation
    vllm: VllmConfig = field(default_factory=VllmConfig)


@settings
class MlflowSettings:
    tracking_uri: str | None = None  # null: a SQLite file in the results folder
    register_models: bool = False  # each final checkpoint as a version of its stage's model in MLflow's registry


@settings
class StudySettings:
    """A study file: one comparison, from the task to the report."""

    study: str  # its name, in the report and in MLflow
    task: TaskSettings
    models: dict[str, dict]  # where the graph begins: a shape to build, a folder, or a hub id
    stages: dict[str, dict]  # the graph: every stage says its kind and what it starts from
    seeds: tuple[int, ...]  # of the stages: prompt order, sampling, minibatches
    results: str | None = None  # folder; null: results/ and the study's name
    seed: int = 0  # of the models' initial weights, and of the sampling of the evaluation
    device: str = "auto"  # auto: CUDA where there is one
    dtype: DType = "float32"
    prompt: PromptSettings = field(default_factory=PromptSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    defaults: dict[str, dict] = field(default_factory=dict)  # settings of all stages of a kind
    evaluation: dict = field(default_factory=dict)  # the same for all checkpoints
    mlflow: MlflowSettings = field(default_factory=MlflowSettings)
    saving: Saving = field(default_factory=Saving)  # of the state of every stage; no result depends on it


class Plan:
    """The settings and stages of a study. Raises SettingsError where they cannot be read; `checks` looks further."""

    def __init__(self, config: dict, inherited: dict[str, list[tuple[str, ...]]]):
        """inherited is filled: for each stage the places in the file that it takes settings from, nearest first."""
        self._read(config)
        self._build(inherited)

    def _read(self, config: dict) -> None:
        for section in ("models", "stages", "defaults"):
            for name, value in (config.get(section) or {}).items() if isinstance(config.get(section), dict) else ():
                if not isinstance(value, dict) and not (section == "models" and isinstance(value, str)):
                    raise SettingsError(f"{section}.{name} must be a mapping of settings, got {value!r}.")
        models = config.get("models")
        if isinstance(models, dict):  # a folder or a hub id alone is short for its path
            models = {name: {"path": value} if isinstance(value, str) else value for name, value in models.items()}
            config = {**config, "models": models}
        try:
            self.settings = from_dict(StudySettings, config, "the study")
        except SettingsError as error:
            raise SettingsError(str(error).removeprefix("the study.")) from None
        for section in ("models", "stages"):
            if not getattr(self.settings, section):
                raise SettingsError(f"{section} must name at least one, got {{}}.")
        self.config = config
        self.name, self.seeds = self.settings.study, list(self.settings.seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SettingsError(f"seeds must be different whole numbers from 0, at least one, got {self.seeds}.")
        if (largest := max([*self.seeds, self.settings.seed])) > LARGEST_SEED:
            raise SettingsError(f"seeds must be at most {LARGEST_SEED}, got {largest}.")
        self.results = self._folder()
        if has_password(self.tracking_uri):
            raise SettingsError(
                "mlflow.tracking_uri holds a password, which logs would show; take it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (PGPASSWORD for PostgreSQL)."
            )

    def _folder(self) -> str:
        """The folder of the results. Raises SettingsError for one that Snakemake cannot write or that is taken."""
        given = self.settings.results
        if not given and not FOLDER_NAME.fullmatch(self.name):
            raise SettingsError(f"study: {self.name!r} is no name of a folder; choose another, or write `results:`.")
        folder = given or f"results/{self.name}"
        if set("{}<>\n") & set(folder):
            raise SettingsError(
                "results: Snakemake reads braces as wildcards, < and > as variables, and no line ends; choose a folder "
                f"without, got {folder!r}."
            )
        if folder.startswith("~"):
            raise SettingsError(f"results: ~ is not read as your home here, got {folder!r}; write the whole path.")
        inside = os.path.normpath(folder)  # links that the user has made are followed
        if not os.path.isabs(inside) and inside.startswith(".."):
            raise SettingsError(
                f"results: {folder!r} leads out of this folder; choose one below it, or write an absolute path."
            )
        if Path.cwd().resolve().is_relative_to(Path(folder).resolve()):
            raise SettingsError(f"results: {folder!r} holds this folder; choose one below it, such as results/mine.")
        if Path(folder).resolve().is_relative_to(Path("results/published").resolve()):
            raise SettingsError(
                f"{'results' if given else 'study'}: results/published holds what is published, got {folder!r}; choose "
                "another name."
            )
        return folder

    def _build(self, inherited: dict[str, list[tuple[str, ...]]]) -> None:
        """The stages with all that they take over; fills in where each takes settings from."""
        check_names(self.settings.models, self.settings.stages)
        for kind, values in self.settings.defaults.items():
            one_of(kind, KINDS, "defaults, key")
            for key in values:
                one_of(key, KINDS[kind].shared, f"defaults.{kind}, key")
        expansion = Expansion(self.settings.stages, self.settings.defaults)
        self.stages = expansion.stages()
        for stage in self.stages.values():
            inherited[stage.name] = self._sources(stage)
        check_edges(self.stages, self.settings.models, expansion)

    def _sources(self, stage: Stage) -> list[tuple[str, ...]]:
        """The places in the file that a stage takes settings from, nearest first."""
        places: list[tuple[str, ...]] = []
        current: Stage | None = stage
        while current is not None:
            if current.tune:
                places.append(("stages", current.name, "tune", "space"))
            if current.varies and not current.trial_of:
                places += [("stages", current.varies, "vary"), ("stages", current.varies)]
            elif current is not stage:
                places.append(("stages", current.name))
            current = self.stages.get(current.like or "")
        return [*places, ("defaults", stage.kind)]

    def edges(self, name: str) -> dict[str, str]:
        return self._used[name]

    @cached_property
    def _used(self) -> dict[str, dict[str, str]]:
        """The edges of each stage that its settings use."""
        return {name: self._used_edges(stage) for name, stage in self.stages.items()}

    def _used_edges(self, stage: Stage) -> dict[str, str]:
        edges, config = dict(stage.edges), self.parsed(stage.name, self.seeds_of(stage.name)[0])
        unused = []
        if isinstance(config, RunConfig):
            hparams = config.hparams
            own_critic = getattr(hparams, "critic", None) == "separate" and hparams.critic_init == "policy"
            unused += [] if config.needs_reward_model else ["reward_model"]
            unused += [] if hparams.needs_reference else ["reference"]
            unused += [] if hparams.has_critic and own_critic else ["critic"]
        if isinstance(config, DistillationConfig) and config.on_policy_share == 1:
            unused.append("data")
        return {key: target for key, target in edges.items() if key not in unused}

    def seeds_of(self, name: str) -> list[int]:
        seeds = self.stages[name].values.get("seeds")
        seeds = self.seeds if seeds is None else seeds
        if (
            not isinstance(seeds, (list, tuple))
            or not seeds
            or any(type(seed) is not int or not 0 <= seed <= LARGEST_SEED for seed in seeds)
            or len(set(seeds)) < len(seeds)
        ):
            raise SettingsError(f"stages.{name}.seeds must be a list of different whole numbers from 0, got {seeds!r}.")
        return list(seeds)

    def seed_of(self, target: str, seed: int, where: str, stage: str) -> int:
        """The seed of an edge's stage: the same, or its only one."""
        seeds = self.seeds_of(target)
        if len(seeds) == 1:
            return seeds[0]
        if seed in seeds:
            return seed
        raise SettingsError(
            f"{where}: {target} has the seeds {', '.join(map(str, seeds))}, but {stage} runs with seed {seed}; give "
            f"{target} one seed, or the seeds of {stage}."
        )

    def origin(self, name: str) -> str:
        """The model that the checkpoint of a stage descends from."""
        while name in self.stages:
            name = self.stages[name].edges["from"]
        return name

    @cached_property
    def evaluated(self) -> list[str]:
        """The stages that make a policy, in the order of the file, but for those with `evaluate: false`."""
        return [n for n, s in self.stages.items() if s.kind in EVALUATED and s.values.get("evaluate") is not False]

    @cached_property
    def evaluated_models(self) -> list[str]:
        """The loaded models that an evaluated stage starts from; a model that is built has learned nothing."""
        starts = {self.stages[name].edges["from"] for name in self.evaluated}
        return [name for name in self.settings.models if name in starts and not self.model(name).built]

    @cached_property
    def needed(self) -> set[str]:
        """The stages that the report needs, trials included."""
        return ancestors(
            self.stages, self.evaluated, lambda stage: self.edges(stage.name) | {trial: trial for trial in stage.trials}
        )

    @cached_property
    def tuned(self) -> list[str]:
        """The stages that are tuned, in the order of the file."""
        return [name for name, stage in self.stages.items() if stage.tune is not None]

    @cached_property
    def trials(self) -> list[str]:
        """The trials of all stages: they are evaluated on dev, and on nothing else."""
        return [name for name, stage in self.stages.items() if stage.trial_of is not None]

    def tuning(self, name: str) -> dict:
        """What the choice of a stage's configuration is told: the trials, and what they are judged by.

        `settings` of a trial are those that differ from the settings that the stage is planned with. They stand over
        them once the trial is chosen, so that the stage runs with the settings of the trial.
        """
        tune = self.stages[name].tune
        assert tune is not None
        planned = self.resolved(name, tune.seeds[0])
        trials = [
            {
                "stage": trial,
                "values": self.stages[trial].chosen,
                "settings": _changed(planned, self.resolved(trial, tune.seeds[0])),
            }
            for trial in self.stages[name].trials
        ]
        metric = tune.metric if tune.metric == "greedy" else f"{tune.metric}@{self.parsed_evaluation.samples}"
        return {"stage": name, "metric": metric, "seeds": list(tune.seeds), "trials": trials}

    def choice(self, name: str) -> str:
        """The file with the configuration that was chosen for a stage, and the scores of all."""
        return f"{self.results}/stages/{name}/tuning.json"

    def folder(self, name: str, seed: int) -> str:
        return f"{self.results}/stages/{name}/seed{seed}"

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, stage in self.stages.items() if stage.kind == kind]

    def threads(self, name: str) -> int:
        value = self.stages[name].values.get("threads")
        return 1 if value is None else value

    def values(self, name: str, seed: int) -> dict:
        """Settings of a stage: those of the study, its own, its seed. A null that cannot be is left out."""
        stage = self.stages[name]
        kind = KINDS[stage.kind]
        placed = {key: getattr(self.settings, key) for key in PLACED}
        sampling = self.sampling(own=stage.values.get("trainer") != "trl")
        own = {k: v for k, v in stage.values.items() if k not in (*COMMON, *kind.others)}
        if stage.kind == "expert_iteration":
            for key, shared in (("sampling", placed | sampling), ("training", placed)):
                part = {} if own.get(key) is None else own[key]
                own[key] = {**shared, **part, "seed": seed} if isinstance(part, dict) else part
            return without_nulls(kind.settings, own)
        names = kind.keys
        own = {**{k: v for k, v in {**placed, **sampling}.items() if k in names}, **own, "seed": seed}
        if isinstance(own.get("settings"), dict):  # of an algorithm
            own["settings"] = without_nulls(type(ALGORITHMS[own["algorithm"]].defaults), own["settings"])
        return without_nulls(kind.settings, own)

    def sampling(self, own: bool = True) -> dict:
        """What stages that sample share; TRL's trainer samples by itself."""
        shared = asdict(self.settings.sampling)
        return shared if own else {key: value for key, value in shared.items() if key not in ("engine", "vllm")}

    def parsed(self, name: str, seed: int):
        """The settings object of a stage."""
        return from_dict(KINDS[self.stages[name].kind].settings, self.values(name, seed), f"stages.{name}")

    def resolved(self, name: str, seed: int) -> dict:
        """All settings of a stage, defaults filled in: they go to its command, and its re-runs depend on them.

        So a changed default makes again what it changes, and a default that is written out makes nothing again.
        """
        config = self.parsed(name, seed)
        return config.resolved() if isinstance(config, RunConfig) else asdict(config)

    @property
    def tracking_uri(self) -> str:
        return self.settings.mlflow.tracking_uri or f"sqlite:///{self.results}/mlflow.db"

    def model(self, name: str) -> ModelConfig:
        return from_dict(ModelConfig, without(self.settings.models[name], "tokenizer"), f"models.{name}")

    def model_settings(self, name: str) -> dict:
        return asdict(self.model(name))

    def tokenizer_of(self, name: str) -> str | None:
        """The model whose tokenizer this one takes."""
        return self.settings.models[name].get("tokenizer")

    def tokenizer_owner(self, name: str) -> str:
        """The model whose tokenizer this one has: another one's, or its own."""
        return self.tokenizer_of(name) or name

    @cached_property
    def parsed_evaluation(self) -> StudyEvaluation:
        shared = {key: getattr(self.settings, key) for key in PLACED}
        shared |= self.sampling()
        return from_dict(
            StudyEvaluation, {**shared, "seed": self.settings.seed, **self.settings.evaluation}, "evaluation"
        )

    def evaluation(self) -> dict:
        """Settings of the command that evaluates; the margin is the report's alone, and other tasks are made before."""
        settings = without(asdict(self.parsed_evaluation), "margin", "other_task")
        return settings if settings["reach"] else without(settings, "reach")  # what was evaluated without it stays so

    def evaluation_of_trial(self) -> dict:
        """As every checkpoint is evaluated, but for what no choice depends on."""
        return without(self.evaluation(), "reach") | {"text": None}

    @cached_property
    def other_task(self) -> TaskSettings | None:
        """A task that no stage trains on, whose test problems every checkpoint answers, too."""
        given = self.parsed_evaluation.other_task
        if given is None:
            return None
        sizes = {} if given.get("name") == "rows" else dict.fromkeys(UNASKED, 1)  # rows come from files
        return from_dict(TaskSettings, {**sizes, **given}, "evaluation.other_task")

    def task(self) -> dict:
        return asdict(self.settings.task)

    def prompt(self) -> dict:
        return asdict(self.settings.prompt)


def _changed(old: dict, new: dict) -> dict:
    """Of nested settings with the same keys, those that differ, as they are in `new`."""
    return {
        key: _changed(old[key], value) if isinstance(value, dict) and isinstance(old[key], dict) else value
        for key, value in new.items()
        if value != old[key]
    }


def without(values: dict, *keys: str) -> dict:
    return {name: value for name, value in values.items() if name not in keys}
