"""Our settings in TRL 1.12's names: which of its trainers is the same estimator, with which options, or why none is.

Every setting of an algorithm stands in the table of its trainer with the option that it becomes and the values that
TRL has; one that is in no table, or a value that is not, is refused. Nothing is approximated.

What TRL divides by is where it differs most from what its options' names say. Over an optimizer step of B responses:

loss_type  divisor of a token of response i                         here
grpo       B T_i                                                    seq-mean-token-mean
luspo      B (with the token ratio)                                 seq-mean-token-sum
dr_grpo    B max_completion_length                                  seq-mean-token-sum-norm
dapo       tokens of the *rollout batch* / optimizer steps on it    token-mean, with one minibatch
bnpo       tokens of the micro-batch, then mean over micro-batches  token-mean, if the minibatch is one micro-batch
sapo       as grpo                                                  SAPO with seq-mean-token-mean
cispo      as dapo                                                  CISPO with token-mean and one minibatch

B counts masked responses, ours does not. `algos/training/trl/baseline.py` hands these options to TRL.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from algos.cispo import truncated_objective
from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import clipped_objective
from algos.pieces.estimator import Estimator
from algos.pieces.settings import SettingsError
from algos.reinforce import reinforce_objective
from algos.sapo import gated_objective
from algos.training.config import RunConfig

TRL_STD_EPSILON = 1.0e-4  # constant in trl.GRPOTrainer
NO_VALUE_CLIP = 1.0e9
NO_EFFECT_CLIP = 0.2  # for objectives without a clip: their ratio is 1, or TRL does not look at it
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}

LOSS_TYPES = {  # (objective, aggregation) -> loss_type; token-mean: see loss_type()
    (clipped_objective, "seq-mean-token-mean"): "grpo",
    (clipped_objective, "seq-mean-token-sum"): "luspo",
    (clipped_objective, "seq-mean-token-sum-norm"): "dr_grpo",
    (clipped_objective, "token-mean"): "dapo",
    (gated_objective, "seq-mean-token-mean"): "sapo",
    (truncated_objective, "token-mean"): "cispo",
}


@dataclass(frozen=True)
class Setting:
    """What one of our settings is in TRL."""

    option: str | None = None  # TRL's name of it; None: it has no choice
    values: dict | None = None  # our values -> TRL's; None: every value, the same
    why: str = ""  # what is said when a value is refused


def same(option: str) -> Setting:
    return Setting(option)


def choice(option: str, why: str, **values) -> Setting:
    return Setting(option, values, why)


def only(*values, why: str) -> Setting:
    return Setting(None, dict.fromkeys(values), why)


ANYWHERE = {  # what none of TRL's trainers has
    "credit": only("response", why="TRL has one advantage per response"),
    "kl_target": only(None, why="TRL's kl_coef is fixed"),
    "target_kl": only(None, why="TRL makes all updates of a rollout batch"),
    "keep": only("all", why="TRL trains on every response that it samples"),
    "correction": only("none", why="TRL corrects for its own sampler, with vLLM only"),
    "dual_clip": only(None, why="TRL has no dual clip"),
}

GROUP = {  # trl.GRPOTrainer
    **ANYWHERE,
    "baseline": only("group_mean", why="TRL's GRPO subtracts the mean of the group (its RLOO: leave_one_out)"),
    "scale": choice(
        "scale_rewards",
        "TRL's GRPO has no such scale",
        group_std="group",
        batch_std="batch",
        none="none",
    ),
    "std_ddof": only(1, why="TRL takes the sample standard deviation"),
    "std_epsilon": only(TRL_STD_EPSILON, why="TRL's std_epsilon is fixed"),
    "ratio": choice(
        "importance_sampling_level",
        "TRL's GRPO has no such ratio (its RLOO: product)",
        none="token",  # of reinforce.py, whose ratio is 1: see _check_on_policy
        token="token",
        sequence="sequence",
        sequence_token="sequence",  # the same in value and gradient where a response has one advantage
    ),
    "aggregation": Setting(),  # loss_type, with the objective: see loss_type and _check_group
    "aggregation_length": Setting(),
    "clip_low": same("epsilon"),
    "clip_high": same("epsilon_high"),
    "ratio_cap": same("delta"),
    "is_max": same("epsilon_high"),  # of loss_type cispo: the bound itself
    "tau_pos": same("sapo_temperature_pos"),
    "tau_neg": same("sapo_temperature_neg"),
    "kl_coef": same("beta"),
    "kl_in": only("loss", why="TRL's GRPO has its KL in the loss (its RLOO and PPO: in the reward)"),
    "kl_estimator": only("k3", why="TRL's GRPO estimates its KL by k3"),
    "kl_importance_weighted": same("use_bias_correction_kl"),
    "entropy_coef": same("entropy_coef"),
    "mask_truncated": same("mask_truncated_completions"),
}

LEAVE_ONE_OUT = {  # trl.RLOOTrainer
    **ANYWHERE,
    "baseline": only("leave_one_out", why="TRL's RLOO leaves the own response out"),
    "scale": only("none", why="TRL's RLOO does not divide its advantages"),
    "ratio": only("product", "none", why="TRL's RLOO has the ratio of whole responses"),
    "aggregation": Setting(),  # none with the ratio of whole responses: see _check_leave_one_out
    "clip_low": same("epsilon"),
    "clip_high": same("epsilon_high"),
    "ratio_cap": only(None, why="TRL's RLOO does not cap its ratio"),
    "kl_coef": same("beta"),
    "kl_in": only("reward", why="TRL's RLOO has its KL in the reward"),
    "kl_estimator": only("k1", why="TRL's RLOO estimates its KL by k1"),
    "entropy_coef": only(0.0, why="TRL's RLOO has no entropy bonus"),
    "mask_truncated": only(False, why="TRL's RLOO counts masked responses in its divisor, ours does not"),
}

CRITIC = {  # trl.experimental.ppo.PPOTrainer
    **ANYWHERE,
    "baseline": only("critic", why="TRL's PPO has a critic"),
    "scale": only("whiten", why="TRL's PPO always whitens its advantages"),
    "std_ddof": only(1, why="TRL takes the sample standard deviation"),
    "ratio": only("token", why="TRL's PPO has one ratio per token"),
    "aggregation": only("token-mean", why="TRL's PPO averages over tokens"),
    "clip_low": same("cliprange"),
    "clip_high": Setting(),  # the same as clip_low: see _check_critic
    "ratio_cap": only(None, why="TRL's PPO does not cap its ratio"),
    "kl_coef": same("kl_coef"),
    "kl_in": only("reward", why="TRL's PPO has its KL in the reward"),
    "kl_estimator": choice("kl_estimator", "TRL's PPO has no such estimator", k1="k1", k3="k3"),
    "entropy_coef": only(0.0, why="TRL's PPO has no entropy bonus"),
    "mask_truncated": only(False, why="TRL's PPO masks no response"),
    "gamma": Setting(
        "gamma",
        {1.0: 1.0},
        "TRL's PPO rewards one position later, the same estimator only with gae_lambda 1 and gamma 1",
    ),
    "gae_lambda": Setting(
        "lam",
        {1.0: 1.0},
        "TRL's PPO rewards one position later, the same estimator only with gae_lambda 1 and gamma 1",
    ),
    "gae_lambda_critic": only(None, 1.0, why="TRL's PPO has one lambda for policy and critic"),
    "whiten_rewards": only(False, why="TRL's PPO whitens over one more position per response"),
    "value_clip": same("cliprange_value"),
    "value_coef": same("vf_coef"),
    "critic": only("separate", why="TRL's PPO has a critic of its own"),
    "critic_head": Setting(),  # the module is built here
    "critic_detach": Setting(),
    "critic_init": only("policy", why="the twin's critic starts from the policy"),
    "critic_layers": only(None, why="the twin's critic is as large as the policy"),
    "value_warmup": only(0, why="TRL's PPO trains policy and critic from the first step"),
}


@dataclass(frozen=True)
class Twin:
    """One of TRL's trainers."""

    kind: str  # grpo, rloo or ppo
    table: dict[str, Setting]
    objectives: tuple  # of ours, that it has
    check: Callable  # (config, settings): what the table cannot say


