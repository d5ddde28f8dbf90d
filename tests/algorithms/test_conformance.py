"""Every algorithm of the table held to the same properties; one that is added comes under them by its line there.

A case is an algorithm with its defaults, with a sampled KL times the ratio, an entropy bonus and a correction on top,
or with the exact KL and another correction. Loss, value loss, metrics and all gradients are compared at once. At the
end: all combinations of the pieces, and wrong algorithms that these tests must notice.
"""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from conftest import NAN
from torch import Tensor

from algos import ALGORITHMS, FILES, cispo, describe, grpo, ppo, ppo_penalty
from algos.pieces import advantages as pieces
from algos.pieces.aggregation import MODES, aggregate
from algos.pieces.algorithm import Algorithm
from algos.pieces.clipping import clipped_objective
from algos.pieces.correction import Correction, weights
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator
from algos.pieces.ratios import LEVELS, PER_RESPONSE
from algos.pieces.settings import from_dict, settings
from algos.pieces.types import Totals
from algos.reinforce import reinforce_objective
from algos.training.config import RunConfig
from algos.training.update.batch_metrics import reduce

INF = float("inf")


@dataclass(frozen=True)
class Case:
    name: str
    algorithm: Algorithm
    config: Estimator


# What a user might add: a config of its own with an objective, and advantages of its own.


@settings
class TemperedConfig(Estimator):
    temper: float = 0.5


def tempered_objective(log_ratio, logprobs, advantages, mask, config):
    """ratio^temper / temper A: (B, T)."""
    return (config.temper * log_ratio).exp() / config.temper * advantages, {"ratio_above": log_ratio > 0}


def sign_advantages(batch, config):
    """The sign of what the response's reward is above its group's mean."""
    return pieces.center(batch.rewards.view(-1, batch.group_size), config.baseline).sign().view(-1, 1)


ADDED = {
    "added_objective": Algorithm(TemperedConfig(), tempered_objective, lambda c: "rho^t A", "own", "here", "grpo"),
    "added_advantages": replace(grpo.ALGORITHM, advantages=sign_advantages, relative="grpo"),
}
VARIANTS = {
    "defaults": {},
    "kl": {
        "kl_coef": 0.05,
        "kl_in": "loss",
        "kl_estimator": "k3",
        "kl_importance_weighted": True,
        "entropy_coef": 0.02,
        "correction": "sequence_truncate",
    },
    "full": {
        "kl_coef": 0.1,
        "kl_in": "loss",
        "kl_estimator": "full",
        "kl_importance_weighted": False,
        "correction": "sequence_mask",
    },
}
ENTRIES = {**ALGORITHMS, **ADDED}


def case_of(name: str, algorithm: Algorithm, **settings) -> Case:
    return Case(name, algorithm, describe.with_length(replace(algorithm.defaults, **settings), 5))


REFUSED: set[tuple[str, str]] = set()  # (algorithm, variant): what an algorithm refuses; one that is not here fails


def cases():
    for name, variant in product(ENTRIES, VARIANTS):
        if (name, variant) in REFUSED:
            with pytest.raises(ValueError):
                case_of(name, ENTRIES[name], **VARIANTS[variant])
        else:
            yield pytest.param(case_of(name, ENTRIES[name], **VARIANTS[variant]), id=f"{name}-{variant}")


every = pytest.mark.parametrize("case", list(cases()))
every_default = pytest.mark.parametrize(
    "case", [pytest.param(case_of(name, entry), id=name) for name, entry in ENTRIES.items()]
)

# ---- one batch that has what any algorithm needs, one step, one comparison

LENGTHS = (1, 4, 5, 2, 3, 1, 5, 4, 2, 5, 3, 1)
LEAVES = ("logprobs", "entropies", "full_kl", "new_values")  # what carries gradient
PER_TOKEN = (*LEAVES, "old_logprobs", "ref_logprobs", "sampler_logprobs", "values")


class Made(SimpleNamespace):
    """A batch whose tensors a test may replace."""

    @property
    def loss_mask(self) -> Tensor:
        return self.response_mask & self.keep[:, None]


