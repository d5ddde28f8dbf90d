"""A study file, validated before anything runs, and the settings of each stage that follow from it.

python -m pipelines.study pipelines/config.yaml     checks a file and prints its runs
"""

import re
import sys
from dataclasses import asdict
from pathlib import Path

import jsonschema
import yaml

from algos import ALGORITHMS
from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.rewards.config import PreferenceConfig, RewardModelConfig
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    RejectionConfig,
    SupervisedConfig,
)
from evaluation.config import EvaluationConfig, PromptSettings
from evaluation.tasks import TaskSettings

SCHEMA = Path(__file__).with_name("config.schema.yaml")
NAME = re.compile(r"[a-z][a-z0-9_]*")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
KL_SETTINGS = ("kl_estimator", "kl_in", "kl_direction", "kl_importance_weighted", "kl_target", "kl_horizon")
RESERVED = (  # stages that look like runs
    "cold_start",
    "rejection_sft",
    "trl_rejection_sft",
    "expert_iteration",
    "student_cold",
    "student_distilled",
)


class Study:
    """One validated study. Every method returns plain data, ready for a command line."""

    def __init__(self, config: dict, source: str):
        """config as read from YAML; source is the file's name, for messages. Raises SettingsError."""
        self.source = source
        try:
            self._check_shape(config)
            self.config = config
            self.results, self.seeds = config["results"], config["seeds"]
            self.runs = config["runs"]
            self._check_stages()
        except SettingsError as error:
            raise SettingsError(f"{source}: {error}") from None

    def _check_shape(self, config: dict) -> None:
        _refuse_keys_that_are_no_text(config, "the study")
        schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
        if isinstance(config.get("seeds"), list) and any(type(seed) is not int for seed in config["seeds"]):
            raise SettingsError(f"seeds must be a list of whole numbers, got {config['seeds']!r}.")
        errors = sorted(
            jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path))
        )
        if errors:
            raise SettingsError(_explain(errors[0]))

    def _check_stages(self) -> None:
        from_dict(TaskSettings, self.config["task"], "task")
        from_dict(PromptSettings, self.config.get("prompt", {}), "prompt")
        for section in ("base_model", "student"):
            model = from_dict(ModelConfig, self.model(section), section)
            _check_path(model.path, f"{section}.path")
        from_dict(SupervisedConfig, self.supervised("cold_start", 0), "cold_start")
        from_dict(EvaluationConfig, self.evaluation(), "evaluation")
        for name, run in self.runs.items():
            self._check_run(name, run)
        if self.has_reward_model:
            from_dict(PreferenceConfig, self.preferences(), "preferences")
            from_dict(RewardModelConfig, self.reward_model(), "reward_model")
        if self.has_rejection_sampling:
            one_of(self.teacher, self.runs, "rejection_sampling.teacher")
            from_dict(RejectionConfig, self.rejection(0), "rejection_sampling.sampling")
            from_dict(SupervisedConfig, self.supervised("rejection_sft", 0), "rejection_sampling.training")
        if self.has_distillation:
            if not self.has_rejection_sampling:
                raise SettingsError(
                    "distillation trains on the samples that rejection_sampling accepts; add that section."
                )
            from_dict(SupervisedConfig, self.supervised("student_distilled", 0), "distillation.training")
        if self.has_expert_iteration:
            from_dict(ExpertIterationConfig, self.expert_iteration(0), "expert_iteration")
        if self.students and not self.has_distillation:
            raise SettingsError(
                "on_policy_distillation goes on from student_cold, a student that can answer; add the section "
                "distillation."
            )
        for name in self.students:
            self._check_student(name)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse a stage that asks for more problems than the task is told to make, before anything is trained."""
        available = self.config["task"].get("train")
        wanted = {f"runs.{name}: prompts_per_step": self.run_config(name).prompts_per_step for name in self.runs}
        if self.has_reward_model:
            wanted["preferences.prompts"] = from_dict(PreferenceConfig, self.preferences(), "preferences").prompts
        if self.has_rejection_sampling:
            sampling = from_dict(RejectionConfig, self.rejection(0), "rejection_sampling.sampling")
            wanted["rejection_sampling.sampling.prompts"] = sampling.prompts
        if self.has_expert_iteration:
            rounds = from_dict(ExpertIterationConfig, self.expert_iteration(0), "expert_iteration")
            wanted["expert_iteration.sampling.prompts"] = rounds.sampling.prompts
        for name in self.students:
            wanted[f"on_policy_distillation.runs.{name}: prompts_per_step"] = self._student(name).prompts_per_step
        for key, size in wanted.items():
            if available is not None and size > available:
                raise SettingsError(f"{key} is {size}, but task.train is {available}; at most that many.")

    def run_config(self, name: str) -> RunConfig:
        return from_dict(RunConfig, self.run(name, 0), f"runs.{name}")

    def _check_name(self, name: str, run: dict, runs: dict, where: str) -> None:
        """Refuse a name that is taken or no folder's, and a twin with settings or of nothing in `runs`."""
        if not NAME.fullmatch(name) or name in RESERVED:
            raise SettingsError(
                f"{where}: a run's name is lower-case letters, digits and _, and none of {', '.join(RESERVED)}."
            )
        if "twin_of" in run:
            if set(run) != {"twin_of"}:
                raise SettingsError(
                    f"{where}: a twin takes everything from the run it names; remove "
                    f"{', '.join(sorted(set(run) - {'twin_of'}))}."
                )
            one_of(run["twin_of"], [n for n, r in runs.items() if "twin_of" not in r], f"{where}.twin_of")

    def _student(self, name: str) -> DistillationConfig:
        return from_dict(DistillationConfig, self.student(name, 0), f"on_policy_distillation.runs.{name}")

    def _check_student(self, name: str) -> None:
        where = f"on_policy_distillation.runs.{name}"
        self._check_name(name, self.students[name], self.students, where)
        if name in self.runs:
            raise SettingsError(f"{where}: there is a run of this name in runs; choose another.")
        config = self._student(name)
        if config.trainer == "trl":
            from algos.training.trl.supervised import check

            try:
                check(config)
            except SettingsError as error:
                raise SettingsError(f"{where}: {error}") from None

    def _check_run(self, name: str, run: dict) -> None:
        where = f"runs.{name}"
        self._check_name(name, run, self.runs, where)
        if "twin_of" not in run and "algorithm" not in run:
            raise SettingsError(f"{where}: write `algorithm: <name>`, or `twin_of: <run>` for TRL's twin of a run.")
        config = self.run_config(name)
        idle = [key for key in KL_SETTINGS if key in run.get("settings", {})]
        if idle and config.hparams.kl_coef == 0:
            raise SettingsError(
                f"{where}.settings: {', '.join(idle)} without effect, as kl_coef is 0: there is no KL term and no "
                "reference; set kl_coef above 0, or remove what has no effect."
            )
        self._check_critic(config, where)
        if config.trainer == "trl":
            from algos.training.trl.baseline import check

            try:
                check(config)
            except SettingsError as error:
                raise SettingsError(f"{where}: {error}") from None
        if config.needs_reward_model and not self.has_reward_model:
            raise SettingsError(
                f"{where}: its rewards name reward_model; add the sections preferences and reward_model."
            )

    def _check_critic(self, config: RunConfig, where: str) -> None:
        """Refuse a critic of more layers than the model that this study builds has, or one from nowhere."""
        settings, model = config.hparams, from_dict(ModelConfig, self.model("base_model"), "base_model")
        path, layers = getattr(settings, "critic_path", None), getattr(settings, "critic_layers", None)
        _check_path(path, f"{where}.settings.critic_path")
        if layers is not None and path is None and model.path is None and layers > model.layers:
            raise SettingsError(
                f"{where}.settings: critic_layers is {layers}, but base_model.layers is {model.layers}; at most that "
                "many."
            )

    @property
    def has_reward_model(self) -> bool:
        return "preferences" in self.config and "reward_model" in self.config

    @property
    def has_rejection_sampling(self) -> bool:
        return "rejection_sampling" in self.config

    @property
    def has_distillation(self) -> bool:
        return "distillation" in self.config

    @property
    def has_rejection_twin(self) -> bool:
        """Whether TRL's SFTTrainer repeats rejection_sft."""
        return self.config.get("rejection_sampling", {}).get("twin", False)

    @property
    def has_expert_iteration(self) -> bool:
        return "expert_iteration" in self.config

    @property
    def students(self) -> dict:
        """The runs of on-policy distillation."""
        return self.config.get("on_policy_distillation", {}).get("runs", {})

    @property
    def teacher(self) -> str:
        """The run whose policy rejection sampling and distillation sample from."""
        return self.config["rejection_sampling"]["teacher"]

    @property
    def placement(self) -> dict:
        return {"device": self.config["device"], "dtype": self.config["dtype"]}

    def task(self) -> dict:
        return self.config["task"]

    def prompt(self) -> dict:
        return self.config.get("prompt", {})

    def model(self, section: str) -> dict:
        """base_model, or student: the student's own shape over the base model's."""
        if section == "base_model":
            return self.config["base_model"]
        return self.config.get("distillation", {}).get("student", {})

    def supervised(self, stage: str, seed: int) -> dict:
        """Settings of a stage of next-token training."""
        section = {
            "cold_start": self.config["cold_start"],
            "rejection_sft": self.config.get("rejection_sampling", {}).get("training", {}),
            "trl_rejection_sft": {**self.config.get("rejection_sampling", {}).get("training", {}), "trainer": "trl"},
        }.get(stage, self.config.get("distillation", {}).get("training", {}))
        return {**self.placement, **section, "seed": seed}

    def preferences(self) -> dict:
        return {**self.placement, **self._sampling, **self.config["preferences"], "seed": self.config["seed"]}

    def reward_model(self) -> dict:
        return {**self.placement, **self.config["reward_model"], "seed": self.config["seed"]}

    def rejection(self, seed: int) -> dict:
        return {**self.placement, **self._sampling, **self.config["rejection_sampling"]["sampling"], "seed": seed}

    def expert_iteration(self, seed: int) -> dict:
        section = self.config["expert_iteration"]
        return {
            **section,
            "sampling": {**self.placement, **self._sampling, **section.get("sampling", {}), "seed": seed},
            "training": {**self.placement, **section.get("training", {}), "seed": seed},
        }

    def student(self, name: str, seed: int) -> dict:
        """Settings of one run of on-policy distillation: the shared ones, then its own, then its seed."""
        run = self.students[name]
        if "twin_of" in run:
            return {**self.student(run["twin_of"], seed), "trainer": "trl"}
        shared = self.config["on_policy_distillation"].get("training", {})
        return {**self.placement, **self._sampling, **_merged(shared, run), "seed": seed}

    def evaluation(self) -> dict:
        return {**self.placement, **self._sampling, **self.config["evaluation"], "seed": self.config["seed"]}

    @property
    def _sampling(self) -> dict:
        """What all stages that sample share, unless they say otherwise."""
        return {
            key: self.config["rl"][key] for key in ("max_response_tokens", "temperature") if key in self.config["rl"]
        }

    def run(self, name: str, seed: int) -> dict:
        """Settings of one reinforcement-learning run: the shared ones, its algorithm's, its own, its seed."""
        run = self.runs[name]
        if "twin_of" in run:  # it samples with transformers whatever its run does, and its record says so
            repeated = {**self.run(run["twin_of"], seed), "trainer": "trl"}
            return {key: value for key, value in repeated.items() if key not in ("engine", "vllm")}
        shared = self.config["rl"]
        algorithm = dict(ALGORITHMS[run["algorithm"]].run) if run.get("algorithm") in ALGORITHMS else {}
        if "rewards" in algorithm:  # an algorithm adds to the study's rewards, a run replaces them
            algorithm["rewards"] = {**shared.get("rewards", {"correctness": 1.0}), **algorithm["rewards"]}
        return {**self.placement, **_merged({**shared, **algorithm}, run), "seed": seed}

    def needs_reward_model(self, name: str) -> bool:
        return self.run_config(name).needs_reward_model

    def resolved(self, stage: str, seed: int = 0) -> dict:
        """All settings of a stage or run, defaults filled in: what its command gets and its re-runs depend on.

        So a changed default makes again what it changes, and a default that is written out makes nothing again.
        """
        if stage in self.runs:
            return from_dict(RunConfig, self.run(stage, seed), f"runs.{stage}").resolved()
        cls, values = {
            "base_model": (ModelConfig, self.model("base_model")),
            "student": (ModelConfig, self.model("student")),
            "preferences": (PreferenceConfig, self.preferences),
            "reward_model": (RewardModelConfig, self.reward_model),
            "accept": (RejectionConfig, lambda: self.rejection(seed)),
            "expert_iteration": (ExpertIterationConfig, lambda: self.expert_iteration(seed)),
            **{name: (DistillationConfig, lambda: self.student(stage, seed)) for name in self.students},
            "evaluation": (EvaluationConfig, self.evaluation),
        }.get(stage, (SupervisedConfig, lambda: self.supervised(stage, seed)))
        return asdict(from_dict(cls, values() if callable(values) else values, stage))

    def checkpoints(self) -> dict[str, list[int]]:
        """Every evaluated run and its seeds, in the order of the report."""
        table = {"cold_start": [self.config["seed"]], **{name: self.seeds for name in self.runs}}
        if self.has_rejection_sampling:
            table["rejection_sft"] = self.seeds
        if self.has_rejection_twin:
            table["trl_rejection_sft"] = self.seeds
        if self.has_expert_iteration:
            table["expert_iteration"] = self.seeds
        if self.has_distillation:
            table |= {"student_cold": self.seeds, "student_distilled": self.seeds}
        return table | dict.fromkeys(self.students, self.seeds)

    @property
    def warnings(self) -> list[str]:
        """What the runs' settings make possible but is seldom meant; a twin's are those of its run."""
        return [
            f"runs.{name}: {warning}"
            for name, run in self.runs.items()
            if "twin_of" not in run
            for warning in self.run_config(name).warnings()
        ]

    def twins(self) -> dict[str, str]:
        """TRL's twins and the runs that they repeat."""
        runs = {**self.runs, **self.students}
        twins = {name: run["twin_of"] for name, run in runs.items() if "twin_of" in run}
        return twins | ({"trl_rejection_sft": "rejection_sft"} if self.has_rejection_twin else {})

    def report(self) -> dict:
        """What the report needs to know of the study besides the files on disk."""
        return {
            "study": self.config["study"],
            "source": self.source,
            "checkpoints": self.checkpoints(),
            "twins": self.twins(),
            "samples": asdict(from_dict(EvaluationConfig, self.evaluation(), "evaluation"))["samples"],
            "reward_model": self.has_reward_model,
            "task": self.config["task"]["name"],
            "seed": self.config["seed"],
        }


