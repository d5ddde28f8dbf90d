"""Mistakes in a study, found before anything runs. Every message names the stage, the key, the value and the fix."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.models.config import LINEAR_LAYERS, ModelConfig
from algos.training.rewards.config import PreferenceConfig
from algos.training.supervised.config import DistillationConfig
from algos.training.trl import check as trl
from evaluation.tuning.space import FEWEST_DEV, shown
from pipelines.graph import Stage
from pipelines.kinds import EVALUATED
from pipelines.plan import Plan, without

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
SAMPLED_PAIRS = [f.name for f in fields(PreferenceConfig) if f.name not in ("seed", "held_out_share")]
LONGEST = 255  # bytes of a folder's name
KL_SETTINGS = ("kl_estimator", "kl_in", "kl_direction", "kl_importance_weighted", "kl_target", "kl_horizon")


def check(plan: Plan) -> None:
    """Raise SettingsError for the first mistake among the models, the evaluation and the stages."""
    for section, names in (("models", plan.settings.models), ("stages", plan.stages)):
        for name in names:
            if len(name.encode()) > LONGEST:
                raise SettingsError(f"{section}.{name}: a folder's name has at most {LONGEST} bytes; shorten it.")
    for name, values in plan.settings.models.items():
        _check_model(plan, name, values)
    plan.evaluation()
    if plan.other_task is not None and plan.other_task == plan.settings.task:
        raise SettingsError("evaluation.other_task is the study's own task; name another one, or remove it.")
    for name in plan.trials:
        with _of_trial(plan.stages[name]):
            plan.parsed(name, plan.seeds_of(name)[0])
    for stage in plan.stages.values():
        with _of_trial(stage):
            _check_stage(plan, stage)
    for name in plan.tuned:
        _check_tuning(plan, name, f"stages.{name}")
    if not plan.evaluated:
        raise SettingsError(
            "stages: none is evaluated, so that the report would be empty; add one of kind "
            f"{' or '.join(EVALUATED)}, or remove `evaluate: false`."
        )


def _check_model(plan: Plan, name: str, values: dict) -> None:
    where = f"models.{name}"
    tokenizer = values.get("tokenizer")
    model = from_dict(ModelConfig, without(values, "tokenizer"), where)
    _check_path(model.path, f"{where}.path")
    if model.gguf is not None and not Path(model.gguf).is_file():
        raise SettingsError(f"{where}.gguf: there is no file {model.gguf!r}.")
    if tokenizer is not None:
        others = [other for other in plan.settings.models if other != name]
        one_of(tokenizer, others, f"{where}.tokenizer")
        if plan.tokenizer_of(tokenizer) is not None:
            raise SettingsError(f"{where}.tokenizer: {tokenizer} takes its own from another model; name that one.")
        if not model.built:
            raise SettingsError(f"{where}.tokenizer: a model that is loaded has its own tokenizer; remove this key.")
    elif plan.settings.prompt.chat and model.built:
        raise SettingsError(
            f"{where}: prompt.chat needs a chat template, which the tokenizer of a model that is built here does not "
            "have; give the model a `path` or another model's `tokenizer`, or set prompt.chat to false."
        )


@contextmanager
def _of_trial(stage: Stage) -> Iterator[None]:
    """What is wrong with a trial is said of the stage that is tuned, and names the trial."""
    try:
        yield
    except SettingsError as error:
        if stage.trial_of is None:
            raise
        message = str(error).replace(f"stages.{stage.name}", f"stages.{stage.trial_of}", 1)
        number = stage.name.rpartition("=")[2]
        raise SettingsError(f"{message} This is trial {number} of its `tune`, with {shown(stage.chosen)}.") from None


def _check_tuning(plan: Plan, name: str, where: str) -> None:
    """Refuse trials that run with the stage's seeds, that use other edges than each other, or with no dev split."""
    stage = plan.stages[name]
    assert stage.tune is not None
    shared = sorted({*stage.tune.seeds} & {*plan.seeds_of(name)})
    if shared:
        raise SettingsError(
            f"{where}.tune.seeds: {', '.join(map(str, shared))} is a seed of {name} too, which must run with fresh "
            "ones; choose others."
        )
    problems = plan.settings.task.dev
    if problems is not None and problems < FEWEST_DEV:
        raise SettingsError(
            f"task.dev is {problems}, but {name} is tuned on the dev split; at least {FEWEST_DEV} problems."
        )
    for trial in stage.trials:
        if plan.edges(trial) != plan.edges(name):
            changed = {key for key, _ in plan.edges(trial).items() ^ plan.edges(name).items()}
            raise SettingsError(
                f"{where}.tune.space: some trials use the edge {', '.join(sorted(changed))} and others do not; tune "
                "within one of the two, such as a kl_coef above 0."
            )


