"""TRL's trainers: which of our settings each one has, under which name, and with which values.

Every hyperparameter of an algorithm stands in the table of its trainer, with the option that it becomes and the values
that TRL has. `algos/training/trl/check.py` refuses a hyperparameter that is in no table and a value that TRL does not
have: nothing is approximated. `algos/training/trl/options.py` turns the tables into TRL's options.

TRL's divisors differ from our aggregations more than the names of its options suggest. The divisor of one token of
response i, over an optimizer step of B responses:

loss_type  divisor of a token of response i                         here
grpo       B T_i                                                    seq-mean-token-mean
luspo      B                                                        seq-mean-token-sum, ratio token or sequence_token
dr_grpo    B max_completion_length                                  seq-mean-token-sum-norm
dapo       tokens of the *rollout batch* / optimizer steps on it    token-mean, with one minibatch
bnpo       tokens of the micro-batch, then mean over micro-batches  token-mean, if the minibatch is one micro-batch
sapo       as grpo                                                  SAPO with seq-mean-token-mean
cispo      as dapo                                                  CISPO with token-mean and one minibatch
vespo      as dapo                                                  VESPO with token-mean and one minibatch

TRL's B counts masked responses, our B does not.
"""

from dataclasses import dataclass

from algos.cispo import truncated_objective
from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import clipped_objective, clipped_selection
from algos.pieces.settings import SettingsError
from algos.reinforce import reinforce_objective
from algos.sapo import gated_objective
from algos.top_entropy import uncertain_tokens
from algos.training.config import RunConfig
from algos.vespo import reshaped_objective

TRL_STD_EPSILON = 1.0e-4  # a constant in trl.GRPOTrainer

LOSS_TYPES = {  # (objective, aggregation) -> TRL's loss_type; for token-mean see loss_type()
    (clipped_objective, "seq-mean-token-mean"): "grpo",
    (clipped_objective, "seq-mean-token-sum"): "luspo",
    (clipped_objective, "seq-mean-token-sum-norm"): "dr_grpo",
    (clipped_objective, "token-mean"): "dapo",
    (clipped_selection, "token-mean"): "dapo",
    (gated_objective, "seq-mean-token-mean"): "sapo",
    (truncated_objective, "token-mean"): "cispo",
    (reshaped_objective, "token-mean"): "vespo",
}


@dataclass(frozen=True)
class Setting:
    """What one of our hyperparameters is in TRL."""

    option: str | None = None  # the name of TRL's option; None: TRL has no such option
    values: dict | None = None  # our values -> TRL's values; None: every value is allowed and stays the same
    why: str = ""  # the reason that the message gives for a refused value


def same(option: str) -> Setting:
    """An option of TRL that takes our value as it is."""
    return Setting(option)


def choice(option: str, why: str, **values) -> Setting:
    """An option of TRL that has some of our values, under its own names."""
    return Setting(option, values, why)


def only(*values, why: str) -> Setting:
    """Values that TRL always has; there is no option for them."""
    return Setting(None, dict.fromkeys(values), why)


ANYWHERE = {  # what none of TRL's trainers has
    "credit": only("response", why="TRL has one advantage per response"),
    "kl_target": only(None, why="TRL's kl_coef is fixed"),
    "target_kl": only(None, why="TRL makes all updates of a rollout batch"),
    "dynamic_sampling": only(False, why="TRL trains on every group that it samples"),
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
        none="token",  # reinforce.py has no ratio; the ratio of TRL is 1 there, see check.py
        token="token",
        sequence="sequence",
        sequence_token="sequence",  # equal in value and gradient where a response has one advantage
    ),
    "aggregation": Setting(),  # becomes the loss_type, together with the objective: see loss_type()
    "aggregation_length": Setting(),
    "clip_low": same("epsilon"),
    "clip_high": same("epsilon_high"),
    "ratio_cap": same("delta"),
    "off_policy_threshold": same("off_policy_mask_threshold"),
    "is_max": same("epsilon_high"),  # with loss_type cispo this option is the bound itself
    "tau_pos": same("sapo_temperature_pos"),
    "tau_neg": same("sapo_temperature_neg"),
    "power_pos": same("vespo_k_pos"),
    "decay_pos": same("vespo_lambda_pos"),
    "power_neg": same("vespo_k_neg"),
    "decay_neg": same("vespo_lambda_neg"),
    "entropy_share": same("top_entropy_quantile"),
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
    "aggregation": Setting(),  # without effect with the ratio of whole responses: see check.py
    "clip_low": same("epsilon"),
    "clip_high": same("epsilon_high"),
    "ratio_cap": only(None, why="TRL's RLOO does not cap its ratio"),
    "off_policy_threshold": only(None, why="TRL's RLOO masks no off-policy response"),
    "kl_coef": same("beta"),
    "kl_in": only("reward", why="TRL's RLOO has its KL in the reward"),
    "kl_estimator": only("k1", why="TRL's RLOO estimates its KL by k1"),
    "entropy_coef": only(0.0, why="TRL's RLOO has no entropy bonus"),
    "mask_truncated": only(False, why="TRL's RLOO counts masked responses in its divisor, our loss does not"),
}

