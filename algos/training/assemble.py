"""Settings, problems and checkpoints -> the models of a run with their optimizers, the Run, and its record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from algos.describe import estimator
from algos.pieces.settings import SettingsError
from algos.training.config import RunConfig
from algos.training.models.checkpoints import ScalarModel, check_response_fits, load_policy
from algos.training.models.critics import SeparateCritic, check_critic_checkpoint, check_tokenizer, make_critic
from algos.training.models.lora import WithoutAdapters, add_adapters
from algos.training.models.packing import shares_prompts
from algos.training.models.passes import compile_passes, recompute_activations
from algos.training.models.tokens import encode_prompts, load_tokenizer
from algos.training.rewards.shared_pass import drop_equal_backbone
from algos.training.run import Inputs, Run, State
from algos.training.sampling.behavior import frozen_copy
from algos.training.sampling.engines import make_engine
from algos.training.stage.record import Record, States
from algos.training.update import offload
from algos.training.update.needs import ratio_denominator
from algos.training.update.optimize import make_optimizer
from algos.training.update.update import Learner
from evaluation.tasks import check_prompts, check_rows
from evaluation.tasks.files import read_jsonl

Models = dict[str, tuple[Any, Any]]  # by name: (model, its optimizer or None)
NO_REFERENCE = "--reference is given, but kl_coef is 0, so that nothing is compared with the reference."


@dataclass(frozen=True)
class Checkpoints:
    """The folders (or hub ids) that a run's models are loaded from."""

    policy: str  # also the tokenizer's
    reward_model: str | None = None
    reference: str | None = None  # the frozen reference; None: the policy's checkpoint
    critic: str | None = None  # where a separate critic starts; None: the policy's checkpoint

    @property
    def own_reference(self) -> bool:
        """Whether the reference is another checkpoint than the policy's."""
        return self.reference is not None and self.reference != self.policy


def read_problems(path: str, config: RunConfig) -> list[dict]:
    """The problems of a run. Raises SettingsError for rows that are none, or for too few of them."""
    problems = read_jsonl(path)
    check_rows(problems, path)
    check_prompts(problems, path, ids=False)
    if config.prompts_per_step > len(problems):
        raise SettingsError(f"prompts_per_step is {config.prompts_per_step}, but {path} has {len(problems)} problems.")
    return problems


def start_record(
    config: RunConfig, paths: Checkpoints, out: str, name: str, threads: int, device, saves: States | None = None
) -> Record:
    """The record of a run, by this project's trainer or by TRL's, which saves no states."""
    return Record(
        out,
        "rl",
        config.resolved(),
        threads,
        saves,
        algorithm=config.algorithm,
        trainer=config.trainer,
        name=name,
        seed=config.seed,
        estimator={**estimator(config.hparams), **ratio_denominator(config)},
        warnings=warnings(config, paths, device),
        device=str(device),
    )


def warnings(config: RunConfig, paths: Checkpoints, device: torch.device) -> list[str]:
    """What is possible but seldom meant, for the record. What depends on more than the settings is printed too."""
    more = [offload.NO_EFFECT] if config.offload and not offload.worthwhile(device) else []
    more += [NO_REFERENCE] if paths.own_reference and not config.hparams.needs_reference else []
    for warning in more:
        print(f"warning: {warning}")
    return config.warnings() + more


def make_run(
    config: RunConfig, paths: Checkpoints, problems: list[dict], device: torch.device, dev: Sequence[dict] = ()
) -> Run:
    """A run before its first step. Draws with torch's global generator, which the caller has seeded.

    dev: problems that its engine can answer, too.
    """
    state_generator = torch.Generator(device).manual_seed(config.seed)
    tokenizer = load_tokenizer(paths.policy)
    prompts, others = (
        encode_prompts(tokenizer, [p["prompt"] for p in rows], config.max_prompt_tokens) for rows in (problems, dev)
    )
    learner, models = make_learner(config, paths, device)
    longest = max(len(prompt) for prompt in prompts + others)
    for name, (model, _) in models.items():
        if name == "critic" and not isinstance(model, SeparateCritic):
            continue  # it stands on the policy
        check_response_fits(model, longest, config.max_response_tokens, "model" if name == "policy" else name)
    reward_model = models["reward_model"][0] if "reward_model" in models else None
    engine = make_engine(config, tokenizer, learner.policy, paths.policy, prompts + others)
    return Run(
        config,
        State.at_start(config, learner, state_generator, len(problems)),
        Inputs(problems, prompts, tokenizer, models, reward_model),
        engine,
        offload.make_phases(config, device, learner, reward_model),
    )