def _check_stage(plan: Plan, stage: Stage) -> None:
    where = f"stages.{stage.name}"
    seeds = plan.seeds_of(stage.name)
    for key, kinds in (("threads", int), ("evaluate", bool)):
        value = stage.values.get(key)
        if value is not None and type(value) is not kinds:
            raise SettingsError(
                f"{where}.{key} must be {'a whole number' if kinds is int else 'true or false'}, got {value!r}."
            )
    if plan.threads(stage.name) < 1:
        raise SettingsError(f"{where}.threads must be at least 1, got {plan.threads(stage.name)}.")
    if stage.values.get("evaluate") is not None and stage.kind not in EVALUATED:
        raise SettingsError(f"{where}.evaluate: a stage of kind {stage.kind} is never evaluated; remove this key.")
    config = plan.parsed(stage.name, seeds[0])
    _check_trainer(plan, stage, config, where)
    if isinstance(config, RunConfig):
        _check_rl(plan, stage, config, where)
    if isinstance(config, DistillationConfig):
        _check_distillation(stage, config, where)
    if stage.kind == "preferences":
        _check_preferences(plan, stage, where)
    _check_unused_edges(plan, stage, where)
    _check_tokenizers(plan, stage, where)
    for key, target in plan.edges(stage.name).items():
        for seed in seeds if target in plan.stages else ():
            plan.seed_of(target, seed, f"{where}.{key}", stage.name)
    if stage.values.get("path") is None:  # else the pairs are the user's own
        task = plan.settings.task
        check_sizes(config, {"train": task.train, "dev": task.dev}, where)


def _check_trainer(plan: Plan, stage: Stage, config, where: str) -> None:
    if getattr(config, "trainer", "own") != "trl":
        return
    try:
        (trl.check if isinstance(config, RunConfig) else trl.check_supervised)(config)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
    if "critic" in plan.edges(stage.name):
        raise SettingsError(
            f"{where}: trainer trl: the critic of the TRL baseline starts from the policy; write `critic: null`, or "
            "leave the TRL baseline out."
        )


def _check_rl(plan: Plan, stage: Stage, config: RunConfig, where: str) -> None:
    if idle := _idle_kl(plan, stage):
        raise SettingsError(
            f"{where}.settings: {', '.join(idle)} without effect, as kl_coef is 0: there is no KL term and no "
            "reference; set kl_coef above 0, or remove what has no effect."
        )
    if config.needs_reward_model and "reward_model" not in stage.edges:
        named = [name for name, other in plan.stages.items() if other.kind == "reward_model"]
        raise SettingsError(
            f"{where}: it needs a reward model; write `reward_model:` and a stage of that kind. There are: "
            f"{', '.join(named) or 'none'}."
        )
    _check_critic(plan, stage, config.hparams, where)
    model = plan.model(plan.origin(stage.name))
    if config.lora is not None and model.built:
        for target in config.lora.targets:
            one_of(target, LINEAR_LAYERS, f"{where}.lora.targets")


def _family(plan: Plan, stage: Stage) -> list[str]:
    """The stages that the `vary` or `tune` of a stage makes, itself among them; itself alone without one."""
    made = [s.name for s in plan.stages.values() if s is stage or (stage.varies and s.varies == stage.varies)]
    return [*made, *stage.trials]


def _idle_kl(plan: Plan, stage: Stage) -> list[str]:
    """The settings of a KL that a stage writes or varies where neither it nor a stage that varies with it has a KL."""
    written = plan.settings.stages[stage.varies or stage.name]
    own = {*(written.get("settings") or {}), *(key.removeprefix("settings.") for key in written.get("vary") or {})}
    if any(plan.parsed(name, plan.seeds_of(name)[0]).hparams.kl_coef for name in _family(plan, stage)):
        return []
    return [key for key in KL_SETTINGS if key in own]