def make(config: Estimator, lengths=LENGTHS, group_size: int = 4, width: int = 5, spread: float = 0.3, seed: int = 0):
    """A batch of len(lengths) / group_size prompts. Row 6 is not kept; with keep `correct` no wrong response is.

    spread: standard deviation of the log-ratios, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -0.3 - normal(rows, width).abs()
    b = Made(
        group_size=group_size,
        response_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
        correct=torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1][:rows], dtype=torch.bool),
        old_logprobs=old,
        logprobs=old + spread * normal(rows, width),
        ref_logprobs=old + 0.3 * normal(rows, width),
        sampler_logprobs=old + 0.3 * normal(rows, width),
        values=normal(rows, width),
        full_kl=normal(rows, width) ** 2,
        entropies=normal(rows, width) ** 2,
        greedy_rewards=normal(rows // group_size),
    )
    b.new_values = b.values + 0.3 * normal(rows, width)
    b.rewards = b.correct.double() + 0.1 * normal(rows)
    return with_keep(b, config)


def with_keep(b, config: Estimator):
    b.keep = b.correct.clone() if config.keep == "correct" else torch.arange(len(b.rewards)) != 6
    return b


def loss_mask(b) -> Tensor:
    return b.loss_mask


def with_advantages(case: Case, b):
    b.advantages = case.algorithm.advantages(b, case.config)
    b.advantages = pieces.per_minibatch(b.advantages, loss_mask(b), case.config)
    b.returns = case.algorithm.returns(b, case.config) if case.config.has_critic else torch.zeros_like(b.values)
    return b


def batch(case: Case, **options):
    return with_advantages(case, make(case.config, **options))


def fill(b, mask: Tensor, value: float):
    """`value` wherever mask is False, in all tensors of tokens; in responses of which nothing is left, everywhere."""
    filled = Made(**vars(b))
    for name, x in vars(b).items():
        if name in PER_TOKEN or name in ("advantages", "returns"):
            valid = mask if x.shape == mask.shape else mask.any(dim=1, keepdim=True)
            setattr(filled, name, torch.where(valid, x, value))
    return filled


def rows_of(b, rows):
    """Some rows, and the columns that they use, as the trainer's micro-batches have them."""
    width = max(int(b.response_mask[rows].sum(dim=1).max()), 1)
    chosen = Made(group_size=b.group_size)
    for name, x in vars(b).items():
        if isinstance(x, Tensor) and name != "greedy_rewards":
            setattr(chosen, name, x[rows][:, :width] if x.dim() == 2 and x.shape == b.response_mask.shape else x[rows])
    return chosen


def step(case: Case, b, totals: Totals | None = None, algorithm: Algorithm | None = None):
    """Losses, metrics and the gradient of everything that carries one."""
    algorithm, mask, config = algorithm or case.algorithm, loss_mask(b), case.config
    totals = totals or Totals.of(mask)
    leaf = {name: getattr(b, name).detach().clone().requires_grad_(True) for name in LEAVES}
    loss, metrics = algorithm.loss(
        leaf["logprobs"],
        b.old_logprobs,
        b.advantages,
        mask,
        config,
        totals,
        ref_logprobs=b.ref_logprobs,
        sampler_logprobs=b.sampler_logprobs,
        entropies=leaf["entropies"],
        full_kl=leaf["full_kl"],
    )
    numbers, total = {"loss": loss.detach(), **metrics}, loss
    if config.has_critic:
        value, metrics = algorithm.value_loss(leaf["new_values"], b.values, b.returns, mask, config, totals)
        numbers, total = {**numbers, "value": value.detach(), **metrics}, loss + value
    total.backward()
    assert not any(x.requires_grad for x in metrics.values())
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaf.items()}
    return SimpleNamespace(numbers=numbers, gradients=gradients)


def same(got, expected, atol: float = 1e-12, rtol: float = 1e-9):
    assert list(got.numbers) == list(expected.numbers)
    for name, x in got.numbers.items():
        wanted, slack = expected.numbers[name], 1e-6 if x.dtype == torch.float32 else 0.0  # shares are in single
        close = torch.allclose(x.double(), wanted.double(), rtol + slack, atol + slack)
        assert close, f"{name}: {x.item()}, not {wanted.item()}"
    for name, x in got.gradients.items():
        torch.testing.assert_close(x, expected.gradients[name], atol=atol, rtol=rtol, check_dtype=False)


def moves(got) -> bool:
    """Whether the policy's gradient is more than nothing: else a comparison would say nothing."""
    return bool(got.gradients["logprobs"].abs().max() > 1e-4)


