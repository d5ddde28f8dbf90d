"""Which estimators are biased, and how much: python -m evaluation.bias.exact [--samples N] [--seed S] [--out FILE.csv]

A toy policy small enough to enumerate. It may think or answer, an answer ends the response, and the third token is the
last: seven responses of one to three tokens. The policy is a table of logits per prompt and prefix, so the policy
gradient of E[r] is a finite sum. So is the expectation of every estimator: all batches of P prompts and G responses,
each weighted by its probability, go through the project's own advantages and losses. What is called unbiased here is
so to rounding, not within an error bar. Batches sampled one by one, on a plainer path, check the enumeration.

Verdicts are computed from the numbers. The causes after them are read off the settings, and tests/test_exact.py holds
them to it: an estimator rid of its causes is unbiased up to a constant factor, and each cause alone makes it biased.
"""

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from algos import ALGORITHMS
from algos.describe import with_length
from algos.pieces.advantages import per_minibatch
from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator
from algos.pieces.kl import kl_full
from algos.pieces.types import Batch, Totals

LENGTH, THINK, ANSWERS = 3, 0, (1, 2)
TOLERANCE = 1.0e-9  # relative; float64 sums over some thousand batches leave about 1e-15
CRITICS = ("exact", "constant", "wrong")


@dataclass(frozen=True)
class Toy:
    """P prompts, Y responses, T tokens, V tokens of vocabulary; float64, without gradient.

    A response that is not over has thought at every token, so the prefix is known by its length: tables of prefixes
    are (P, T, ...).
    """

    tokens: Tensor  # (Y, T) int64, 0 on padding
    mask: Tensor  # (Y, T) bool
    rewards: Tensor  # (P, Y)
    correct: Tensor  # (P, Y) bool
    logits: Tensor  # (P, T, V) of the policy
    ref_logits: Tensor  # (P, T, V) of the reference
    direction: Tensor  # (P, T, V) of norm 1: where other policies lie
    wrong_values: Tensor  # (P, T)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of all responses' tokens: (P, T, V) -> (P, Y, T), 0 on padding."""
        picked = torch.log_softmax(logits, dim=-1)[:, torch.arange(LENGTH), self.tokens]
        return picked.where(self.mask, logits.new_zeros(()))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of all responses: (P, T, V) -> (P, Y)."""
        return self.logprobs(logits).sum(dim=-1).exp()

    def values(self, critic: str, logits: Tensor) -> Tensor:
        """V(prefix), (P, T): the expected reward, one number for all, or numbers that have nothing to do with it."""
        if critic == "constant":
            return torch.full_like(self.wrong_values, 0.5)
        if critic == "wrong":
            return self.wrong_values
        visits = self.probabilities(logits)[:, :, None] * self.mask
        return (visits * self.rewards[:, :, None]).sum(dim=1) / visits.sum(dim=1)

    def greedy(self, logits: Tensor) -> Tensor:
        """The greedy response to each prompt: (P, T, V) -> (P,) int64."""
        best = logits.argmax(dim=-1)[:, None]  # (P, 1, T)
        return ((self.tokens == best) | ~self.mask).all(dim=-1).int().argmax(dim=-1)

    def moved(self, distance: float) -> Tensor:
        """Logits (P, T, V) at this Euclidean distance from the policy's."""
        return self.logits + distance * self.direction


def make_toy(seed: int = 0, prompts: int = 2, binary: bool = False) -> Toy:
    """Every other prompt is hard. A right answer earns 1, each token 0.2, all of it with noise; binary: just 1 or 0."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    responses = [(THINK,) * k + (a,) for k in range(LENGTH) for a in ANSWERS] + [(THINK,) * LENGTH]
    mask = torch.tensor([[t < len(y) for t in range(LENGTH)] for y in responses])
    tokens = torch.tensor([list(y) + [0] * (LENGTH - len(y)) for y in responses])
    right = torch.tensor([ANSWERS[p % 2] for p in range(prompts)])
    correct = torch.tensor([y[-1] for y in responses]) == right[:, None]
    shaped = correct + 0.2 * mask.sum(dim=1) + 0.3 * noise(prompts, len(responses))
    logits = 0.5 * noise(prompts, LENGTH, 1 + len(ANSWERS))
    for p in range(prompts):
        logits[p, :, right[p]] += 1.0 if p % 2 == 0 else -1.0
    direction = noise(*logits.shape)
    return Toy(
        tokens,
        mask,
        rewards=correct.double() if binary else shaped,
        correct=correct,
        logits=logits,
        ref_logits=logits + 0.7 * noise(*logits.shape),
        direction=direction / direction.norm(),
        wrong_values=noise(prompts, LENGTH),
    )


# What should be estimated


def gradient_of(value: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(value(leaf), leaf)[0]


def expected_reward(toy: Toy, rewards: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """logits -> mean over prompts of the expected reward; rewards (P, Y), by default the toy's."""
    rewards = toy.rewards if rewards is None else rewards
    return lambda logits: (toy.probabilities(logits) * rewards).sum(dim=-1).mean()