def _check_critic(plan: Plan, stage: Stage, hparams, where: str) -> None:
    """Refuse a separate critic that cannot be made from the checkpoint that it begins with."""
    edges = plan.edges(stage.name)
    if getattr(hparams, "critic_init", None) == "reward_model":
        name = edges["reward_model"]
        head = plan.parsed(name, plan.seeds_of(name)[0]).head
        if head != hparams.critic_head:
            raise SettingsError(
                f"{where}.settings: critic_head is {hparams.critic_head}, but the critic begins as {name}, whose head "
                f"is {head}; make them equal."
            )
    layers = getattr(hparams, "critic_layers", None)
    origin = plan.origin(edges.get("critic", stage.edges["from"]))
    model = plan.model(origin)
    if layers is not None and model.built and layers > model.layers:
        raise SettingsError(
            f"{where}.settings: critic_layers is {layers}, but models.{origin}.layers is {model.layers}; at most "
            "that many."
        )


def _check_distillation(stage: Stage, config: DistillationConfig, where: str) -> None:
    if config.on_policy_share < 1 and "data" not in stage.edges:
        raise SettingsError(
            f"{where}: on_policy_share is {config.on_policy_share:g}, and the other steps need given responses; write "
            "`data:`, or set on_policy_share to 1."
        )


def _check_preferences(plan: Plan, stage: Stage, where: str) -> None:
    path = stage.values.get("path")
    if (path is None) == ("from" not in stage.edges):
        raise SettingsError(
            f"{where}: write `from:`, whose responses are compared, or `path:`, a file of your own pairs; one of them."
        )
    if path is not None and not (isinstance(path, str) and Path(path).is_file()):
        raise SettingsError(f"{where}.path: there is no file {path!r}.")
    written = plan.settings.stages[stage.varies or stage.name]
    idle = [key for key in SAMPLED_PAIRS if key in written or key in (written.get("vary") or {})]
    if path is not None and idle:
        raise SettingsError(
            f"{where}: {', '.join(idle)} without effect, as the pairs of `path` are read and not sampled; remove "
            f"{'it' if len(idle) == 1 else 'them'}."
        )


def _check_unused_edges(plan: Plan, stage: Stage, where: str) -> None:
    """Refuse an edge that a stage writes itself and that has no effect; one that it takes over is left out.

    An edge of a stage that varies needs to have an effect in one of the stages that `vary` makes.
    """
    for key in stage.edges:
        if key in stage.own and not any(key in plan.edges(name) for name in _family(plan, stage)):
            raise SettingsError(f"{where}.{key}: without effect, as {_why_unused(plan, stage, key)}; remove it.")


def _why_unused(plan: Plan, stage: Stage, key: str) -> str:
    if stage.kind == "distillation":
        return "on_policy_share is 1, so that all text is the student's own"
    return {
        "reward_model": "rewards do not name reward_model and no critic begins as one",
        "reference": "kl_coef is 0, so that there is no reference",
        "critic": "there is no separate critic that begins as a policy",
    }[key]


def _check_tokenizers(plan: Plan, stage: Stage, where: str) -> None:
    """Refuse a second model to whom a token id means something else than to the policy.

    Models that are built here have equal tokenizers where the sizes of their vocabularies are equal, as all tokenizers
    are trained on the same text. A loaded model's tokenizer is known to the stage alone.
    """
    for key, target in plan.edges(stage.name).items():
        if key not in ("reward_model", "reference", "critic", "teacher"):
            continue
        owners = [plan.tokenizer_owner(plan.origin(name)) for name in (stage.edges["from"], target)]
        own, other = map(plan.model, owners)
        if own.built and other.built and own.vocab_size != other.vocab_size:
            raise SettingsError(
                f"{where}.{key}: {target} has the tokenizer of models.{owners[1]}, but {stage.name} has that of "
                f"models.{owners[0]}; give both models one `tokenizer`."
            )


def check_sizes(config, sizes: dict[str, int | None], where: str) -> None:
    """Refuse a stage that asks for more problems than there are, before anything is trained; None: not known yet."""
    train, dev = sizes["train"], sizes["dev"]
    for part, owner in (("", config), ("sampling.", getattr(config, "sampling", None))):
        for key in ("prompts_per_step", "prompts"):
            size = getattr(owner, key, None)
            if train is not None and size is not None and size > train:
                raise SettingsError(f"{where}: {part}{key} is {size}, but task.train is {train}; at most that many.")
    if getattr(config, "dev_every", None) is not None and dev is not None and config.dev_problems > dev:
        raise SettingsError(
            f"{where}: dev_problems is {config.dev_problems}, but task.dev is {dev}; at most that many."
        )


def _check_path(path: str | None, where: str) -> None:
    if path is not None and not Path(path).is_dir() and not re.fullmatch(HUB_ID, path):
        raise SettingsError(f"{where}: {path!r} is neither a folder nor a hub id such as Qwen/Qwen2.5-0.5B.")
