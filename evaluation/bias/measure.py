"""The bias and the variance of an estimator, and the settings that cause the bias."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from algos.describe import with_length
from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator
from evaluation.bias.gradients import Policies, enumerate_batches, gradients
from evaluation.bias.toy import LENGTH, Toy, expected_reward, gradient_of

TOLERANCE = 1.0e-9  # relative; float64 sums over some thousand batches leave about 1e-15


@dataclass(frozen=True)
class Bias:
    """An estimator's expectation against the exact gradient g."""

    mean: Tensor  # (P, T, V)
    exact: Tensor  # (P, T, V)
    variance: float  # trace of a batch's covariance over |mean|^2
    causes: list[str] = field(default_factory=list)
    factors: list[str] = field(default_factory=list)

    @property
    def cosine(self) -> float:
        return float((self.mean * self.exact).sum() / (self.mean.norm() * self.exact.norm()))

    @property
    def factor(self) -> float:
        """c of the projection mean = c g + rest."""
        return float((self.mean * self.exact).sum() / (self.exact * self.exact).sum())

    @property
    def rest(self) -> float:
        """|mean - c g| / |c g|: the bias that no learning rate can remove."""
        return relative(self.mean, self.factor * self.exact)

    @property
    def bias(self) -> float:
        return relative(self.mean, self.exact)

    @property
    def verdict(self) -> str:
        if self.bias < TOLERANCE:
            return "unbiased"
        return "unbiased up to a constant factor" if self.factor > 0 and self.rest < TOLERANCE else "biased"

    @property
    def words(self) -> str:
        """The verdict, the causes of a bias, and the constant factors of the expectation."""
        if self.verdict == "unbiased":
            return self.verdict
        reasons = ", ".join(self.causes) if self.verdict == "biased" else ""
        parts = [reasons] * bool(reasons) + [f"times {factor}" for factor in self.factors]
        return f"{self.verdict}: {'; '.join(parts)}" if parts else self.verdict


def relative(mean: Tensor, exact: Tensor) -> float:
    """|mean - exact| / |exact|."""
    return float((mean - exact).norm() / exact.norm())


def measure(
    algorithm: Algorithm,
    toy: Toy,
    group_size: int = 2,
    critic: str = "exact",
    policies: Policies | None = None,
    exact: Tensor | None = None,
    **changes,
) -> Bias:
    """The bias of an algorithm with some hyperparameters changed, by enumeration.

    exact: the gradient to compare with; default: the gradient of the expected reward that the algorithm maximizes.
    """
    hparams = configured(algorithm, **changes)
    policies = policies or Policies.of(toy)
    prompts, responses, weights = enumerate_batches(toy, group_size, hparams.dynamic_sampling, policies.sampler)
    each = gradients(algorithm, hparams, toy, prompts, responses, policies, critic)
    mean = torch.einsum("k,kpsv->psv", weights, each)
    square = float((weights * (each**2).sum(dim=(1, 2, 3))).sum())
    if exact is None:
        rewards = toy.correct.to(toy.rewards.dtype) if hparams.keep == "correct" else None
        exact = gradient_of(expected_reward(toy, rewards), policies.new)
    length = float(mean.norm()) ** 2
    variance = square / length - 1 if length else math.nan
    return Bias(mean, exact, variance, causes(hparams, critic), factors(hparams))


def configured(algorithm: Algorithm, **changes) -> Estimator:
    """The algorithm's default hyperparameters with changes. Unless these say otherwise: no KL, and the toy's length."""
    changes = {"kl_coef": 0.0, "kl_target": None} | changes
    return with_length(replace(algorithm.defaults, **changes), LENGTH)


@dataclass(frozen=True)
class Cause:
    """Hyperparameters that bias an estimator, and changes of them that take the bias away."""

    words: str
    applies: Callable[[Estimator, str], bool]  # (hparams, critic)
    repair: Callable[[Estimator], dict] = lambda hparams: {}


def _is(name: str, *values) -> Callable[[Estimator, str], bool]:
    return lambda hparams, critic: getattr(hparams, name, None) in values


def _token_sum(hparams: Estimator) -> dict:
    length_normalized = hparams.ratio.startswith("sequence")  # such a ratio is a mean over the tokens, too
    return {"ratio": "token" if length_normalized else hparams.ratio, "aggregation": "seq-mean-token-sum"}


CAUSES = (
    Cause("group std", _is("scale", "group_std", "leave_one_out_std"), lambda _: {"scale": "none"}),
    Cause("divided by the group's mean", _is("scale", "group_mean"), lambda _: {"scale": "none"}),
    Cause("batch std", _is("scale", "batch_std"), lambda _: {"scale": "none"}),
    Cause("whitening", _is("scale", "whiten", "whiten_minibatch"), lambda _: {"scale": "none"}),
    Cause("token rewards whitened", _is("whiten_rewards", True), lambda _: {"whiten_rewards": False}),
    Cause("mean over a response's tokens", _is("aggregation", "seq-mean-token-mean"), _token_sum),
    Cause("mean over the batch's tokens", _is("aggregation", "token-mean"), _token_sum),
    Cause(
        "own response in the baseline, by its length",
        _is("baseline", "length_weighted"),
        lambda _: {"baseline": "leave_one_out"},
    ),
    Cause(
        "lambda < 1 leans on a wrong critic",
        lambda hparams, critic: isinstance(hparams, WithCritic) and hparams.gae_lambda < 1 and critic != "exact",
        lambda _: {"gae_lambda": 1.0},
    ),
    Cause(
        "gamma < 1", lambda hparams, _: isinstance(hparams, WithCritic) and hparams.gamma < 1, lambda _: {"gamma": 1.0}
    ),
    Cause(
        "the best reward of a group, not the mean",
        _is("baseline", "best_of_others"),
        lambda _: {"baseline": "leave_one_out"},
    ),
    Cause("dynamic sampling", _is("dynamic_sampling", True), lambda _: {"dynamic_sampling": False}),
    Cause("only correct responses", _is("keep", "correct"), lambda _: {"keep": "all"}),
    Cause(
        "tokens of low entropy left out",
        lambda hparams, _: getattr(hparams, "entropy_share", 1.0) < 1,
        lambda _: {"entropy_share": 1.0},
    ),
    Cause(
        "tokens of high covariance left out",
        lambda hparams, _: hasattr(hparams, "cov_low") and getattr(hparams, "cov_share", 0.0) > 0,
        lambda _: {"cov_share": 0.0},
    ),
    Cause("truncated responses left out", _is("mask_truncated", True), lambda _: {"mask_truncated": False}),
)
FACTORS = {  # (hyperparameter, value) -> a constant factor of the expectation
    ("baseline", "group_mean"): "(G-1)/G",  # the own response's share in the baseline
    ("baseline", "batch_mean"): "(PG-1)/PG",
    ("aggregation", "seq-mean-token-sum-norm"): "1/L",
    ("dynamic_sampling", True): "1/P(mixed group)",
}


def causes(hparams: Estimator, critic: str = "exact") -> list[str]:
    return [cause.words for cause in CAUSES if cause.applies(hparams, critic)]


def factors(hparams: Estimator) -> list[str]:
    return [words for (name, value), words in FACTORS.items() if getattr(hparams, name) == value]


def repaired(hparams: Estimator, critic: str = "exact", leave: str = "") -> dict:
    """Changes of hyperparameters that take away all causes of bias except the cause with the words `leave`."""
    found: dict[str, Any] = {}
    for cause in CAUSES:
        if cause.applies(hparams, critic) and cause.words != leave:
            found |= cause.repair(hparams)
    return found
