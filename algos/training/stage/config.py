"""Settings that every stage of training shares: the optimizer, the precision of weights, when the state is saved."""

import importlib.util
import json
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from algos.pieces.settings import SettingsError, from_dict, settings

Trainer = Literal["own", "trl"]  # this project's loop, or the same settings handed to TRL's trainer
Beta = Annotated[float, Field(ge=0, lt=1)]
OptimizerName = Literal["adamw", "adamw_8bit", "adafactor"]


@settings
class OptimizerConfig:
    """Optimizer, schedule and gradient clipping, for every stage."""

    name: OptimizerName = "adamw"  # 8bit: of the moments; adafactor: factored, no first
    learning_rate: PositiveFloat = 1.0e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; linear and cosine decay to 0
    warmup_steps: NonNegativeInt = 0  # optimizer steps of linear increase from 0
    adam_beta1: Beta = 0.9  # the three adam_ settings have no effect on adafactor
    adam_beta2: Beta = 0.999
    adam_epsilon: PositiveFloat = 1.0e-5  # deep learning's usual 1e-8 makes the first steps aggressive
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = 1.0  # gradient-norm clipping, for policy and critic apart; null: off

    def __post_init__(self):
        if self.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("name: adamw_8bit needs bitsandbytes; pip install 'bitsandbytes>=0.50'")


@settings
class Saving:
    """When a stage saves its state, from which it goes on if it is killed. No result depends on it."""

    minutes: PositiveFloat | None = 10.0  # between two saves; null: none by time
    steps: PositiveInt | None = None  # steps between two saves; null: by time alone
    grace_seconds: NonNegativeFloat = 20.0  # after SIGTERM, to end the step and save; Slurm kills 30 s after it

    @property
    def on(self) -> bool:
        return self.minutes is not None or self.steps is not None


EVERY_TEN_MINUTES = Saving()


def read_saving(text: str) -> Saving:
    """The option --saving of a stage's command. Raises SettingsError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--saving is not JSON: {error.msg} at character {error.pos}.") from None
    return from_dict(Saving, values, "saving")


def loaded_dtype(config) -> str:
    """The dtype in which weights are loaded: TRL keeps float32 weights and computes in bfloat16 by autocast."""
    return "float32" if config.trainer == "trl" and config.dtype == "bfloat16" else config.dtype
