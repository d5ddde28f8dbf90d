"""The search space of a stage that is tuned, and the configurations that are tried: Sobol points of the space.

The points depend on the space and on the number of trials alone, so stages with the same `tune` try the same
configurations, and more trials add to the earlier ones. A stage's own settings are no trial: a default belongs to one
algorithm and was chosen with more knowledge than one trial gives. The untuned stage stands beside the tuned one.
"""

import math
from typing import Any, Literal

from pydantic import PositiveInt

from algos.pieces.settings import SettingsError, from_dict, settings

SEED = 0  # of the scrambling of the Sobol points
DIGITS = 3  # significant ones of a value between two bounds
FEWEST_DEV = 10  # problems that configurations are judged by
Metric = Literal["mean", "greedy", "pass", "maj"]


@settings
class TuneSettings:
    """A stage's `tune`: the configurations that are tried, and what they are judged by."""

    space: dict[str, Any]  # setting: {low, high, scale} or [choices]; the most important first
    trials: PositiveInt  # configurations; each runs once for each of the tuning's seeds
    seeds: tuple[int, ...] = (100,)  # of the trials; none of them a seed of the stage
    metric: Metric = "mean"  # on the dev split: mean@k, greedy, pass@k or maj@k

    def __post_init__(self):
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"seeds must be different whole numbers from 0, at least one, got {list(self.seeds)}.")
        if not self.space:
            raise SettingsError("space must name at least one setting, got {}.")


@settings
class Range:
    """The values between two bounds."""

    low: float
    high: float
    scale: Literal["log", "linear"]  # log: the logarithms are spread evenly

    def __post_init__(self):
        if self.low >= self.high:
            raise SettingsError(f"low must be below high, got {self.low:g} and {self.high:g}; swap or change them.")
        if self.scale == "log" and self.low <= 0:
            raise SettingsError(f"low must be above 0 on a log scale, got {self.low:g}; raise it or write linear.")

    def at(self, share: float) -> float:
        """The value at a share of the way from low to high, rounded."""
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


def tune_settings(values: object, where: str) -> TuneSettings:
    """A stage's `tune`, its space checked. Raises SettingsError."""
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must be a mapping of space, trials, seeds and metric, got {values!r}.")
    tune = from_dict(TuneSettings, values, where)
    for key, dimension in tune.space.items():
        _dimension(dimension, f"{where}.space.{key}")
    return tune


def _dimension(written: object, where: str) -> Range | list:
    if isinstance(written, dict):
        return from_dict(Range, written, where)
    if not isinstance(written, list) or len(written) < 2:
        raise SettingsError(
            f"{where} must be {{low: ..., high: ..., scale: log or linear}} or a list of two or more choices, got "
            f"{written!r}."
        )
    for choice in written:
        if choice is not None and not isinstance(choice, bool | int | float | str):
            raise SettingsError(f"{where}: a choice is a number, true, false, null or a word, got {choice!r}.")
        if written.count(choice) > 1:
            raise SettingsError(f"{where}: the choice {choice!r} stands twice; remove one.")
    return written


def configurations(tune: TuneSettings, where: str) -> list[dict[str, Any]]:
    """The value of each setting in each trial. Raises SettingsError if two trials would be the same."""
    dimensions = {key: _dimension(written, f"{where}.space.{key}") for key, written in tune.space.items()}
    made: list[dict[str, Any]] = []
    for point in points(len(dimensions), tune.trials):
        chosen = {key: _value(d, share) for (key, d), share in zip(dimensions.items(), point, strict=True)}
        if chosen in made:
            raise SettingsError(
                f"{where}.trials: trials {made.index(chosen)} and {len(made)} of {tune.trials} are both "
                f"{shown(chosen)}; write fewer trials, or a wider space."
            )
        made.append(chosen)
    return made


def _value(dimension: Range | list, share: float) -> Any:
    return dimension.at(share) if isinstance(dimension, Range) else dimension[int(share * len(dimension))]


def points(dimensions: int, trials: int) -> list[list[float]]:
    """The first points of a scrambled Sobol sequence (Sobol 1967, Owen 1995), each coordinate from 0 to below 1.

    Of a power of two, which the sequence covers the space with evenly; the rest is left out.
    """
    from scipy.stats import qmc  # imported here: studies that tune nothing do not wait for it

    sequence = qmc.Sobol(dimensions, scramble=True, rng=SEED)
    return sequence.random_base2(math.ceil(math.log2(trials)))[:trials].tolist()


def shown(configuration: dict) -> str:
    """optimizer.learning_rate 0.0001, settings.kl_coef 0; words as a study file spells them."""
    return ", ".join(f"{key} {_text(value)}" for key, value in configuration.items())


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