def response_kl(toy: Toy) -> Callable[[Tensor], Tensor]:
    """logits -> KL(policy || reference) of whole responses, mean over prompts."""

    def value(logits):
        gap = (toy.logprobs(logits) - toy.logprobs(toy.ref_logits)).sum(dim=-1)
        return (toy.probabilities(logits) * gap).sum(dim=-1).mean()

    return value


def prefix_kl(toy: Toy, visited_by: Tensor, direction: str = "reverse") -> Callable[[Tensor], Tensor]:
    """logits -> sum over a response's tokens of the KL given the prefix; prefixes as the policy visited_by meets them.

    In value the KL of whole responses, if visited by the policy itself. The gradient is a partial one: it leaves out
    that a token changes which prefixes come later (arXiv:2506.09477).
    """
    visits = (toy.probabilities(visited_by)[:, :, None] * toy.mask).sum(dim=1).detach()  # (P, T)
    reference = torch.log_softmax(toy.ref_logits, dim=-1)
    return lambda logits: (visits * kl_full(torch.log_softmax(logits, -1), reference, direction)).sum(dim=-1).mean()


# Batches


def enumerate_batches(
    toy: Toy, group_size: int, dynamic_sampling: bool, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All K batches of one group per prompt: prompts (K, P), responses (K, P, G), probabilities (K,).

    Groups that differ in order only are one, as no estimator here looks at the order. Dynamic sampling draws prompt
    and group until one holds right and wrong answers, P times, without a limit on the rounds.
    """
    groups = list(combinations_with_replacement(range(len(toy.tokens)), group_size))
    rows = torch.tensor(groups)  # (M, G)
    orders = [math.factorial(group_size) // math.prod(math.factorial(g.count(y)) for y in set(g)) for g in groups]
    chances = torch.tensor(orders) * toy.probabilities(logits)[:, rows].prod(dim=-1)  # (P, M)
    if dynamic_sampling:
        right = toy.correct[:, rows].sum(dim=-1)
        chances = chances.where((right > 0) & (right < group_size), torch.zeros_like(chances))
        chances = chances / chances.sum()
        slots = [[(p, m) for p, m in chances.nonzero().tolist()]] * len(chances)
    else:
        slots = [[(p, m) for m in range(len(groups))] for p in range(len(chances))]
    prompts, chosen = torch.tensor(list(product(*slots))).unbind(-1)  # (K, P) each
    return prompts, rows[chosen], chances[prompts, chosen].prod(dim=-1)


def sample_batches(
    toy: Toy, group_size: int, dynamic_sampling: bool, logits: Tensor, generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompts (1, P) and responses (1, P, G) of one batch after another, without end."""
    chances = toy.probabilities(logits)
    while True:
        prompts, groups = [], []
        while len(prompts) < len(chances):
            p = len(prompts)
            if dynamic_sampling:
                p = int(torch.randint(len(chances), (), generator=generator))
            group = torch.multinomial(chances[p], group_size, replacement=True, generator=generator)
            if not dynamic_sampling or 0 < toy.correct[p, group].sum() < group_size:
                prompts.append(p)
                groups.append(group)
        yield torch.tensor([prompts]), torch.stack(groups)[None]


@dataclass(frozen=True)
class Policies:
    """Logits (P, T, V) of the three policies of section 7 of the reference; by default all are the toy's."""

    new: Tensor  # whose gradient is estimated
    old: Tensor  # the ratio's denominator
    sampler: Tensor  # where responses come from

    @classmethod
    def of(cls, toy: Toy, old: Tensor | None = None, sampler: Tensor | None = None) -> "Policies":
        old = toy.logits if old is None else old
        return cls(toy.logits, old, old if sampler is None else sampler)


def as_batch(toy: Toy, prompts: Tensor, responses: Tensor, config: Estimator, policies: Policies, critic: str) -> Batch:
    """prompts (N,) and responses (N, G) as the trainer's batch; its padding holds NaN, which nothing may look at."""
    group_size = responses.shape[1]
    p, y = prompts.repeat_interleave(group_size), responses.flatten()
    mask = toy.mask[y]

    def cells(table: Tensor) -> Tensor:
        """(P, Y, T), or (P, T) of prefixes -> (N G, T)."""
        return (table[p, y] if table.dim() == 3 else table[p]).where(mask, torch.nan)

    truncated = mask[:, -1] & (toy.tokens[y, -1] == THINK)
    keep = toy.correct[p, y] if config.keep == "correct" else torch.ones_like(truncated)
    old = torch.log_softmax(policies.old, dim=-1)
    return Batch(
        sequence_ids=toy.tokens[y],
        prompt_lengths=torch.zeros_like(y),
        response_ids=toy.tokens[y],
        response_mask=mask,
        sampler_logprobs=cells(toy.logprobs(policies.sampler)),
        rewards=toy.rewards[p, y],
        group_size=group_size,
        old_logprobs=cells(toy.logprobs(policies.old)),
        ref_logprobs=cells(toy.logprobs(toy.ref_logits)),
        values=cells(toy.values(critic, policies.old)),
        full_kl=cells(kl_full(old, torch.log_softmax(toy.ref_logits, dim=-1))),
        greedy_rewards=toy.rewards[prompts, toy.greedy(policies.old)[prompts]],
        keep=keep & ~truncated if config.mask_truncated else keep,
    )


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Whole groups of a batch, uncut."""
    cut = {name: x[start:stop] for name, x in vars(batch).items() if isinstance(x, Tensor)}
    size = batch.group_size
    return replace(batch, **cut | {"greedy_rewards": batch.greedy_rewards[start // size : stop // size]})


# What an estimator makes of them


def advantages_of(algorithm: Algorithm, config: Estimator, batch: Batch) -> Tensor:
    return per_minibatch(algorithm.advantages(batch, config), batch.loss_mask, config)


def looks_across_groups(config: Estimator) -> bool:
    """Whether an advantage depends on other groups, so that batches must be handed over one by one."""
    across = config.baseline == "batch_mean" or config.scale in ("batch_std", "whiten", "whiten_minibatch")
    return across or getattr(config, "whiten_rewards", False)


def loss_of(algorithm, config, toy: Toy, batch: Batch, advantages: Tensor, logits: Tensor, prompts: Tensor, totals):
    """The algorithm's loss of rows with one table of logits each, (N, T, V), and prompts (N,)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    full_kl = None
    if config.needs_full_kl and config.kl_in == "loss":
        full_kl = kl_full(logprobs, torch.log_softmax(toy.ref_logits, dim=-1)[prompts], config.kl_direction)
    return algorithm.loss(
        logprobs.gather(-1, batch.response_ids[..., None]).squeeze(-1),
        batch.old_logprobs,
        advantages,
        batch.loss_mask,
        config,
        totals,
        ref_logprobs=batch.ref_logprobs,
        sampler_logprobs=batch.sampler_logprobs,
        entropies=-(logprobs.exp() * logprobs).sum(dim=-1),
        full_kl=full_kl,
    )[0]


def gradients(algorithm, config, toy: Toy, prompts, responses, policies: Policies, critic: str = "exact") -> Tensor:
    """What each of K batches would step along: minus the loss's gradient, (K, P, T, V).

    Losses of micro-batches add up if they share the step's totals, so batches of equal totals go through together.
    """
    count, rows = len(prompts), responses[0].numel()
    batch = as_batch(toy, prompts.flatten(), responses.flatten(0, 1), config, policies, critic)
    if looks_across_groups(config):
        parts = [rows_of(batch, k * rows, (k + 1) * rows) for k in range(count)]
        advantages = torch.cat([advantages_of(algorithm, config, part) for part in parts])
    else:
        advantages = advantages_of(algorithm, config, batch)
    prompt = prompts.flatten().repeat_interleave(batch.group_size)  # (K P G,)
    number = torch.arange(count).repeat_interleave(rows)
    mask = batch.loss_mask.view(count, rows, LENGTH)
    counts = torch.stack((mask.any(dim=-1).sum(dim=1), mask.sum(dim=(1, 2))), dim=-1).clamp(min=1)  # Totals.of, each
    found = torch.zeros(count, *policies.new.shape, dtype=policies.new.dtype)
    for pair in counts.unique(dim=0):
        inside = (counts == pair).all(dim=-1)[number].nonzero().squeeze(-1)
        leaf = policies.new[prompt[inside]].requires_grad_(True)
        cut = {name: x[inside] for name, x in vars(batch).items() if isinstance(x, Tensor) and name != "greedy_rewards"}
        part, totals = replace(batch, **cut), Totals(*pair.tolist())
        loss = loss_of(algorithm, config, toy, part, advantages[inside], leaf, prompt[inside], totals)
        found.index_put_((number[inside], prompt[inside]), -torch.autograd.grad(loss, leaf)[0], accumulate=True)
    return found


def sampled_gradients(algorithm, config, toy: Toy, group_size: int, count: int, generator, critic="exact") -> Tensor:
    """On-policy batches sampled and differentiated one at a time, with respect to the policy's own logits."""
    policies, found = Policies.of(toy), []
    batches = sample_batches(toy, group_size, config.dynamic_sampling, policies.sampler, generator)
    for _, (prompts, responses) in zip(range(count), batches, strict=False):
        batch = as_batch(toy, prompts[0], responses[0], config, policies, critic)
        advantages = advantages_of(algorithm, config, batch)
        prompt = prompts[0].repeat_interleave(group_size)
        leaf = policies.new.clone().requires_grad_(True)
        totals = Totals.of(batch.loss_mask)
        loss = loss_of(algorithm, config, toy, batch, advantages, leaf[prompt], prompt, totals)
        found.append(-torch.autograd.grad(loss, leaf)[0])
    return torch.stack(found)


# Measuring and judging


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
        """|mean - c g| / |c g|: the bias that no learning rate repairs."""
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
        """The verdict, what it comes from, and by what the settings multiply the expectation besides."""
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
    **settings,
) -> Bias:
    """An algorithm with other settings, by enumeration; exact: by default the gradient of what it is to maximize."""
    config = configured(algorithm, **settings)
    policies = policies or Policies.of(toy)
    prompts, responses, weights = enumerate_batches(toy, group_size, config.dynamic_sampling, policies.sampler)
    each = gradients(algorithm, config, toy, prompts, responses, policies, critic)
    mean = torch.einsum("k,kpsv->psv", weights, each)
    square = float((weights * (each**2).sum(dim=(1, 2, 3))).sum())
    if exact is None:
        rewards = toy.correct.to(toy.rewards.dtype) if config.keep == "correct" else None
        exact = gradient_of(expected_reward(toy, rewards), policies.new)
    length = float(mean.norm()) ** 2
    variance = square / length - 1 if length else math.nan
    return Bias(mean, exact, variance, causes(config, critic), factors(config))