def _check_path(path: str | None, where: str) -> None:
    if path is not None and not Path(path).is_dir() and not re.fullmatch(HUB_ID, path):
        raise SettingsError(f"{where}: {path!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-0.5B.")


def _merged(shared: dict, own: dict) -> dict:
    """A run's own settings over the shared ones; their nested parts are merged likewise."""
    merged = {**shared, **own}
    for part in ("optimizer", "reward_settings", "lora", "vllm"):
        if own.get(part) is not None:  # null: none of it, whatever is shared
            merged[part] = {**(shared.get(part) or {}), **own[part]}
    return merged


def _refuse_keys_that_are_no_text(values: object, where: str) -> None:
    """YAML reads the keys 1 and on as a number and a truth value: name them before anything sorts them."""
    if isinstance(values, dict):
        for key, value in values.items():
            if not isinstance(key, str):
                raise SettingsError(f"{where}: the key {key!r} is no text; put it in quotes or choose another name.")
            _refuse_keys_that_are_no_text(value, key)


def _explain(error: jsonschema.ValidationError) -> str:
    """One sentence with the key, the value and what is allowed."""
    where = ".".join(str(part) for part in error.absolute_path) or "the study"
    if error.validator == "additionalProperties":
        allowed = list(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(allowed))[0]
        try:
            one_of(unknown, allowed, f"{where}, key")
        except SettingsError as better:
            return str(better)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where}: {missing[0]} is missing; required here: {', '.join(error.validator_value)}."
    if error.validator == "type":
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        advice = ""
        if isinstance(error.instance, str) and "number" in kinds:
            try:
                advice = f" YAML reads {error.instance} as text; write {float(error.instance):.1e}."
            except ValueError:
                advice = ""
        return f"{where} must be of type {' or '.join(kinds)}, got {error.instance!r}.{advice}"
    if error.validator == "enum":
        return f"{where}: {error.instance!r} is unknown. Allowed: {', '.join(map(str, error.validator_value))}."
    return f"{where}: {error.message}."


def load(path: str | Path) -> Study:
    """The study of a YAML file. Raises SettingsError if it cannot be read or is not valid."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {error}") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: expected a mapping of settings.")
    return Study(config, str(path))


if __name__ == "__main__":
    try:
        checked = load(sys.argv[1] if len(sys.argv) > 1 else "pipelines/config.yaml")
    except SettingsError as error:
        raise SystemExit(f"error: {error}") from None
    for checkpoint, seeds in checked.checkpoints().items():
        print(f"{checkpoint:<24} seeds {', '.join(map(str, seeds))}")
    for warning in checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