def without_effect(settings: Estimator) -> set[str]:
    """Settings that change nothing given the others, so that any value will do."""
    names = {"kl_horizon", "max_rounds", "correction_low", "correction_high", "kl_direction"}  # of what is refused
    if settings.scale == "none":
        names |= {"std_ddof"}
    if settings.scale in ("none", "whiten"):
        names |= {"std_epsilon"}
    if not settings.kl_coef:
        names |= {"kl_in", "kl_estimator", "kl_importance_weighted"}
    if settings.kl_in == "reward":
        names |= {"kl_importance_weighted"}
    if settings.has_critic:
        names |= {"credit"}
    if settings.aggregation != "seq-mean-token-sum-norm":
        names |= {"aggregation_length"}
    return names


def check(config: RunConfig) -> None:
    """Raise SettingsError unless TRL can run these settings as the same estimator; it names the setting to change."""
    _check_run(config)
    twin, settings = twin_of(config), config.hparams
    for name in (f.name for f in fields(settings) if f.name not in without_effect(settings)):
        value, known = getattr(settings, name), twin.table.get(name)
        if known is None:
            raise SettingsError(
                f"trainer trl: TRL's {twin.kind.upper()}Trainer has no {name}; train {config.algorithm} without it."
            )
        if known.values is not None and value not in known.values:
            refuse(known.why, value, f"set settings.{name} to {' or '.join(map(_text, known.values))}")
    twin.check(config, settings)