def configured(algorithm: Algorithm, **settings) -> Estimator:
    """The algorithm's defaults with other settings, without KL and at the toy's length unless these say otherwise."""
    settings = {"kl_coef": 0.0, "kl_target": None} | settings
    return with_length(replace(algorithm.defaults, **settings), LENGTH)


@dataclass(frozen=True)
class Cause:
    """Settings that bias an estimator, and others in their place that do not."""

    words: str
    applies: Callable[[Estimator, str], bool]  # (config, critic)
    repair: Callable[[Estimator], dict] = lambda config: {}


def _is(name: str, *values) -> Callable[[Estimator, str], bool]:
    return lambda config, critic: getattr(config, name, None) in values


def _token_sum(config: Estimator) -> dict:
    level = "token" if config.ratio.startswith("sequence") else config.ratio  # a length-normalized ratio is a mean, too
    return {"ratio": level, "aggregation": "seq-mean-token-sum"}


CAUSES = (
    Cause("group std", _is("scale", "group_std", "leave_one_out_std"), lambda _: {"scale": "none"}),
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
        lambda config, critic: config.has_critic and config.gae_lambda < 1 and critic != "exact",
        lambda _: {"gae_lambda": 1.0},
    ),
    Cause("gamma < 1", lambda config, _: config.has_critic and config.gamma < 1, lambda _: {"gamma": 1.0}),
    Cause("dynamic sampling", _is("dynamic_sampling", True), lambda _: {"dynamic_sampling": False}),
    Cause("only correct responses", _is("keep", "correct"), lambda _: {"keep": "all"}),
    Cause("truncated responses left out", _is("mask_truncated", True), lambda _: {"mask_truncated": False}),
)
FACTORS = {  # setting, value -> what the expectation is multiplied by
    ("baseline", "group_mean"): "(G-1)/G",  # the own response's share in the baseline
    ("baseline", "batch_mean"): "(PG-1)/PG",
    ("aggregation", "seq-mean-token-sum-norm"): "1/L",
    ("dynamic_sampling", True): "1/P(mixed group)",
}