ONE_POSITION_LATER = "TRL's PPO rewards one position later, the same estimator only with gae_lambda 1 and gamma 1"

CRITIC = {  # trl.experimental.ppo.PPOTrainer
    **ANYWHERE,
    "baseline": only("critic", why="TRL's PPO has a critic"),
    "scale": only("whiten", why="TRL's PPO always whitens its advantages"),
    "std_ddof": only(1, why="TRL takes the sample standard deviation"),
    "ratio": only("token", why="TRL's PPO has one ratio per token"),
    "aggregation": only("token-mean", why="TRL's PPO averages over tokens"),
    "clip_low": same("cliprange"),
    "clip_high": Setting(),  # must equal clip_low: see check.py
    "ratio_cap": only(None, why="TRL's PPO does not cap its ratio"),
    "off_policy_threshold": only(None, why="TRL's PPO masks no off-policy response"),
    "kl_coef": same("kl_coef"),
    "kl_in": only("reward", why="TRL's PPO has its KL in the reward"),
    "kl_estimator": choice("kl_estimator", "TRL's PPO has no such estimator", k1="k1", k3="k3"),
    "entropy_coef": only(0.0, why="TRL's PPO has no entropy bonus"),
    "mask_truncated": only(False, why="TRL's PPO masks no response"),
    "gamma": Setting("gamma", {1.0: 1.0}, ONE_POSITION_LATER),
    "gae_lambda": Setting("lam", {1.0: 1.0}, ONE_POSITION_LATER),
    "gae_lambda_critic": only(None, 1.0, why="TRL's PPO has one lambda for policy and critic"),
    "whiten_rewards": only(False, why="TRL's PPO whitens over one more position per response"),
    "value_clip": same("cliprange_value"),
    "value_coef": same("vf_coef"),
    "critic": only("separate", why="TRL's PPO has a critic of its own"),
    "critic_head": Setting(),  # the critic is built here, not by TRL
    "critic_detach": Setting(),
    "critic_init": only("policy", why="the critic of the TRL baseline starts from the policy"),
    "critic_layers": only(None, why="the critic of the TRL baseline is as large as the policy"),
    "value_warmup": only(0, why="TRL's PPO trains policy and critic from the first step"),
}


@dataclass(frozen=True)
class Trainer:
    """One of TRL's trainers."""

    kind: str  # grpo, rloo or ppo
    table: dict[str, Setting]
    objectives: tuple  # those of our objectives that the trainer has

    @property
    def name(self) -> str:
        return f"{self.kind.upper()}Trainer"


TRAINERS = {
    "grpo": Trainer("grpo", GROUP, (*(objective for objective, _ in LOSS_TYPES), reinforce_objective)),
    "rloo": Trainer("rloo", LEAVE_ONE_OUT, (clipped_objective, reinforce_objective)),
    "ppo": Trainer("ppo", CRITIC, (clipped_objective,)),
}


def trainer_of(config: RunConfig) -> Trainer:
    """The trainer of TRL for a run, whose hyperparameters may still be refused. SettingsError if there is none."""
    algorithm, hparams = config.algorithm_entry, config.hparams
    kind = "ppo" if hparams.has_critic else "rloo" if hparams.baseline == "leave_one_out" else "grpo"
    trainer = TRAINERS[kind]
    changed = algorithm.advantages is not Algorithm.advantages or algorithm.adapt is not Algorithm.adapt
    changed |= algorithm.select not in (None, uncertain_tokens)
    if changed or algorithm.update is not None or algorithm.objective not in trainer.objectives:
        raise SettingsError(
            f"trainer trl: there is no TRL baseline of {config.algorithm!r}: TRL's {trainer.name} does not have its "
            f"objective, {algorithm.term(hparams)}."
        )
    return trainer


def loss_type(config: RunConfig) -> str | None:
    """TRL's name for the objective and aggregation of a group method; None if TRL has no name for them.

    The objective of reinforce.py has the gradient of the clipped one where the ratio is 1. With several minibatches
    TRL's dapo is not our token-mean; its bnpo is, if the minibatch is one micro-batch.
    """
    objective = config.algorithm_entry.objective
    if objective is reinforce_objective:
        objective = clipped_objective
    kind = LOSS_TYPES.get((objective, config.hparams.aggregation))
    return "bnpo" if kind == "dapo" and config.minibatches > 1 else kind