# ---- masks and sums


@every
@pytest.mark.parametrize("padding", [NAN, INF, -INF, -7.3])
def test_padding_has_no_effect(case, padding):
    b = make(case.config)
    clean = with_advantages(case, fill(b, b.response_mask, 0.0))
    dirty = with_advantages(case, fill(b, b.response_mask, padding))
    for name in ("advantages", "returns"):
        for x, y in zip(getattr(clean, name), getattr(dirty, name), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
    expected = step(case, clean)
    same(step(case, fill(dirty, loss_mask(b), padding)), expected)
    assert moves(expected) and (expected.gradients["logprobs"][~loss_mask(b)] == 0).all()


@every
def test_the_order_of_responses_has_no_effect(case):
    b = batch(case)
    order = torch.randperm(len(b.rewards), generator=torch.Generator().manual_seed(1))
    expected = step(case, b)
    expected.gradients = {name: x[order] for name, x in expected.gradients.items()}
    same(step(case, rows_of(b, order)), expected)


@every
@pytest.mark.parametrize("sizes", [(6, 6), (4, 4, 4), (1, 7, 4), (3, 9), (1,) * 12], ids=str)
def test_micro_batches_add_up_to_the_step(case, sizes):  # sorted by length: the first ones have one column
    b = batch(case)
    b = rows_of(b, b.response_mask.sum(dim=1).argsort(stable=True))
    expected, totals = step(case, b), Totals.of(loss_mask(b))
    parts = [step(case, rows_of(b, rows), totals) for rows in torch.arange(len(b.rewards)).split(list(sizes))]
    numbers = {name: reduce(name, [part.numbers[name] for part in parts], sum) for name in expected.numbers}

    def joined(name):
        pad = torch.nn.functional.pad
        return torch.cat([pad(p.gradients[name], (0, 5 - p.gradients[name].shape[1])) for p in parts])

    same(SimpleNamespace(numbers=numbers, gradients={name: joined(name) for name in LEAVES}), expected)


@every
@pytest.mark.parametrize("extra", ["padding column", "empty response", "response that is not kept"])
def test_what_is_masked_is_never_counted(case, extra):
    b = batch(case)
    more = Made(**vars(b))
    for name, x in vars(b).items():
        if not isinstance(x, Tensor) or name == "greedy_rewards":
            continue
        empty = False if x.dtype == torch.bool else NAN
        if extra != "padding column":
            new = torch.full_like(x[:1], empty)
            if extra == "response that is not kept" and name == "response_mask":
                new = torch.ones_like(new)
            setattr(more, name, torch.cat((x, new)))
        elif x.shape == b.response_mask.shape:
            setattr(more, name, torch.cat((x, torch.full_like(x[:, :1], empty)), dim=1))
    if extra == "empty response":
        more.keep[-1] = True
    assert Totals.of(loss_mask(more)) == Totals.of(loss_mask(b))
    got = step(case, more)
    for name, x in got.gradients.items():
        assert (x[len(b.rewards) :] == 0).all() and (x[:, 5:] == 0).all()
        got.gradients[name] = x[: len(b.rewards), :5]
    same(got, step(case, b))


@every
def test_one_token_responses_need_no_second_column(case):
    lengths = (1,) * 8
    wide = make(case.config, lengths, width=3)
    narrow = rows_of(wide, torch.arange(8))
    narrow.greedy_rewards = wide.greedy_rewards
    assert narrow.response_mask.shape == (8, 1)
    got, expected = (step(case, with_advantages(case, b)) for b in (narrow, wide))
    expected.gradients = {name: x[:, :1] for name, x in expected.gradients.items()}
    same(got, expected)
    assert moves(got)


@every
@pytest.mark.parametrize("lengths", [(0, 3, 2, 5, 1, 2, 0, 0), (0, 0, 0, 0, 2, 3, 1, 2), (0,) * 8], ids=str)
def test_empty_responses_are_finite_and_have_no_gradient(case, lengths):
    b = batch(case, lengths=lengths)
    assert b.advantages.isfinite().all()
    got = step(case, fill(b, loss_mask(b), NAN))
    assert all(x.isfinite() for x in got.numbers.values())
    for x in got.gradients.values():
        assert x.isfinite().all() and (x[~loss_mask(b)] == 0).all()
    if not any(lengths):
        assert got.numbers["loss"] == 0


@every
def test_single_precision_agrees_with_double(case):
    b, single = batch(case), make(case.config)
    for name, x in vars(single).items():
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            setattr(single, name, x.float())
    got = step(case, with_advantages(case, single))
    assert got.numbers["loss"].dtype == torch.float32
    same(got, step(case, b), atol=2e-5, rtol=1e-4)


# ---- advantages


@every_default
def test_the_order_of_groups_and_within_them_permutes_the_advantages(case):
    b = batch(case)
    groups = torch.tensor([2, 0, 1])
    order = (groups[:, None] * 4 + torch.tensor([1, 3, 0, 2])).flatten()
    permuted = rows_of(b, order)
    permuted.greedy_rewards = b.greedy_rewards[groups]
    got = with_advantages(case, permuted)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(got, name), getattr(b, name)[order], atol=1e-12, rtol=1e-9)


