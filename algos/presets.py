"""PPO, GRPO and others with the defaults of public frameworks: one name, several different losses.

Read from the frameworks' sources in mid-2026, at the commits named with each preset; defaults change over time. A
preset sets the hyperparameters of the loss. Learning rate, batch and group size come from the study, so that presets
are compared at one learning rate and batch; the frameworks' own values of them stand in the notes.
"""

from dataclasses import replace

from torch import Tensor

from algos import cispo, dppo, grpo, gspo, ppo, reinforce
from algos.pieces.estimator import Estimator, needs_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares

TRL = "TRL f2cd577; the estimator's options agree with the installed 1.12"
VERL, OPENRLHF = "verl 1dda039", "OpenRLHF 3c3be62"
OPEN_INSTRUCT, NEMO = "open-instruct e6c3044", "NeMo RL 7ea279a"
SKYRL = "SkyRL a956457, NeMo RL 7ea279a and OpenRLHF 3c3be62"


@settings
class WeightedConfig(Estimator):
    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)


def weighted_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: Estimator
) -> tuple[Tensor, Shares]:
    """ratio A: (B, T)."""
    return log_ratio.exp() * advantages, {}


def _as(base, preset_of: str, source: str, notes: tuple[str, ...], run: dict, idea: str, **settings):
    return replace(
        base,
        defaults=replace(base.defaults, **settings),
        idea=idea,
        source=source,
        relative=preset_of,
        preset_of=preset_of,
        run=run,
        notes=notes,
    )