def causes(config: Estimator, critic: str = "exact") -> list[str]:
    return [cause.words for cause in CAUSES if cause.applies(config, critic)]


def factors(config: Estimator) -> list[str]:
    return [words for (name, value), words in FACTORS.items() if getattr(config, name) == value]


def repaired(config: Estimator, critic: str = "exact", leave: str = "") -> dict:
    """The settings that take away all causes of bias but the one in words `leave`."""
    found = {}
    for cause in CAUSES:
        if cause.applies(config, critic) and cause.words != leave:
            found |= cause.repair(config)
    return found


# The tables


GROUP_SIZE, SMALL_GROUP = 3, 2
DISTANCE, SAMPLER_DISTANCE = 0.8, 2.0  # of the old policy and of the sampler from the policy, in logits
UNCLIPPED = {"clip_low": 1.0, "clip_high": 1.0e9}  # a ratio is never below 0
PLAIN = {"baseline": "leave_one_out", "scale": "none", "aggregation": "seq-mean-token-sum"}
MEAN = PLAIN | {"aggregation": "seq-mean-token-mean"}


def number(x: float) -> str:
    if math.isnan(x):
        return "-"
    return "0" if abs(x) < TOLERANCE else f"{x:.1e}" if abs(x) < 1e-3 else f"{x:.4f}"