@every_default
def test_the_last_valid_token_is_rewarded(case):  # row 3: wrong, 2 tokens of 5, the second one its end of sequence
    def gradient(case, right: bool):
        b = make(case.config, spread=0.0)
        b.correct[3], b.rewards[3] = right, float(right)
        return step(case, with_advantages(case, with_keep(b, case.config))).gradients["logprobs"][3]

    change = gradient(case, True) - gradient(case, False)
    assert abs(change[1]) > 1e-3 and (change[2:] == 0).all()
    if case.config.has_critic:  # without bootstrapping the reward is seen at the last token alone
        myopic = replace(case, config=replace(case.config, gae_lambda=0.0, scale="none"))
        change = gradient(myopic, True) - gradient(myopic, False)
        assert abs(change[1]) > 1e-3 and change[0] == 0


@every_default
def test_equal_rewards_are_finite_and_teach_a_group_baseline_nothing(case):
    config = replace(case.config, kl_coef=0.0, kl_target=None)  # a penalty in the reward would tell responses apart
    b = make(config, group_size=3)
    b.rewards, b.correct = torch.full_like(b.rewards, 0.1), torch.ones_like(b.correct)  # (0.1 + 0.1 + 0.1) / 3 > 0.1
    b.greedy_rewards = torch.full_like(b.greedy_rewards, 0.1)
    case = replace(case, config=config)
    b = with_advantages(case, with_keep(b, config))
    got = step(case, b)
    assert b.advantages.isfinite().all() and all(x.isfinite() for x in got.numbers.values())
    assert got.gradients["logprobs"].isfinite().all()
    if config.baseline in (*pieces.GROUP_BASELINES, "batch_mean", "greedy"):
        assert (b.advantages == 0).all() and (got.gradients["logprobs"] == 0).all()


@every_default
def test_a_group_of_one_is_accepted_or_refused_by_name(case, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, case.name, case.algorithm)
    run = {"algorithm": case.name, "seed": 0, "prompts_per_step": 3, "group_size": 1, "minibatches": 1}
    b = make(case.config, lengths=(2, 5, 3), group_size=1)
    if case.config.min_group == 1:
        from_dict(RunConfig, run)
        got = step(case, with_advantages(case, b))
        assert got.numbers["loss"].isfinite() and got.gradients["logprobs"].isfinite().all() and moves(got)
        return
    with pytest.raises(ValueError, match=f"group_size must be at least 2 for {case.name}, got 1: a response is comp"):
        from_dict(RunConfig, run)
    with pytest.raises(ValueError, match="needs groups of at least 2 responses, got"):
        case.algorithm.advantages(b, case.config)


# ---- gradients