def refuse(why: str, value, fix: str) -> None:
    raise SettingsError(f"trainer trl: {why}, got {_text(value)}; {fix}.")


def _text(value) -> str:
    """A value as a study file spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_run(config: RunConfig) -> None:
    if config.needs_reward_model or config.reward_scale_running:
        raise SettingsError(
            "trainer trl: only rule rewards are handed to TRL, not reward_model, nor reward_scale_running."
        )
    if config.reward_combination == "normalize_each":
        raise SettingsError(
            "trainer trl: reward_combination normalize_each is not handed to TRL, which gets one number per response "
            "and whose own version normalizes their sum over the batch as well."
        )
    if config.budget_tokens is not None:
        raise SettingsError(
            f"trainer trl: TRL counts steps, not tokens, got budget_tokens {config.budget_tokens}; use steps alone."
        )
    if config.minibatch_of == "prompts" and config.minibatches > 1:
        refuse(
            "TRL shuffles single responses into minibatches",
            "minibatch_of prompts",
            "set it to responses, or minibatches to 1",
        )
    for name, idle in (("lora", None), ("compile", False), ("offload", ())):
        if getattr(config, name) != idle:
            shown = "[]" if idle == () else _text(idle)
            raise SettingsError(
                f"trainer trl: {name} is not handed to TRL; set it to {shown} for the run that the twin repeats, or "
                "leave the twin out."
            )
    if config.hparams.has_critic:
        _check_optimizer(config)
        _check_passes(config)


def _check_optimizer(config: RunConfig) -> None:
    """Of the twin with a critic, whose loop is not that of transformers.Trainer."""
    if config.optimizer.name != "adamw":
        raise SettingsError(
            "trainer trl: the twin of ppo has one AdamW for policy and critic, got optimizer.name "
            f"{config.optimizer.name}; use adamw."
        )
    if config.optimizer.schedule != "constant" or config.optimizer.warmup_steps:
        raise SettingsError(
            "trainer trl: TRL's PPO steps its schedule once per rollout batch; use schedule: constant, no warm-up."
        )


def _check_passes(config: RunConfig) -> None:
    """Of the twin with a critic."""
    if config.dtype == "bfloat16":
        refuse(
            "TRL's PPO samples in float32 what it trains in bfloat16, so that its ratios do not start at 1",
            "dtype bfloat16",
            "set dtype to float32, or leave the twin out",
        )
    if config.gradient_checkpointing:
        refuse(
            "TRL's PPO does not switch gradient checkpointing on",
            "gradient_checkpointing true",
            "set it to false for the run that it repeats, or leave the twin out",
        )


def _check_on_policy(config: RunConfig) -> None:
    if config.algorithm_entry.objective is reinforce_objective and config.updates_per_step != 1:
        refuse(
            "TRL's loss has a ratio, without effect on the first optimizer step of a rollout batch only",
            f"epochs x minibatches = {config.updates_per_step}",
            f"set both to 1 for {config.algorithm}",
        )


def _check_group(config: RunConfig, settings: Estimator) -> None:
    _check_on_policy(config)
    kind = loss_type(config)
    if kind is None:
        possible = [
            aggregation for objective, aggregation in LOSS_TYPES if objective is config.algorithm_entry.objective
        ]
        refuse(
            "TRL's GRPO does not have this objective with this aggregation",
            settings.aggregation,
            f"set settings.aggregation to {' or '.join(possible)}",
        )
    if kind == "cispo" and config.minibatches > 1:
        refuse(
            "TRL's cispo divides by the rollout batch's tokens, ours by the minibatch's",
            f"minibatches {config.minibatches}",
            "set minibatches to 1 (and epochs above 1, so that ratios leave 1)",
        )
    if kind == "dr_grpo" and settings.aggregation_length != config.max_response_tokens:
        refuse(
            "TRL's dr_grpo divides by the length limit",
            settings.aggregation_length,
            "set settings.aggregation_length to null",
        )
    if settings.kl_coef and settings.kl_importance_weighted and settings.ratio.startswith("sequence"):
        refuse(
            f"TRL multiplies the KL by the ratio of the loss, {settings.ratio}, ours by the token's",
            "kl_importance_weighted true",
            "set settings.kl_importance_weighted to false",
        )
    if settings.mask_truncated and settings.aggregation != "token-mean":
        refuse(
            "TRL counts masked responses in its divisor, ours does not: mask_truncated needs token-mean",
            settings.aggregation,
            "set settings.aggregation to token-mean, or mask_truncated to false",
        )
    if settings.entropy_coef and settings.aggregation != "token-mean":
        refuse(
            "TRL averages the entropy over tokens, whatever its loss_type",
            settings.aggregation,
            "set settings.aggregation to token-mean, or entropy_coef to 0",
        )


def _check_leave_one_out(config: RunConfig, settings: Estimator) -> None:
    _check_on_policy(config)
    if config.algorithm_entry.objective is reinforce_objective and settings.aggregation != "seq-mean-token-sum":
        refuse("TRL's RLOO sums over tokens", settings.aggregation, "set settings.aggregation to seq-mean-token-sum")


def _check_critic(config: RunConfig, settings: Estimator) -> None:
    if settings.clip_low != settings.clip_high:
        raise SettingsError(
            f"trainer trl: TRL's PPO has one clip range, got clip_low {settings.clip_low} and clip_high "
            f"{settings.clip_high}; set both to one value."
        )


TWINS = {
    "grpo": Twin(
        "grpo", GROUP, (clipped_objective, gated_objective, truncated_objective, reinforce_objective), _check_group
    ),
    "rloo": Twin("rloo", LEAVE_ONE_OUT, (clipped_objective, reinforce_objective), _check_leave_one_out),
    "ppo": Twin("ppo", CRITIC, (clipped_objective,), _check_critic),
}


def twin_of(config: RunConfig) -> Twin:
    """The TRL trainer for a run, whose settings may still be refused. Raises SettingsError if none can be it."""
    entry, settings = config.algorithm_entry, config.hparams
    kind = "ppo" if settings.has_critic else "rloo" if settings.baseline == "leave_one_out" else "grpo"
    own = entry.advantages is Algorithm.advantages and entry.adapt is Algorithm.adapt and entry.update is None
    if not own or entry.objective not in TWINS[kind].objectives:
        raise SettingsError(
            f"trainer trl: there is no TRL twin of {config.algorithm!r}: TRL's {kind.upper()}Trainer has not its "
            f"objective, {entry.term(settings)}."
        )
    return TWINS[kind]


def loss_type(config: RunConfig) -> str | None:
    """TRL's name for a group method's objective and aggregation; None if it has none.

    reinforce.py's objective has the gradient of the clipped one where the ratio is 1. With several minibatches TRL's
    dapo is not our token-mean, while its bnpo is, if the minibatch is one micro-batch.
    """
    objective = config.algorithm_entry.objective
    if objective is reinforce_objective:
        objective = clipped_objective
    kind = LOSS_TYPES.get((objective, config.hparams.aggregation))
    return "bnpo" if kind == "dapo" and config.minibatches > 1 else kind


def translated(config: RunConfig, table: dict[str, Setting]) -> dict:
    """The run's settings as TRL's options, by the table."""
    settings, options = config.hparams, {}
    for name, known in table.items():
        if known.option is not None and hasattr(settings, name):
            value = getattr(settings, name)
            options[known.option] = value if known.values is None else known.values.get(value, value)
    return options


def shared_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of transformers.TrainingArguments that all of TRL's trainers take."""
    optimizer = config.optimizer
    return {
        "output_dir": str(Path(out) / "trl"),
        "seed": config.seed,
        "data_seed": config.seed,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": SCHEDULERS[optimizer.schedule],
        "warmup_steps": optimizer.warmup_steps,
        "optim": "adamw_torch",
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "adam_epsilon": optimizer.adam_epsilon,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm or 0.0,
        "temperature": config.temperature,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": config.dtype == "bfloat16",  # autocast of float32 weights, which are then their own masters
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device.type != "cpu",
    }


