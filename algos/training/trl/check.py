"""What TRL cannot do for a run is refused here, by the name of the setting that has to change."""

from dataclasses import fields

from algos.pieces.clipping import Clipped
from algos.pieces.estimator import Estimator
from algos.pieces.settings import SettingsError
from algos.reinforce import reinforce_objective
from algos.training.config import RunConfig
from algos.training.supervised.config import DistillationConfig, SupervisedConfig
from algos.training.trl.trainers import LOSS_TYPES, loss_type, trainer_of

REFUSED_ANYWAY = {"kl_horizon", "max_rounds", "correction_low", "correction_high", "kl_direction"}


def check(config: RunConfig) -> None:
    """Raise SettingsError unless TRL can run these settings as the same estimator; it names the setting to change."""
    _check_run(config)
    trainer, hparams = trainer_of(config), config.hparams
    for name in (f.name for f in fields(hparams) if f.name not in without_effect(hparams)):
        value, known = getattr(hparams, name), trainer.table.get(name)
        if known is None:
            raise SettingsError(
                f"trainer trl: TRL's {trainer.name} has no {name}; train {config.algorithm} without it."
            )
        if known.values is not None and value not in known.values:
            refuse(known.why, value, f"set settings.{name} to {' or '.join(map(_text, known.values))}")
    {"grpo": _check_group, "rloo": _check_leave_one_out, "ppo": _check_critic}[trainer.kind](config, hparams)


def check_supervised(config: SupervisedConfig | DistillationConfig) -> None:
    """Raise SettingsError unless TRL can run these settings as the same estimator."""
    if isinstance(config, SupervisedConfig):
        return
    if config.objective != "divergence":
        raise SettingsError(f"trainer trl: TRL's GKD has the objective divergence only, got {config.objective}.")
    if config.temperature != 1:
        raise SettingsError(
            "trainer trl: TRL's GKD samples at its temperature but compares the distributions at 1; set temperature to "
            f"1.0, got {config.temperature}."
        )
    if config.budget_tokens is not None:
        raise SettingsError(
            f"trainer trl: TRL counts steps, not tokens, got budget_tokens {config.budget_tokens}; use steps alone."
        )


def without_effect(hparams: Estimator) -> set[str]:
    """Hyperparameters that change nothing given the others, so that every value of them is allowed."""
    names = set(REFUSED_ANYWAY)  # they belong to settings that are refused
    if hparams.scale == "none":
        names |= {"std_ddof"}
    if hparams.scale in ("none", "whiten"):
        names |= {"std_epsilon"}
    if not hparams.kl_coef:
        names |= {"kl_in", "kl_estimator", "kl_importance_weighted"}
    if hparams.kl_in == "reward":
        names |= {"kl_importance_weighted"}
    if hparams.has_critic:
        names |= {"credit"}
    if hparams.aggregation != "seq-mean-token-sum-norm":
        names |= {"aggregation_length"}
    return names


def refuse(why: str, value, fix: str) -> None:
    raise SettingsError(f"trainer trl: {why}, got {_text(value)}; {fix}.")