@every
def test_on_the_first_step_ratios_are_1_and_the_gradient_is_the_plain_policy_gradient(case):
    b = batch(case, spread=0.0)
    got, mask, totals = step(case, b).numbers, loss_mask(b), Totals.of(loss_mask(b))
    for name, x in got.items():
        if "ratio" in name and name != "ratio_above":
            assert x == pytest.approx(1, abs=1e-12), name
        if name.startswith("approx_kl") or ("clip_fraction" in name and "value" not in name):
            assert x == 0, name
    logprobs = b.logprobs.clone().requires_grad_(True)
    config, policy = case.config, replace(case.config, kl_coef=0.0, kl_target=None, entropy_coef=0.0)
    one_number = case.algorithm.objective(logprobs, logprobs, b.advantages, mask, config)[0].shape[1] == 1
    mode = "seq-mean-token-mean" if one_number else config.aggregation
    plain = b.advantages * torch.where(mask, logprobs, 0.0)
    if config.correction != "none":
        plain = plain * weights(b.old_logprobs, b.sampler_logprobs, mask, config)
    (-aggregate(plain, mask, mode, totals, config.aggregation_length)).backward()
    got = step(replace(case, config=policy), b).gradients["logprobs"]
    torch.testing.assert_close(got, logprobs.grad, atol=1e-12, rtol=1e-9)
    assert got.abs().max() > 1e-4


@every
def test_without_advantage_the_policy_term_has_no_gradient(case):
    case = replace(case, config=replace(case.config, kl_coef=0.0, kl_target=None, entropy_coef=0.0))
    penalized = case.algorithm.objective is ppo_penalty.penalized_objective  # its penalty is 0 only where it starts
    b = batch(case, spread=0.0 if penalized else 0.3)
    b.advantages = torch.zeros_like(b.advantages)
    assert (step(case, b).gradients["logprobs"] == 0).all()


@every
def test_nothing_but_policy_and_critic_gets_a_gradient(case):
    b = make(case.config)
    constant = ("old_logprobs", "ref_logprobs", "sampler_logprobs", "values", "rewards", "greedy_rewards")
    for name in constant:
        getattr(b, name).requires_grad_(True)
    b = with_advantages(case, b)
    if not b.advantages.requires_grad:
        b.advantages.requires_grad_(True)
        b.returns.requires_grad_(True)
    assert moves(step(case, b))
    for name in (*constant, "advantages", "returns"):
        assert not getattr(b, name).is_leaf or getattr(b, name).grad is None, name


def frozen(case: Case, b) -> Algorithm:
    """The algorithm with its stop-gradients written out as constants, so that finite differences see what it means."""
    start, mask, algorithm = torch.where(loss_mask(b), b.logprobs, 0.0), loss_mask(b), case.algorithm
    log_ratio = torch.where(mask, b.logprobs - b.old_logprobs, 0.0)
    if algorithm.objective is cispo.truncated_objective:
        weight = log_ratio.exp().clamp(max=case.config.is_max)
        return replace(algorithm, objective=lambda _, logprobs, A, *rest: (weight * A * logprobs, {}))
    if case.config.ratio == "sequence_token":
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        inner = algorithm.objective
        return replace(algorithm, objective=lambda _, x, *rest: inner(mean + x - start, x, *rest))
    return algorithm


@every
@pytest.mark.parametrize("spread", [0.3, 5.0e-4])  # where GRPO's clip range has some tokens outside, and where GSPO's
def test_gradients_are_those_of_finite_differences(case, spread):
    b = batch(case, lengths=(2, 3, 1, 3, 3, 1, 3, 2), width=3, spread=spread, seed=3)
    mask, config = loss_mask(b), case.config
    totals, algorithm, got = Totals.of(mask), frozen(case, b), step(case, b)

    def total(name, x):
        given = {leaf: x if leaf == name else getattr(b, leaf) for leaf in LEAVES}
        extra = {"entropies": given["entropies"], "full_kl": given["full_kl"]}
        extra |= {"ref_logprobs": b.ref_logprobs, "sampler_logprobs": b.sampler_logprobs}
        if name == "new_values":
            return algorithm.value_loss(x, b.values, b.returns, mask, config, totals)[0]
        return algorithm.loss(given["logprobs"], b.old_logprobs, b.advantages, mask, config, totals, **extra)[0]

    used = ["logprobs"] + ["new_values"] * config.has_critic
    used += ["entropies"] * bool(config.entropy_coef) + ["full_kl"] * config.needs_full_kl
    for name in used:
        start, width = getattr(b, name), 1e-6
        expected = torch.zeros_like(start)
        for cell in mask.nonzero().tolist():
            nudge = torch.zeros_like(start)
            nudge[tuple(cell)] = width
            expected[tuple(cell)] = (total(name, start + nudge) - total(name, start - nudge)) / (2 * width)
        torch.testing.assert_close(got.gradients[name], expected, atol=1e-7, rtol=1e-5)
        assert expected.abs().max() > 1e-4, name
    assert all((x == 0).all() for name, x in got.gradients.items() if name not in used)