GRPO_AS_TRL = _as(
    grpo.ALGORITHM,
    "grpo",
    TRL,
    (
        "framework defaults of the loop: group 8, learning rate 1e-6, one optimizer step per rollout batch",
        "when it samples with vLLM, TRL corrects for it (sequence_mask, at most 3.0); not part of this preset",
    ),
    {"epochs": 1, "minibatches": 1},
    "GRPO by TRL's defaults: DAPO's token mean",
    aggregation="token-mean",
    std_epsilon=1.0e-4,
    kl_importance_weighted=True,  # TRL 1.12's use_bias_correction_kl; without effect as long as kl_coef is 0
)
GRPO_AS_VERL = _as(
    grpo.ALGORITHM,
    "grpo",
    VERL,
    (
        "framework defaults of the loop: learning rate 1e-6, one epoch; recipes use groups of 5 to 16",
        "KL is off by default; the documentation of verl advises kl_coef 0.001, k3, in the loss",
    ),
    {"epochs": 1},
    "GRPO by verl's defaults: token mean, dual clip",
    aggregation="token-mean",
    dual_clip=3.0,
)
GRPO_AS_OPENRLHF = _as(
    grpo.ALGORITHM,
    "grpo",
    OPENRLHF + ", advantage_estimator group_norm",
    (
        "framework defaults of the loop: learning rate 1e-6, one epoch; recipes use groups of 8",
        "the KL penalty is added token by token after the group's normalization, as reward-to-go",
    ),
    {"epochs": 1},
    "GRPO by OpenRLHF's defaults: token mean, k1 in the reward",
    aggregation="token-mean",
    std_epsilon=1.0e-9,
    kl_in="reward",
    kl_estimator="k1",
    kl_coef=0.01,
    credit="token",
)
GRPO_AS_OPEN_INSTRUCT = _as(
    grpo.ALGORITHM,
    "grpo",
    OPEN_INSTRUCT,
    ("framework defaults of the loop: groups of 4, learning rate 2e-5 (its scripts override it), one epoch, async 8",),
    {"epochs": 1},
    "GRPO by open-instruct's defaults: no standard deviation, k3 with 0.05, truncated correction",
    aggregation="token-mean",
    scale="none",
    clip_high=0.272,
    kl_coef=0.05,
    correction="token_truncate",
    correction_low=0.0,
    correction_high=2.0,
)
GRPO_AS_NEMO = _as(
    grpo.ALGORITHM,
    "grpo",
    NEMO,
    (
        "framework defaults of the loop: groups of 16, learning rate 5e-6, one epoch (grpo_math_1B.yaml)",
        "mean and standard deviation leave the own response out; the divisor n - 1 of the latter was read in versions "
        "of 2025 (the earliest had n); where the others do not vary, nothing is divided",
    ),
    {"epochs": 1},
    "GRPO by NeMo RL's defaults: leave-one-out mean and standard deviation, k3 with 0.01",
    aggregation="token-mean",
    baseline="leave_one_out",
    scale="leave_one_out_std",
    kl_coef=0.01,
)
GRPO_AS_SKYRL = _as(
    grpo.ALGORITHM,
    "grpo",
    "SkyRL a956457",
    (
        "framework defaults of the loop: one epoch; recipes use groups of 5, learning rate 1e-6 and 4 minibatches",
        "the KL loss is on by default",
    ),
    {"epochs": 1},
    "GRPO by SkyRL's defaults: token mean, k3 with 0.001",
    aggregation="token-mean",
    kl_coef=0.001,
)
GRPO_AS_SLIME = _as(
    grpo.ALGORITHM,
    "grpo",
    "slime 624b824",
    (
        "framework defaults of the loop: learning rate 1e-6, one epoch; recipes use groups of 8 and raise the upper "
        "clip to 0.28",
        "a flag of slime makes the mean one over tokens; KL and the correction for the sampler are off",
    ),
    {"epochs": 1},
    "GRPO by slime's defaults, which are the paper's without a KL",
)
GRPO_AS_AREAL = _as(
    grpo.ALGORITHM,
    "grpo",
    "AReaL 00d07c0, gsm8k_grpo.yaml; 2274616, functional.py",
    (
        "recipe of the loop: groups of 4, learning rate 1.7e-5, one epoch, one minibatch, samples up to 2 versions old",
        "as in decoupled_ppo the clip is around the trainer's policy, and tokens with a weight above 5 are dropped",
        "advantages are then normalized over the batch as well; not copied",
    ),
    {"epochs": 1, "minibatches": 1},
    "GRPO by AReaL's recipe: a wide clip around the trainer's policy, weighted against the sampler",
    clip_low=0.4,
    clip_high=0.4,
    aggregation="token-mean",
    std_epsilon=1.0e-5,
    correction="token_mask",
    correction_low=0.0,
    correction_high=5.0,
)
GRPO_AS_TORCHTITAN = _as(
    grpo.ALGORITHM,
    "grpo",
    "torchtitan 72bc39a, rl/losses/grpo.py; 4df72f0, rollout/advantage.py",
    (
        "the ratio is against the log-probabilities that the sampler reported",
        "if told to, it divides by the population standard deviation",
    ),
    {"epochs": 1},
    "GRPO by torchtitan's defaults: token mean, rewards only centered, no KL",
    aggregation="token-mean",
    scale="none",
)
DPPO_AS_PRIME_RL = _as(
    dppo.ALGORITHM,
    "dppo",
    "prime-rl 0fcbdb0, losses.py",
    (
        "framework defaults of the loop: learning rate 1e-6, asynchronous",
        "the ratio is against the log-probabilities that the sampler reported",
    ),
    {"epochs": 1},
    "DPPO by prime-rl's defaults: limits of 0.2, and a penalty on the squared log-ratio",
    limit_low=0.2,
    limit_high=0.2,
    drift_coef=1.0e-3,
)
REINFORCE_AS_TINKER = replace(
    reinforce.GROUP_BASELINE,
    defaults=WeightedConfig(baseline="group_mean", ratio="token", aggregation="seq-mean-token-sum"),
    objective=weighted_objective,
    term=lambda hparams: "rho A",
    idea="the policy gradient by the Tinker cookbook's defaults: an importance ratio, no clip, rewards only centered",
    source="tinker-cookbook 1baf9d2, rl; Tinker's documentation of importance_sampling",
    relative="reinforce_group",
    preset_of="reinforce_group",
    notes=(
        "framework defaults of the loop: one update per rollout batch, no KL",
        "the ratio is against the log-probabilities that the sampler reported",
        "Tinker sums over the batch's tokens; here that sum is divided by the number of responses",
    ),
)
SCALERL = _as(
    cispo.ALGORITHM,
    "cispo",
    "arXiv:2510.13786v1, section 4",
    (
        "the mean is over the batch's tokens; the paper's is over the tokens of a prompt, then over prompts",
        "not copied: a language-model head in FP32 in sampler and trainer, forced interruptions at the length limit, "
        "prompts left out for good once 90 % of the answers are right, samples 8 updates old",
    ),
    {"epochs": 1},
    "the recipe of ScaleRL: CISPO, advantages divided by the batch's standard deviation, mixed groups only",
    scale="batch_std",
    dynamic_sampling=True,
    max_rounds=1,
)
PPO_AS_TRL = _as(
    ppo.ALGORITHM,
    "ppo",
    "TRL f2cd577, trl.experimental.ppo; its settings are those of the installed 1.12",
    (
        "framework defaults of the loop: learning rate 3e-6 for policy and critic, 4 epochs, 1 minibatch",
        "TRL samples at temperature 0.7; here the temperature is the study's",
        "TRL's reward stands one position after the last token, so that lambda 0.95 is not quite the same estimator; "
        "one optimizer with one gradient clipping trains policy and critic",
    ),
    {"epochs": 4, "minibatches": 1},
    "PPO by TRL's defaults: lambda 0.95, KL 0.05 in the reward, 4 epochs",
    kl_coef=0.05,
    value_coef=0.1,
)
PPO_AS_VERL = _as(
    ppo.ALGORITHM,
    "ppo",
    VERL,
    ("framework defaults of the loop: learning rates 1e-6 and 1e-5, one epoch",),
    {"epochs": 1},
    "PPO by verl's defaults: lambda 1, dual clip, no KL",
    gae_lambda=1.0,
    dual_clip=3.0,
    value_clip=0.5,
)
PPO_AS_OPENRLHF = _as(
    ppo.ALGORITHM,
    "ppo",
    OPENRLHF,
    (
        "framework defaults of the loop: learning rates 1e-6 and 9e-6 with cosine decay to 10 %, one epoch",
        "OpenRLHF clips the learned reward to +-10: write reward_clip: 10.0 into the run",
    ),
    {"epochs": 1},
    "PPO by OpenRLHF's defaults: lambda 1, KL 0.01 in the reward",
    gae_lambda=1.0,
    kl_coef=0.01,
    value_clip=0.5,
)
GSPO_AS_PAPER = _as(
    gspo.ALGORITHM,
    "gspo",
    "arXiv:2507.18071, section 5.1, as TRL f2cd577 documents it",
    ("4 minibatches per rollout batch; with one optimizer step GSPO does not differ from GRPO",),
    {"epochs": 1, "minibatches": 4},
    "GSPO with the paper's clip range and 4 minibatches",
)
GSPO_UNCLIPPED = _as(
    gspo.ALGORITHM,
    "gspo",
    SKYRL + ", which leave the clip range of a GSPO recipe at GRPO's",
    (
        "with a length-normalized ratio 0.2 practically never binds: compare its clip_fraction with gspo's",
        "SkyRL's recipe keeps a KL loss of 0.001 and NeMo RL has another configuration with 3e-4; neither is copied",
    ),
    {"epochs": 1},
    "GSPO with GRPO's clip range, as three frameworks ship it",
    clip_low=0.2,
    clip_high=0.2,
)
