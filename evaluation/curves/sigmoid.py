"""The sigmoid of accuracy over compute: asymptote and half-way point of a learning curve.

    R(C) - R_0 = (A - R_0) / (1 + (C_mid / C)^B)

Source: Khatri et al. 2025, arXiv:2510.13786 (ScaleRL). C is compute, here generated tokens; R_0 the accuracy at the
start, A the asymptote, C_mid where half of the gain A - R_0 is reached, B > 0 how steep the rise is. R_0 is the mean of
the measurements at C = 0, over which the curve has no other freedom. The three others minimize the sum of squares over
the measurements of all seeds.

Intervals of several seeds are for new seeds: each seed is left out once (jackknife), with Student's quantile of S - 1
degrees of freedom. A bootstrap over so few seeds would be too narrow: docs/statistics.md has how often each covers. Of
one seed they come from the covariance of the least squares, which takes its measurements as independent. None of them
is for other dev problems. That of C_mid is computed for its logarithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np

from evaluation.statistics import Interval, student
from evaluation.statistics.verdicts import ONE_SEED

PARAMETERS = 4  # R_0 included
LEVEL = 0.05  # of the F test that a rise must pass
STEEPEST = 20.0  # B; a steeper rise is a jump between two measurements
FURTHEST = 1e3  # C_mid, in ranges of C


class NotFitted(ValueError):
    """The measurements determine no sigmoid; says why."""


@dataclass(frozen=True)
class Curve:
    start: float  # R_0
    asymptote: float  # A
    half: float  # C_mid
    exponent: float  # B
    covariance: np.ndarray  # (3, 3) of A, log C_mid and log B


@dataclass(frozen=True)
class Fit:
    """The sigmoid of a stage. low and high are NaN where the seeds determine no interval."""

    asymptote: Interval
    half: Interval
    exponent: float
    interval_for: str


def sigmoid(compute: np.ndarray, start: float, asymptote: float, half: float, exponent: float) -> np.ndarray:
    """R(C) of C (n,), from 0 on."""
    with np.errstate(divide="ignore", over="ignore"):
        return start + (asymptote - start) / (1 + (half / np.asarray(compute, dtype=float)) ** exponent)


def fit(compute: np.ndarray, accuracy: np.ndarray) -> Curve:
    """The sigmoid of measurements (n,), some of them at C = 0. Raises NotFitted where they determine none."""
    from scipy.optimize import curve_fit  # imported here: only a report needs it

    compute, accuracy = np.asarray(compute, dtype=float), np.asarray(accuracy, dtype=float)
    places = np.unique(compute)
    if len(places) < PARAMETERS + 1 or places[0] > 0:
        raise NotFitted(f"{len(places)} places on the curve, at least {PARAMETERS + 1} are needed")
    start, scale = float(accuracy[compute == 0].mean()), places[-1]

    def curve(c, asymptote, log_half, log_exponent):
        return sigmoid(c, start, asymptote, np.exp(log_half), np.exp(log_exponent))

    best, cost = None, inf
    bounds = ([-1.0, np.log(places[1] / FURTHEST / scale), np.log(0.1)], [2.0, np.log(FURTHEST), np.log(STEEPEST)])
    for half in (0.1, 0.3, 0.7):  # of the range: least squares finds what is near
        guess = [float(accuracy[compute >= 0.7 * scale].mean()), np.log(half), 0.0]
        try:
            found, covariance = curve_fit(curve, compute / scale, accuracy, guess, bounds=bounds)
        except RuntimeError:  # no convergence from here
            continue
        left = float(((curve(compute / scale, *found) - accuracy) ** 2).sum())
        if left < cost:
            best, cost = (found, covariance), left
    if best is None:
        raise NotFitted("least squares do not converge")
    (asymptote, log_half, log_exponent), covariance = best
    _check_rise(accuracy, cost, asymptote > start)
    half = float(np.exp(log_half) * scale)
    if not asymptote <= 1:
        raise NotFitted(f"its asymptote would be {100 * asymptote:.0f} %; the curve does not level off yet")
    if half > scale:
        raise NotFitted("its half-way point lies beyond the last measurement; train longer")
    if half < places[1]:
        raise NotFitted("its half-way point lies before the first measurement after the start; lower dev_every")
    return Curve(start, float(asymptote), half, float(np.exp(log_exponent)), covariance)


def _check_rise(accuracy: np.ndarray, left: float, up: bool) -> None:
    """Raise NotFitted unless the curve explains the measurements better than a constant, by an F test, and goes up."""
    from scipy.stats import f

    more, freedom = PARAMETERS - 1, len(accuracy) - PARAMETERS
    constant = float(((accuracy - accuracy.mean()) ** 2).sum())
    ratio = inf if left == 0 and constant > 0 else (constant - left) / more / max(left / freedom, 1e-300)
    if not up or f.sf(ratio, more, freedom) > LEVEL:
        raise NotFitted("no rise that may not be chance")


def fit_seeds(compute: Sequence[np.ndarray], accuracy: Sequence[np.ndarray]) -> Fit:
    """The sigmoid of all seeds' measurements, one array a seed. Raises NotFitted where they determine none."""
    found = fit(np.concatenate(compute), np.concatenate(accuracy))
    seeds = len(compute)
    if seeds == 1:
        errors, freedom, words = np.sqrt(np.diag(found.covariance)), len(accuracy[0]) - PARAMETERS, ONE_SEED
    else:
        errors, freedom, words = _jackknife(compute, accuracy), seeds - 1, "new seeds"
    half = student(freedom) * errors
    asymptote = Interval(found.asymptote, found.asymptote - half[0], found.asymptote + half[0], seeds == 1)
    middle = Interval(found.half, found.half * np.exp(-half[1]), found.half * np.exp(half[1]), seeds == 1)
    words = words if np.isfinite(half).all() else "no interval: a fit without one of the seeds fails"
    return Fit(asymptote.within(0.0, 1.0) if np.isfinite(half).all() else asymptote, middle, found.exponent, words)


def _jackknife(compute: Sequence[np.ndarray], accuracy: Sequence[np.ndarray]) -> np.ndarray:
    """Standard errors of A and log C_mid from leaving out each of S >= 2 seeds; NaN where a fit without one fails.

    SE^2 = (S - 1) / S * sum of squared deviations of the S estimates; Efron and Tibshirani 1993, section 11.2.
    """
    seeds, estimates = len(compute), []
    for out in range(seeds):
        parts = [np.concatenate([v for i, v in enumerate(values) if i != out]) for values in (compute, accuracy)]
        try:
            found = fit(*parts)
        except NotFitted:
            return np.array([nan, nan])
        estimates.append((found.asymptote, np.log(found.half)))
    return np.std(estimates, axis=0) * sqrt(seeds - 1)
