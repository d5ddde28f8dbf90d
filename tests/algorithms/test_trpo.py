"""TRPO: the step and its line search, on a quadratic and on a categorical policy."""

import pytest
import torch
from golden import close

from algos.pieces.kl import kl_full
from algos.trpo import TRPOConfig, conjugate_gradient, full_step, trust_region_step

G, H = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
STILL = {"step_fraction": 0.0, "line_search_kl": 0.0, "surrogate_gain": 0.0}


def test_golden_step():
    """x = H^-1 g = [0.5, 0.5], x'Hx = 1.5, scale sqrt(0.02 / 1.5) = 0.1154701; the quadratic KL is the bound itself."""
    x = conjugate_gradient(lambda v: H @ v, G, 10)
    close(x, [0.5, 0.5])
    assert (x @ H @ x).item() == pytest.approx(1.5)
    step = full_step(x, H @ x, 0.01)
    close(step, [0.0577350, 0.0577350])
    assert (0.5 * step @ H @ step).item() == pytest.approx(0.01)


def test_conjugate_gradient_solves_in_as_many_iterations_as_there_are_dimensions():
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, g = root @ root.T + torch.eye(6), torch.arange(1.0, 7.0, dtype=torch.float64)
    torch.testing.assert_close(
        conjugate_gradient(lambda v: matrix @ v, g, 6), torch.linalg.solve(matrix, g), rtol=1e-6, atol=1e-6
    )
    one = conjugate_gradient(lambda v: matrix @ v, g, 1)  # a step of steepest descent: g times g'g / g'Hg
    torch.testing.assert_close(one, g * (g @ g) / (g @ matrix @ g))
    assert (conjugate_gradient(lambda v: matrix @ v, 0 * g, 6) == 0).all()


def test_golden_damping():
    """Curvature 3.5 + damping 0.5 = 4: a step of sqrt(2 x 0.02 / 4) = 0.1 down the gradient; undamped 0.1069.

    A parameter without a gradient stays where it is, and does not keep the other from moving.
    """
    steps = []
    hparams = TRPOConfig(max_kl=0.02, cg_damping=0.5)
    gradient = torch.tensor([0.0, -3.0], dtype=torch.float64)
    trust_region_step(
        gradient, lambda v: 3.5 * v, lambda: (-len(steps), 0.0), lambda fraction, step: steps.append(step), hparams
    )
    close(steps[0], [0.0, 0.1])


class Categorical:
    """A categorical policy over three actions with advantages A: surrogate -sum p A, KL(old || new), both exact."""

    def __init__(self, advantages, probabilities=(0.5, 0.3, 0.2)):
        self.advantages = torch.tensor(advantages, dtype=torch.float64)
        self.old = torch.tensor(probabilities, dtype=torch.float64).log()
        self.logits, self.moves = self.old.clone(), []

    def loss(self, logits):
        return -(torch.softmax(logits, 0) * self.advantages).sum()

    def evaluate(self):
        return self.loss(self.logits).item(), kl_full(self.old, torch.log_softmax(self.logits, 0)).item()

    def move(self, fraction, step):
        self.moves.append(fraction)
        self.logits = self.old + fraction * step

    def gradient(self):
        leaf = self.old.clone().requires_grad_(True)
        return torch.autograd.grad(self.loss(leaf), leaf)[0]

    def fisher_product(self, v):  # diag(p) - p p'
        p = self.old.exp()
        return p * v - p * (p @ v)

    def step(self, **settings):
        hparams = TRPOConfig(**{"cg_damping": 1e-6, **settings})
        return trust_region_step(self.gradient(), self.fisher_product, self.evaluate, self.move, hparams)


@pytest.mark.parametrize("max_kl", [1e-4, 1e-2, 0.5])
def test_the_step_raises_the_surrogate_within_the_bound(max_kl):
    policy = Categorical([1.0, -0.5, 0.2])
    start, _ = policy.evaluate()
    figures = policy.step(max_kl=max_kl)
    loss, kl = policy.evaluate()
    assert loss < start and 0 < kl <= max_kl
    assert figures["surrogate_gain"] == pytest.approx(start - loss) and figures["line_search_kl"] == kl
    assert figures["step_fraction"] == policy.moves[-1] > 0
    if max_kl == 1e-4:  # the quadratic model is nearly exact: the step uses most of the bound, halved at most once
        assert kl > 0.2 * max_kl


def test_the_step_is_halved_until_it_is_within_the_bound():
    policy, seen = Categorical([1.0, -0.5, 0.2]), []
    evaluate = policy.evaluate

    def strict():  # KL as measured is 5 times the quadratic model's: 1/2 leaves 5/4 of the bound, 1/4 is within
        loss, kl = evaluate()
        seen.append(kl)
        return loss, 5 * kl

    policy.evaluate = strict
    figures = policy.step(max_kl=1e-4)
    assert policy.moves == [1.0, 0.5, 0.25] and figures["step_fraction"] == 0.25
    assert figures["line_search_kl"] == pytest.approx(5 * seen[-1]) and 5 * seen[-1] <= 1e-4 < 5 * seen[-2]


def test_the_step_is_halved_while_the_surrogate_does_not_rise():
    policy = Categorical([1.0, -0.5, 0.2])
    evaluate = policy.evaluate
    policy.evaluate = lambda: (  # worse than at the start as long as the step is above a quarter
        evaluate()[0] + (10.0 if policy.moves and policy.moves[-1] > 0.25 else 0.0),
        0.0,
    )
    assert policy.step()["step_fraction"] == 0.25 and policy.moves == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("loss, kl", [(1.0, 0.0), (-1.0, 1.0), (0.0, 0.0), (float("nan"), 0.0)])
def test_the_parameters_are_restored_when_no_step_is_good(loss, kl):  # worse, too far, no better, not a number
    policy = Categorical([1.0, -0.5, 0.2])
    policy.evaluate = lambda: (loss, kl) if policy.moves else (0.0, 0.0)
    assert policy.step(line_search_steps=3) == STILL
    assert policy.moves == [1.0, 0.5, 0.25, 0.0] and torch.equal(policy.logits, policy.old)


def test_without_a_gradient_nothing_moves():
    policy = Categorical([0.0, 0.0, 0.0])
    assert policy.step() == STILL and policy.moves == []


def test_steps_climb_to_the_best_action():
    policy = Categorical([1.0, -0.5, 0.2])
    for _ in range(60):
        policy.step(max_kl=0.05)
        policy.old = torch.log_softmax(policy.logits, 0)
    assert policy.old.exp()[0] > 0.95


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_kl": 0.0}, r"max_kl must be above 0, got 0\.0"),
        ({"cg_damping": -1.0}, "cg_damping must be at least 0"),
        ({"critic": "shared"}, "trpo needs critic separate, got shared"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TRPOConfig(**settings)