# ---- the table, its settings, its pages


@every_default
def test_settings_survive_the_record(case, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, case.name, case.algorithm)
    defaults = case.algorithm.defaults
    assert from_dict(type(defaults), json.loads(json.dumps(asdict(defaults)))) == defaults
    run = from_dict(RunConfig, {"algorithm": case.name, "seed": 0, **case.algorithm.run})
    again = from_dict(RunConfig, json.loads(json.dumps(run.resolved())))
    assert again.hparams == run.hparams == describe.with_length(defaults, run.max_response_tokens)
    assert again.resolved() == run.resolved()


@every_default
def test_it_says_where_it_comes_from(case):
    entry = case.algorithm
    assert entry.idea and entry.source and len(entry.idea.splitlines()) == 1
    assert entry.relative in ALGORITHMS and entry.relative != case.name
    assert not entry.preset_of or entry.preset_of in ALGORITHMS
    assert set(entry.run) <= {field.name for field in fields(RunConfig)}


def test_the_table_has_every_file_once_and_names_fit_for_folders():
    assert list(ALGORITHMS) == list(FILES) and len(set(FILES.values())) == len(FILES)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in FILES)


SUMS = {  # what the first line of the equation sums over
    "seq-mean-token-mean": "1/B sum_i 1/T_i sum_t ",
    "token-mean": "1/(sum_i T_i) sum_i sum_t ",
    "seq-mean-token-sum": "1/B sum_i sum_t ",
    "seq-mean-token-sum-norm": "1/B sum_i 1/L sum_t ",
}
RANGES = ("is_max", "clip_log", "tau_pos", "tau_neg", "penalty_coef", "max_kl", "dual_clip", "ratio_cap")


@every
def test_its_page_shows_aggregation_clip_range_and_what_is_added(case):
    config, page = case.config, describe.page(case.name, case.algorithm, ENTRIES, case.config)
    lines = describe.equation(case.algorithm, config)
    total = "1/B sum_i " if config.per_response else SUMS[config.aggregation]
    weight = "" if config.correction == "none" else "w_i " if config.per_response else "w_it "
    assert lines[0].startswith(f"J = {total}{weight}[{case.algorithm.term(config)}]")
    assert case.algorithm.idea in page and case.algorithm.source in page and all(line in page for line in lines)
    assert "loss aggregation:" in page and ("    L = 5" in lines) == ("1/L" in lines[0])
    if hasattr(config, "clip_low"):
        assert f"{1 - config.clip_low:g}, {1 + config.clip_high:g})" in lines[0]
        assert re.search(rf"clip low: +{config.clip_low}\nclip high: +{config.clip_high}\n", page)
    for name in RANGES:
        if getattr(config, name, None) is not None:
            assert f"{getattr(config, name):g}" in lines[0], name
    if config.kl_coef:
        assert f"{config.kl_coef:g} " in (lines[0] if config.kl_in == "loss" else "\n".join(lines[1:]))
    if config.correction != "none":
        assert "mu: the sampler" in "\n".join(lines)
    assert (" H(pi(" in lines[0]) == bool(config.entropy_coef)


# ---- all combinations of the pieces

KL = [
    {"kl_coef": 0.0},
    *({"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": estimator} for estimator in ("k1", "k2", "k3", "k3+", "full")),
    *({"kl_coef": 0.1, "kl_in": "reward", "kl_estimator": estimator} for estimator in ("k1", "k3", "k3+", "full")),
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k1", "kl_importance_weighted": True},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k2", "kl_importance_weighted": True},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "full", "kl_direction": "forward"},
    {"kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3", "kl_direction": "forward"},
]


