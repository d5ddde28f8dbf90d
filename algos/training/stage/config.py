"""Settings that every stage of training shares: the optimizer, and how a section of the study file is read."""

import importlib.util
from dataclasses import dataclass

from algos.pieces.settings import SettingsError, from_dict, one_of, positive

OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")
SCHEDULES = ("constant", "linear", "cosine")
TRAINERS = ("own", "trl")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, schedule and gradient clipping, for every stage."""

    name: str = "adamw"  # adamw, adamw_8bit (moments in 8 bits) or adafactor (factored second moment, no first)
    learning_rate: float = 1.0e-4
    schedule: str = "constant"  # after the warm-up: constant, linear or cosine decay to 0
    warmup_steps: int = 0  # optimizer steps of linear increase from 0
    adam_beta1: float = 0.9  # the three adam_ settings have no effect on adafactor
    adam_beta2: float = 0.999
    adam_epsilon: float = 1.0e-5  # deep learning's usual 1e-8 makes the first steps aggressive
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0  # gradient-norm clipping, for policy and critic apart; null: off

    def __post_init__(self):
        positive(self, "learning_rate", "adam_epsilon", "max_grad_norm")
        one_of(self.name, OPTIMIZERS, "name")
        if self.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise SettingsError("name: adamw_8bit needs bitsandbytes; pip install 'bitsandbytes>=0.50'.")
        one_of(self.schedule, SCHEDULES, "schedule")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


def loaded_dtype(config) -> str:
    """Of the weights as they are loaded: TRL keeps float32 ones and computes in bfloat16 by autocast."""
    return "float32" if config.trainer == "trl" and config.dtype == "bfloat16" else config.dtype


def parse(cls, values: dict, where: str):
    """from_dict, and any message of __post_init__ prefixed with its place in the study file."""
    try:
        return from_dict(cls, values, where)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None