def make_learner(config: RunConfig, paths: Checkpoints, device) -> tuple[Learner, Models]:
    """The models of a run with their optimizers; and all of them by name."""
    hparams = config.hparams
    check_critic_checkpoint(hparams, paths.critic)
    policy = load_policy(paths.policy, device, config.dtype)
    path = other_reference(config, paths)
    reference = None if path is None else load_policy(path, device, config.dtype).requires_grad_(False)
    reward_model = load_reward_model(config, paths.reward_model, device)
    if reward_model is not None and hparams.needs_reference:
        drop_equal_backbone(reward_model, policy if reference is None else reference)
    if config.lora is not None:
        add_adapters(policy, config.lora)
    behavior = frozen_copy(policy) if config.sync_every > 1 else None
    total = config.steps * config.updates_per_step
    warmup = min(getattr(hparams, "value_warmup", 0), config.steps - 1) * config.updates_per_step
    learner = Learner(policy, *make_optimizer(policy, config.optimizer, total - warmup))
    models: Models = {"policy": (policy, learner.optimizer)}
    if behavior is not None:
        learner.behavior = behavior
        models["behavior"] = (behavior, None)
    if hparams.has_critic:
        learner.critic = make_critic(hparams, policy, paths, config.seed, config.dtype)
        learner.critic_optimizer, learner.critic_scheduler = make_optimizer(
            learner.critic, config.optimizer, total, config.critic_learning_rate
        )
        models["critic"] = (learner.critic, learner.critic_optimizer)
    if hparams.needs_reference:
        learner.reference = _starting_policy(config, paths, policy, device) if reference is None else reference
        if not isinstance(learner.reference, WithoutAdapters):
            models["reference"] = (learner.reference, None)
    if reward_model is not None:
        models["reward_model"] = (reward_model, None)
    if config.share_prompts:
        learner.share_prompts = shares_prompts(*(backbone for backbone, _ in backbones(models)))
    arrange_passes(config, models, device)
    return learner, models


def other_reference(config: RunConfig, paths: Checkpoints) -> str | None:
    """The checkpoint of a run's frozen reference, if it is another one than the policy's; else None.

    Raises SettingsError unless it has the policy's tokenizer.
    """
    if not (config.hparams.needs_reference and paths.own_reference):
        return None
    assert paths.reference is not None
    check_tokenizer(paths.reference, paths.policy, "reference")
    return paths.reference


def _starting_policy(config: RunConfig, paths: Checkpoints, policy, device):
    """The policy as it starts: itself without its adapters, or loaded a second time."""
    if config.lora is not None:
        return WithoutAdapters(policy)
    return load_policy(paths.policy, device, config.dtype).requires_grad_(False)


def load_reward_model(config: RunConfig, path: str | None, device) -> ScalarModel | None:
    """The frozen reward model of a run that has one among its rewards."""
    if "reward_model" not in config.rewards:
        return None
    if path is None:
        raise SettingsError("rewards: reward_model is named, but no reward model was given (--reward-model).")
    return ScalarModel.load(path, device, config.dtype).requires_grad_(False)


def backbones(models: Models) -> Iterator[tuple[Any, bool]]:
    """The backbones among a run's models, and whether each is trained. A head on another model's states has none."""
    for model, optimizer in models.values():
        model = model.model if isinstance(model, SeparateCritic) else model
        backbone = model.backbone if isinstance(model, ScalarModel) else getattr(model, "base_model", None)
        if backbone is not None:
            yield backbone, optimizer is not None


def arrange_passes(config: RunConfig, models: Models, device) -> None:
    """Gradient checkpointing of the trained backbones; compilation of all, as the settings say."""
    for backbone, trained in backbones(models):
        if config.gradient_checkpointing and trained:
            recompute_activations(backbone)
        if config.compile:
            compile_passes(backbone, device)