@pytest.mark.parametrize("ratio", LEVELS)
@pytest.mark.parametrize("baseline", get_args(pieces.Baseline))
def test_every_combination_is_refused_by_name_or_has_finite_losses_that_add_up(baseline, ratio):
    critic, none = baseline == "critic", ratio == "none"
    config_class = (WithCritic if none else ppo.PPOConfig) if critic else (Estimator if none else grpo.GRPOConfig)
    objective = reinforce_objective if none else clipped_objective
    entry = Algorithm(config_class(), objective, lambda config: "", "", "")
    possible = 0
    for scale, aggregation, correction, kl in product(("none", "whiten"), MODES, get_args(Correction), KL):
        choice = {"baseline": baseline, "scale": scale, "ratio": ratio, "aggregation": aggregation, **kl}
        choice["correction"] = correction
        try:
            config = config_class(**choice, aggregation_length=5)
        except ValueError as error:
            assert any(f"{name} {value}" in str(error) for name, value in choice.items()), (choice, str(error))
            continue
        possible += 1
        case = Case("", entry, config)
        b = make(config, lengths=(1, 3, 2, 3), width=3)
        b = with_advantages(case, fill(b, b.response_mask, NAN))
        whole = step(case, b)
        parts = [step(case, rows_of(b, rows), Totals.of(loss_mask(b))) for rows in ([0], [1, 2, 3])]
        assert whole.numbers["loss"].isfinite() and whole.gradients["logprobs"].isfinite().all(), choice
        assert whole.gradients["logprobs"].abs().sum() > 0, choice
        added = sum(part.numbers["loss"] for part in parts)
        assert torch.allclose(added, whole.numbers["loss"], atol=1e-12), choice
        torch.testing.assert_close(parts[1].gradients["logprobs"], whole.gradients["logprobs"][1:])
    assert possible >= (0 if critic and ratio in PER_RESPONSE else 30)


# ---- these tests notice what is wrong


def wrong(objective=None, **changes) -> Case:
    entry = replace(grpo.ALGORITHM, **changes)
    if objective:
        entry = replace(entry, objective=lambda lr, lp, A, m, c: (objective(lr.exp(), lp, A, m), {}))
    return case_of("wrong", entry)


def raw_rewards(batch, config):
    return batch.rewards.view(-1, 1)


def padded_sum(batch, config):
    return batch.rewards.view(-1, 1) - 0.1 * batch.old_logprobs.sum(dim=1, keepdim=True)


def running_mean(batch, config):
    return (batch.rewards - batch.rewards.cumsum(0) / torch.arange(1, len(batch.rewards) + 1)).view(-1, 1)


def blind(batch, config):
    return torch.ones_like(batch.rewards).view(-1, 1)


@pytest.mark.parametrize(
    "test, case, options",
    [
        (test_padding_has_no_effect, wrong(advantages=padded_sum), {"padding": NAN}),
        (
            test_the_order_of_responses_has_no_effect,
            wrong(lambda r, lp, A, m: r * A * torch.arange(1, len(r) + 1)[:, None]),
            {},
        ),
        (
            test_micro_batches_add_up_to_the_step,
            wrong(lambda r, lp, A, m: r * A / A.abs().mean()),
            {"sizes": (6, 6)},
        ),
        (
            test_micro_batches_add_up_to_the_step,
            wrong(lambda r, lp, A, m: r * A * m.sum() / len(r)),
            {"sizes": (1, 7, 4)},
        ),
        (
            test_what_is_masked_is_never_counted,
            wrong(lambda r, lp, A, m: r * A * r.shape[1]),
            {"extra": "padding column"},
        ),
        (test_what_is_masked_is_never_counted, wrong(lambda r, lp, A, m: r * A / len(r)), {"extra": "empty response"}),
        (test_one_token_responses_need_no_second_column, wrong(lambda r, lp, A, m: r * A * r.shape[1]), {}),
        (test_the_order_of_groups_and_within_them_permutes_the_advantages, wrong(advantages=running_mean), {}),
        (test_the_last_valid_token_is_rewarded, wrong(advantages=blind), {}),
        (test_equal_rewards_are_finite_and_teach_a_group_baseline_nothing, wrong(advantages=raw_rewards), {}),
        (
            test_on_the_first_step_ratios_are_1_and_the_gradient_is_the_plain_policy_gradient,
            wrong(lambda r, lp, A, m: 2 * r * A),
            {},
        ),
        (test_without_advantage_the_policy_term_has_no_gradient, wrong(lambda r, lp, A, m: r * (A + 0.1)), {}),
        (
            test_gradients_are_those_of_finite_differences,
            wrong(lambda r, lp, A, m: r.detach() * A * lp),
            {"spread": 0.3},
        ),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_a_wrong_algorithm_is_noticed(test, case, options):
    with pytest.raises(AssertionError):
        test(case, **options)
