"""Numbers that no run can change: closed forms of memory and compute, and biases by enumeration."""

from collections.abc import Callable
from dataclasses import fields

from algos import ALGORITHMS
from evaluation.bias.exact import off_policy
from evaluation.bias.toy import make_toy
from evaluation.memory import closed_form as closed


def _saving(setup: str, assumption: str) -> float:
    return closed.saving(setup, *closed.ASSUMPTIONS[assumption])


def _gigabytes(setup: str, assumption: str) -> float:
    return closed.states(setup, *closed.ASSUMPTIONS[assumption]) / closed.GB


def _flops_saving(epochs: int) -> float:
    """Of GRPO against PPO per generated token; both have a reference and a reward model."""
    ppo, grpo = (closed.flops_per_token(critic, True, True, epochs) for critic in (True, False))
    return 1 - grpo / ppo


def _settings_beyond_grpo() -> float:
    """Hyperparameters of PPO that GRPO has not, less those of GRPO that PPO has not."""
    ppo, grpo = ({field.name for field in fields(ALGORITHMS[name].defaults)} for name in ("ppo", "grpo"))
    return len(ppo - grpo) - len(grpo - ppo)


def _off_policy_bias(estimator: str) -> float:
    """Of the expected gradient on responses of an older policy, relative to the exact gradient."""
    return next(row["bias"] for row in off_policy(make_toy()) if row["estimator"] == estimator)


NUMBERS: dict[str, tuple[str, Callable[[], float]]] = {  # name -> what it is, and how it is computed
    "saving_adamw": (
        "share of model states that GRPO saves, reward model and reference kept, with AdamW (16 and 2 bytes)",
        lambda: _saving("GRPO + RM", "AdamW mixed"),
    ),
    "saving_no_optimizer": (
        "share of model states that GRPO saves, both kept, without optimizer states (4 and 2 bytes)",
        lambda: _saving("GRPO + RM", "weights and gradients, no optimizer"),
    ),
    "gigabytes_adamw": (
        "GB of the model states of four 7 B models with AdamW",
        lambda: _gigabytes("PPO, 4 models", "AdamW mixed"),
    ),
    "gigabytes_weights": (
        "GB of the bfloat16 weights of four 7 B models",
        lambda: _gigabytes("PPO, 4 models", "bf16 weights only"),
    ),
    "flops_saving_1": ("share of FLOPs a token that GRPO saves, 1 epoch", lambda: _flops_saving(1)),
    "flops_saving_4": ("share of FLOPs a token that GRPO saves, 4 epochs", lambda: _flops_saving(4)),
    "settings_beyond_grpo": ("hyperparameters that PPO has beyond GRPO's", _settings_beyond_grpo),
    "bias_token_ratio": ("off-policy bias of token ratios", lambda: _off_policy_bias("token ratio")),
    "bias_product_ratio": ("off-policy bias of ratios of whole responses", lambda: _off_policy_bias("product ratio")),
}