def columns(found: Bias) -> dict[str, float | str]:
    return {
        "cosine": found.cosine,
        "c": found.factor,
        "rest": found.rest,
        "bias": found.bias,
        "variance": found.variance,
        "verdict": found.words,
    }


def deviation(sampled: Tensor, mean: Tensor) -> float:
    """How far the mean of sampled batches (N, P, T, V) is from `mean`: root mean square in standard errors, about 1."""
    error = sampled.std(dim=0) / len(sampled) ** 0.5
    moving = error > 0
    return float((((sampled.mean(dim=0) - mean) / error)[moving] ** 2).mean().sqrt())


def all_algorithms(toy: Toy, samples: int, generator: torch.Generator) -> Iterator[dict]:
    entries = [(name, name, "exact") for name in ALGORITHMS]
    entries += [(f"{name}, {critic} critic", name, critic) for name in ("ppo", "ppo_mc") for critic in CRITICS[1:]]
    for label, name, critic in entries:
        algorithm = ALGORITHMS[name]
        found = measure(algorithm, toy, GROUP_SIZE, critic)
        row = {"algorithm": label, **columns(found)}
        if samples:
            config = configured(algorithm)
            sampled = sampled_gradients(algorithm, config, toy, GROUP_SIZE, samples, generator, critic)
            row["sampled"] = deviation(sampled, found.mean)
        yield row


STEPS = (  # label, algorithm, critic, changes that add up within an algorithm
    ("grpo", "grpo", "exact", {}),
    ("  no standard deviation", "grpo", "exact", {"scale": "none"}),
    ("  and token sum", "grpo", "exact", {"aggregation": "seq-mean-token-sum"}),
    ("  and own response out of the baseline", "grpo", "exact", {"baseline": "leave_one_out"}),
    ("  and dynamic sampling", "grpo", "exact", {"dynamic_sampling": True}),
    ("ppo, wrong critic", "ppo", "wrong", {}),
    ("  not whitened", "ppo", "wrong", {"scale": "none"}),
    ("  and token sum", "ppo", "wrong", {"aggregation": "seq-mean-token-sum"}),
    ("  and lambda 1", "ppo", "wrong", {"gae_lambda": 1.0}),
    ("  lambda 0 instead", "ppo", "wrong", {"gae_lambda": 0.0}),
    ("  lambda 0, constant critic", "ppo", "constant", {"gae_lambda": 0.0}),
    ("  lambda 0, exact critic", "ppo", "exact", {"gae_lambda": 0.0}),
)