def _sampling_arguments(config: RunConfig, out: str, device, micro: int) -> dict:
    """Options that trl.GRPOConfig and trl.RLOOConfig share; micro responses go through the model at once."""
    minibatch = config.responses_per_step // config.minibatches
    return {
        **shared_arguments(config, out, device),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": minibatch // micro,
        "steps_per_generation": config.responses_per_step // micro,
        "num_iterations": config.epochs,
        "num_generations": config.group_size,
        "max_completion_length": config.max_response_tokens,
        "max_steps": config.steps * config.minibatches * config.epochs,
        "logging_steps": config.minibatches * config.epochs,
        "shuffle_dataset": False,
        "epsilon": NO_EFFECT_CLIP,
        "epsilon_high": NO_EFFECT_CLIP,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "mask_truncated_completions": False,
        "sync_ref_model": False,
        "disable_dropout": True,
        "use_vllm": False,
        "remove_unused_columns": False,
        "log_completions": False,
    }


def grpo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.GRPOConfig that make it the run's estimator."""
    minibatch = config.responses_per_step // config.minibatches
    micro = math.gcd(minibatch, config.micro_batch_size)  # equal micro-batches, over which TRL's loss adds up exactly
    kind = loss_type(config)
    if kind == "bnpo" or config.hparams.entropy_coef:  # these are means over the micro-batch's tokens
        micro = minibatch
    return {
        **_sampling_arguments(config, out, device, micro),
        "loss_type": kind,
        "multi_objective_aggregation": "sum_then_normalize",
        "delta": None,
        "use_adaptive_entropy": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_liger_kernel": False,
        **translated(config, GROUP),
    }


def rloo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.RLOOConfig that make it the run's estimator."""
    micro = math.gcd(config.responses_per_step // config.minibatches, config.micro_batch_size)
    return {
        **_sampling_arguments(config, out, device, micro),
        "normalize_advantages": False,
        "reward_clip_range": None,
        **translated(config, LEAVE_ONE_OUT),
    }


def ppo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.experimental.ppo.PPOConfig that make it the run's estimator."""
    options = translated(config, CRITIC)
    if options["cliprange_value"] is None:
        options["cliprange_value"] = NO_VALUE_CLIP
    return {
        **shared_arguments(config, out, device),
        "per_device_train_batch_size": config.responses_per_step,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": config.minibatches,
        "num_ppo_epochs": config.epochs,
        "total_episodes": config.steps * config.responses_per_step,
        "local_rollout_forward_batch_size": config.responses_per_step,
        "response_length": config.max_response_tokens,
        "stop_token": "eos",
        "missing_eos_penalty": None,
        "num_sample_generations": 0,
        "logging_steps": 1,
        "whiten_rewards": False,
        **options,
    }