def _text(value) -> str:
    """A value as a study file spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_run(config: RunConfig) -> None:
    """What no trainer of TRL is given: learned rewards, token budgets, and what makes a run smaller or faster."""
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
    if config.sync_every > 1:
        refuse(
            "TRL's trainer samples with the policy's own weights in every step",
            f"sync_every {config.sync_every}",
            "set it to 1, or leave the TRL baseline out",
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
                f"trainer trl: {name} is not handed to TRL; set it to {shown} for the run that the TRL baseline "
                "repeats, or leave the TRL baseline out."
            )
    if config.hparams.has_critic:
        _check_optimizer(config)
        _check_passes(config)


def _check_optimizer(config: RunConfig) -> None:
    """With a critic, whose training loop is not that of transformers.Trainer."""
    if config.optimizer.name != "adamw":
        raise SettingsError(
            "trainer trl: the TRL baseline of ppo has one AdamW for policy and critic, got optimizer.name "
            f"{config.optimizer.name}; use adamw."
        )
    if config.optimizer.schedule != "constant" or config.optimizer.warmup_steps:
        raise SettingsError(
            "trainer trl: TRL's PPO steps its schedule once per rollout batch; use schedule: constant, no warm-up."
        )


def _check_passes(config: RunConfig) -> None:
    """With a critic: the precision and the memory of its passes."""
    if config.dtype == "bfloat16":
        refuse(
            "TRL's PPO samples in float32 and trains in bfloat16, so that its ratios do not start at 1",
            "dtype bfloat16",
            "set dtype to float32, or leave the TRL baseline out",
        )
    if config.gradient_checkpointing:
        refuse(
            "TRL's PPO does not switch gradient checkpointing on",
            "gradient_checkpointing true",
            "set it to false for the run that the TRL baseline repeats, or leave the TRL baseline out",
        )


def _check_on_policy(config: RunConfig) -> None:
    """reinforce.py has no ratio; TRL's ratio is 1 on the first optimizer step of a rollout batch only."""
    if config.algorithm_entry.objective is reinforce_objective and config.updates_per_step != 1:
        refuse(
            "TRL's loss has a ratio, without effect on the first optimizer step of a rollout batch only",
            f"epochs x minibatches = {config.updates_per_step}",
            f"set both to 1 for {config.algorithm}",
        )


def _check_group(config: RunConfig, hparams: Estimator) -> None:
    _check_on_policy(config)
    _check_loss_type(config, hparams)
    if hparams.kl_coef and hparams.kl_importance_weighted and hparams.ratio.startswith("sequence"):
        refuse(
            f"TRL multiplies the KL by the ratio of the loss, {hparams.ratio}, our loss by the ratio of the token",
            "kl_importance_weighted true",
            "set settings.kl_importance_weighted to false",
        )
    if hparams.mask_truncated and hparams.aggregation != "token-mean":
        refuse(
            "TRL counts masked responses in its divisor, our loss does not: mask_truncated needs token-mean",
            hparams.aggregation,
            "set settings.aggregation to token-mean, or mask_truncated to false",
        )
    if hparams.entropy_coef and config.algorithm_entry.select is not None:
        refuse(
            "TRL's entropy bonus is over the selected tokens, ours over all",
            f"entropy_coef {hparams.entropy_coef:g}",
            "set settings.entropy_coef to 0",
        )
    if hparams.entropy_coef and hparams.aggregation != "token-mean":
        refuse(
            "TRL averages the entropy over tokens, whatever its loss_type",
            hparams.aggregation,
            "set settings.aggregation to token-mean, or entropy_coef to 0",
        )


def _check_loss_type(config: RunConfig, hparams: Estimator) -> None:
    """The objective and its aggregation must be one of TRL's loss types, with the same divisor."""
    kind, objective = loss_type(config), config.algorithm_entry.objective
    if kind is None:
        possible = [aggregation for known, aggregation in LOSS_TYPES if known is objective]
        refuse(
            "TRL's GRPO does not have this objective with this aggregation",
            hparams.aggregation,
            f"set settings.aggregation to {' or '.join(possible)}",
        )
    if kind in ("cispo", "vespo") and config.minibatches > 1:
        refuse(
            f"TRL's {kind} divides by the tokens of the rollout batch, our loss by those of the minibatch",
            f"minibatches {config.minibatches}",
            "set minibatches to 1 (and epochs above 1, so that ratios leave 1)",
        )
    if kind == "dr_grpo" and hparams.aggregation_length != config.max_response_tokens:
        refuse(
            "TRL's dr_grpo divides by the length limit",
            hparams.aggregation_length,
            "set settings.aggregation_length to null",
        )


def _check_leave_one_out(config: RunConfig, hparams: Estimator) -> None:
    _check_on_policy(config)
    if config.algorithm_entry.objective is reinforce_objective and hparams.aggregation != "seq-mean-token-sum":
        refuse("TRL's RLOO sums over tokens", hparams.aggregation, "set settings.aggregation to seq-mean-token-sum")


def _check_critic(config: RunConfig, hparams: Clipped) -> None:
    if hparams.clip_low != hparams.clip_high:
        raise SettingsError(
            f"trainer trl: TRL's PPO has one clip range, got clip_low {hparams.clip_low} and clip_high "
            f"{hparams.clip_high}; set both to one value."
        )