def step_by_step(toy: Toy, toy_binary: Toy) -> Iterator[dict]:
    """From GRPO to RLOO and from PPO to the policy gradient, one choice at a time."""
    settings: dict = {}
    for label, name, critic, change in STEPS:
        settings = settings | change if change else {}
        yield {"estimator": label, **columns(measure(ALGORITHMS[name], toy, GROUP_SIZE, critic, **settings))}
        if change == {"dynamic_sampling": True}:
            found = measure(ALGORITHMS[name], toy_binary, GROUP_SIZE, critic, **settings)
            yield {"estimator": "  the same with rewards 0 and 1", **columns(found)}


KL_TERMS = {
    **{
        f"{kind} in reward, credit {credit}": {"kl_in": "reward", "kl_estimator": kind, "credit": credit}
        for kind, credit in product(("k1", "k2", "k3", "full"), ("response", "token"))
    },
    **{f"{kind} in loss": {"kl_in": "loss", "kl_estimator": kind} for kind in ("k1", "k2", "k3", "k3+", "full")},
    "full in loss, forward": {"kl_in": "loss", "kl_estimator": "full", "kl_direction": "forward"},
    "ratio x k1 in loss": {"kl_in": "loss", "kl_estimator": "k1", "kl_importance_weighted": True},
    "ratio x k3 in loss": {"kl_in": "loss", "kl_estimator": "k3", "kl_importance_weighted": True},
}


def kl_gradient(toy: Toy, policies: Policies, **settings) -> Tensor:
    """Expected gradient (P, T, V) of a KL term alone, coefficient 1, tokens summed."""
    silent = replace(toy, rewards=torch.zeros_like(toy.rewards))
    exact = gradient_of(response_kl(toy), policies.new)
    return -measure(ALGORITHMS["reinforce"], silent, 1, policies=policies, exact=exact, kl_coef=1.0, **settings).mean


def kl_terms(toy: Toy) -> Iterator[dict]:
    """Which KL gradient each placement and estimator has, on-policy and with responses of another policy."""
    for where, old in (("", toy.logits), (", off-policy", toy.moved(DISTANCE))):
        policies = Policies.of(toy, old)
        exact = {
            "whole responses": gradient_of(response_kl(toy), policies.new),
            "per prefix": gradient_of(prefix_kl(toy, old), policies.new),
            "forward, per prefix": gradient_of(prefix_kl(toy, old, "forward"), policies.new),
        }
        for label, settings in KL_TERMS.items():
            if where and settings["kl_in"] == "reward":
                continue  # without a ratio on the policy term nothing in the reward is right off-policy
            mean = kl_gradient(toy, policies, **settings)
            gaps = {name: relative(mean, g) for name, g in exact.items()}
            fits = [name for name, gap in gaps.items() if gap < TOLERANCE]
            none = "no gradient" if float(mean.norm()) < TOLERANCE else "none of them"
            yield {"KL term": label + where, **gaps, "verdict": f"gradient of the KL, {fits[0]}" if fits else none}


OFF_POLICY = (
    ("no ratio", "rloo", {}),
    ("token ratio", "grpo", PLAIN | UNCLIPPED),
    ("product ratio", "grpo", PLAIN | UNCLIPPED | {"ratio": "product"}),
    ("token ratio, clipped at 0.2", "grpo", PLAIN),
    ("product ratio, clipped at 0.2", "grpo", PLAIN | {"ratio": "product"}),
    ("token ratio cut at 1.2, no gradient (cispo)", "cispo", PLAIN | {"is_max": 1.2}),
    ("token ratio, soft gate (sapo)", "sapo", PLAIN),
    ("token ratio, token mean of each response", "grpo", MEAN | UNCLIPPED),
    ("geometric mean of token ratios (gspo)", "gspo", MEAN | UNCLIPPED),
    ("geometric mean, clipped at 3e-4 and 4e-4", "gspo", MEAN),
    ("geometric mean of clipped ratios (gmpo)", "gmpo", {"baseline": "leave_one_out", "scale": "none"}),
)


