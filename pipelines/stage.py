"""What can be asked of an RL stage of a study before it runs: its estimator, its memory, its benchmark."""

from pathlib import Path
from tempfile import TemporaryDirectory

from algos import ALGORITHMS
from algos.describe import page
from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.update.needs import ratio_denominator
from pipelines.study import Study


def rl_stage(study: Study, name: str | None) -> RunConfig:
    """The settings of an RL stage, with the first of its seeds."""
    if name is None:
        raise SettingsError(f"STAGE is missing. RL stages of {study.source}: {', '.join(study.of_kind('rl'))}.")
    one_of(name, study.of_kind("rl"), "STAGE")
    return study.parsed(name, study.seeds_of(name)[0])


def describe(study: Study, name: str | None) -> str:
    """The page of a stage's algorithm, with the stage's own settings."""
    run = rl_stage(study, name)
    loop = {key: getattr(run, key) for key in ("epochs", "minibatches", "group_size", "prompts_per_step", "rewards")}
    loop |= _rate(run) | _old_policy(run)
    text = page(run.algorithm, ALGORITHMS[run.algorithm], ALGORITHMS, run.hparams, loop, run.warnings())
    return f"{name} ({run.algorithm}{', by TRL' if run.trainer == 'trl' else ''})\n{text}"


def _rate(run: RunConfig) -> dict:
    return {"learning_rate": run.optimizer.learning_rate}


def _old_policy(run: RunConfig) -> dict:
    """Which weights sample, and which the ratios are divided by, in place of what the algorithm leaves open."""
    of = ratio_denominator(run)
    return ({"old_policy": of["ratio_denominator"]} if of else {}) | {"sync_every": run.sync_every}


def memory(study: Study, name: str | None, words: list[str]) -> str:
    """The predicted peak of a stage; prompts as long as the stage admits, unless the words say how long they are."""
    from evaluation.memory.__main__ import flags, parser
    from evaluation.memory.text import settings_report

    run = rl_stage(study, name)
    given = vars(parser().parse_args(words))
    if unused := flags(given.keys() - {"prompt_tokens"}):
        raise SettingsError(f"{unused} would have no effect: settings and model are those of stage {name}.")
    model, on_reference = memory_arguments(study, name)
    return settings_report(run, model, given.get("prompt_tokens"), on_reference, f"{name} of {study.source}")


def peaks(study: Study, gigabytes: float) -> list[dict]:
    """The predicted peak of each RL stage of this project's trainer on a GPU of this size (1e9 bytes), as rows."""
    from evaluation.memory.closed_form import GB, config_of
    from evaluation.memory.plan import peak_with_vllm, settings_phases

    rows = []
    for name in study.of_kind("rl"):
        run = rl_stage(study, name)
        if run.trainer == "own":
            model, on_reference = memory_arguments(study, name)
            phases = settings_phases(run, config_of(model), head_on_reference=on_reference)
            peak = peak_with_vllm(run, phases, gigabytes * GB) / GB
            rows.append({"study": study.name, "gpu_gigabytes": gigabytes, "stage": name, "peak_gigabytes": peak})
    most = max((row["peak_gigabytes"] for row in rows), default=0)
    return [{**row, "largest": row["peak_gigabytes"] == most} for row in rows]


def bench(study: Study, name: str | None, words: list[str]) -> None:
    """Measure parts of the benchmark with a stage's settings, task and model."""
    from evaluation.bench import command, parts

    rl_stage(study, name)
    given = [word for word in words if word.partition("=")[0] in ("--settings", "--task", "--model")]
    if given:
        raise SettingsError(f"{given[0]} would have no effect: settings, task and model are those of stage {name}.")
    args, run = command.arguments(words), _steps_alone(study, name)
    model = only_shape(study, name)
    with TemporaryDirectory(prefix="bench-") as scratch:
        made = parts.Bench(Path(scratch), run=run, runs=_runs(study), task=study.task(), model=model)
        made.loaded, made.prompt = not from_dict(ModelConfig, model, "model").built, study.prompt()
        made.steps, made.threads, made.device_name, made.toy = args.steps, args.threads, args.device, args.toy
        command.measure(args, made)


def _runs(study: Study) -> dict[str, dict]:
    """For each algorithm of a study the settings of its first stage."""
    runs: dict[str, dict] = {}
    for name in study.of_kind("rl"):
        settings = _steps_alone(study, name)
        runs.setdefault(settings["algorithm"], settings)
    return runs


def _steps_alone(study: Study, name: str) -> dict:
    """The settings of a stage, without the dev problems that it answers between its steps."""
    return {**study.resolved(name, study.seeds_of(name)[0]), "dev_every": None}


def memory_arguments(study: Study, name: str) -> tuple[ModelConfig | str, bool]:
    """The model of an RL stage, and whether its reward model is a head on the backbone of its reference."""
    model = from_dict(ModelConfig, only_shape(study, name), "model")
    on_reference = False
    if "reward_model" in study.edges(name):
        reward_model = study.edges(name)["reward_model"]
        same = study.stages[reward_model].edges["from"] == study.edges(name).get("reference", study.edges(name)["from"])
        on_reference = same and study.parsed(reward_model, study.seeds_of(reward_model)[0]).freeze_backbone
    return model.path or model, on_reference


def only_shape(study: Study, name: str) -> dict:
    """The shape of the models of a stage. Raises SettingsError if they are not all of the policy's."""
    origin = study.origin(name)
    for key, target in study.edges(name).items():
        other = study.origin(target)
        if _shape(study, other) != _shape(study, origin):
            raise SettingsError(
                f"STAGE: all models of a stage are taken to be of one shape, but the {key} of {name} descends from "
                f"models.{other}, and its policy from models.{origin}; choose another stage."
            )
    return _shape(study, origin)


def _shape(study: Study, model: str) -> dict:
    """The settings of a model, with the vocabulary of the model whose tokenizer it takes."""
    values, owner = study.model_settings(model), study.tokenizer_of(model)
    if owner is None:
        return values
    from evaluation.memory.closed_form import config_of

    config = config_of(study.model(owner))
    return {**values, "vocab_size": config.get_text_config().vocab_size}