def off_policy(toy: Toy) -> Iterator[dict]:
    """Responses of an older policy; order: the power of a small distance with which the bias vanishes (0: it stays)."""
    for label, name, settings in OFF_POLICY:
        far, near, nearer = (
            measure(ALGORITHMS[name], toy, SMALL_GROUP, policies=Policies.of(toy, toy.moved(distance)), **settings)
            for distance in (DISTANCE, DISTANCE / 100, DISTANCE / 200)
        )
        order = math.log2(near.bias / nearer.bias) if nearer.bias > TOLERANCE else math.nan
        yield {"estimator": label, **columns(far), "order": order, "verdict": far.verdict}


CORRECTIONS = {
    "none": {},
    **{
        f"{level}_{how}, {low:g} to {high:g}": {
            "correction": f"{level}_{how}",
            "correction_low": low,
            "correction_high": high,
        }
        for level in ("token", "sequence")
        for how, low, high in (("truncate", 0.0, 1.0e9), ("truncate", 0.0, 2.0), ("mask", 0.5, 2.0))
    },
}


def corrections(toy: Toy) -> Iterator[dict]:
    """RLOO on responses of a sampler that differs from the trainer's policy."""
    policies = Policies.of(toy, old=toy.logits, sampler=toy.moved(SAMPLER_DISTANCE))
    for label, settings in CORRECTIONS.items():
        found = measure(ALGORITHMS["rloo"], toy, SMALL_GROUP, policies=policies, **settings)
        yield {"correction": label, **columns(found), "verdict": found.verdict}


def table(title: str, rows: list[dict]) -> str:
    names = list(rows[0])
    names.sort(key=lambda name: name == "verdict")  # words last
    cells = [names] + [[x if isinstance(x := row[name], str) else number(x) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    text = [
        "  ".join(
            cell.ljust(width) if isinstance(rows[0][name], str) else cell.rjust(width)
            for cell, width, name in zip(line, widths, names, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([title, *text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.bias.exact", description="Bias and variance of every estimator."
    )
    parser.add_argument("--samples", type=int, default=200, help="sampled batches that check the enumeration; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the toy's tables and of the sampled batches")
    parser.add_argument("--out", help="CSV file of all tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    toy, generator = make_toy(args.seed), torch.Generator().manual_seed(args.seed)

    def gap(distance):  # KL of a moved policy to the policy
        moved = replace(toy, logits=toy.moved(distance), ref_logits=toy.logits)
        return float(response_kl(moved)(moved.logits))

    sections = {
        f"On-policy, P = 2 prompts, G = {GROUP_SIZE}, KL left out": all_algorithms(toy, args.samples, generator),
        "One choice at a time": step_by_step(toy, make_toy(args.seed, binary=True)),
        "KL terms alone: distance from the gradient of KL(policy || reference)": kl_terms(toy),
        f"Off-policy, G = {SMALL_GROUP}, KL(old || policy) = {gap(DISTANCE):.3f} nats": off_policy(toy),
        f"Corrected for a sampler, RLOO, G = {SMALL_GROUP}, KL(sampler || policy) = {gap(SAMPLER_DISTANCE):.3f} nats": (
            corrections(toy)
        ),
    }
    print(LEGEND)
    written = []
    for title, found in sections.items():
        rows = list(found)
        print(table(title, rows), flush=True)
        written += [{"section": title, "name": next(iter(row.values())), **dict(list(row.items())[1:])} for row in rows]
    if args.out:
        names = list(dict.fromkeys(name for row in written for name in row))
        with open(args.out, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(written)


LEGEND = """mean of the estimator over all batches = c x exact gradient + rest
cosine    of mean and exact gradient
rest      |rest| / |c x exact|: what no learning rate repairs
bias      |mean - exact| / |exact|
variance  trace of the covariance over batches / |mean|^2
sampled   mean of sampled batches against the enumerated one, root mean square in standard errors: about 1
"""

if __name__ == "__main__":
    main()
