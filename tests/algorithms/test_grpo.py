import pytest
import torch
from golden import close, gradient

from algos import grpo
from algos.pieces.types import Totals

PLAIN = grpo.GRPOConfig(std_epsilon=0.0)
A2 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def loss_of(a, logprobs, advantages=A2, hparams=PLAIN):
    return grpo.ALGORITHM.loss(logprobs, a.old, advantages, a.mask, hparams, a.totals, a.ref)


def run(a, advantages=A2, hparams=PLAIN):
    return lambda logprobs: loss_of(a, logprobs, advantages, hparams)[0]


def test_golden_loss_and_gradient(a):  # per token [[-1.2, -0.6, -1.125], [0.8, 1.1]]
    loss, grad = gradient(run(a), a.new)
    assert loss.item() == pytest.approx(-0.0125, abs=1e-9)
    close(grad, [[0.0, -0.1, -0.1875], [0.0, 0.275, 0.0]], atol=1e-7)


def test_golden_loss_with_sample_std_advantages(a):  # +-0.7071068 instead of +-1
    assert run(a, grpo.ALGORITHM.advantages(a, PLAIN))(a.new).item() == pytest.approx(-0.0088388, abs=1e-6)


def test_golden_loss_with_population_std_advantages(a):  # +-1
    population = grpo.GRPOConfig(std_epsilon=0.0, std_ddof=0)
    assert run(a, grpo.ALGORITHM.advantages(a, population))(a.new).item() == pytest.approx(-0.0125, abs=1e-9)


def test_golden_loss_and_gradient_with_kl(a):
    loss, grad = gradient(run(a, hparams=grpo.GRPOConfig(kl_coef=0.04)), a.new)
    assert loss.item() == pytest.approx(-0.0026128, abs=1e-6)
    close(grad, [[0.0015385, -0.1155556, -0.1867593], [-0.0078571, 0.2759091, 0.0]])


def test_the_logged_kl_is_the_mean_over_tokens(a):  # k3 of Fixture A
    _, metrics = loss_of(a, a.new, hparams=grpo.GRPOConfig(kl_coef=0.04))
    assert metrics["kl_loss"].item() == pytest.approx(0.2755849, abs=1e-6)


def test_golden_diagnostics(a):
    """k1 = mean(old - new), k3 = mean(rho - 1 - log rho); mean(new - old), as one reads at times, is -0.0784086."""
    _, metrics = loss_of(a, a.new)
    assert metrics["approx_kl_k1"].item() == pytest.approx(0.0784086, abs=1e-6)
    assert metrics["approx_kl_k3"].item() == pytest.approx(0.0434086, abs=1e-6)
    assert metrics["ratio_max"].item() == pytest.approx(1.3) and metrics["ratio_min"].item() == pytest.approx(0.6)
    assert metrics["ratio_mean"].item() == pytest.approx(0.965)  # 4.825 / 5


def test_clip_higher_moves_only_the_upper_bound(a):  # first token clipped at 1.28 instead of 1.2: -0.08 / 3 / 2
    wide = grpo.GRPOConfig(clip_high=0.28)
    assert run(a, hparams=wide)(a.new).item() == pytest.approx(-0.0125 - 0.08 / 6, abs=1e-9)


def test_on_policy_the_gradient_is_the_plain_policy_gradient(a):
    loss, grad = gradient(run(a), a.old)
    assert loss.item() == pytest.approx(0.0)  # -mean(A)
    close(grad, [[-1 / 6] * 3, [0.25, 0.25, 0.0]])  # -A / (B T_i)
    metrics = loss_of(a, a.old)[1]
    assert metrics["clip_fraction"] == metrics["approx_kl_k1"] == metrics["approx_kl_k3"] == 0


def test_micro_batches_add_up_to_the_whole_step(a):
    _, whole = gradient(run(a), a.new)
    for row in range(2):
        rows = slice(row, row + 1)
        part = a.new[rows].clone().requires_grad_(True)
        grpo.ALGORITHM.loss(part, a.old[rows], A2[rows], a.mask[rows], PLAIN, a.totals)[0].backward()
        torch.testing.assert_close(part.grad, whole[rows])


def test_an_empty_response_adds_nothing(a):
    mask = torch.cat([a.mask, torch.zeros(1, 3, dtype=torch.bool)])
    new, old = (torch.cat([x, torch.full((1, 3), float("nan"), dtype=torch.float64)]) for x in (a.new, a.old))
    advantages = torch.cat([A2, torch.tensor([[3.0]], dtype=torch.float64)])
    loss, _ = grpo.ALGORITHM.loss(new, old, advantages, mask, PLAIN, Totals.of(mask))
    assert loss.item() == pytest.approx(-0.0125, abs=1e-9)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2)])
def test_advantages_of_another_shape_than_one_per_response_are_refused(a, shape):
    with pytest.raises(ValueError, match=r"advantages must be \(2, 1\), got"):
        loss_of(a, a.new, torch.ones(shape, dtype=torch.float64))


def test_the_entropy_bonus_is_aggregated_as_the_loss_is(a):
    """-0.01 x (mean over responses of the mean over tokens of [[1, 2, 3], [4, 5]]) = -0.01 x (2 + 4.5) / 2."""
    entropies = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("nan")]], dtype=torch.float64)
    hparams = grpo.GRPOConfig(entropy_coef=0.01)
    loss, metrics = grpo.ALGORITHM.loss(a.new, a.old, A2, a.mask, hparams, a.totals, entropies=entropies)
    assert loss.item() == pytest.approx(-0.0125 - 0.0325, abs=1e-9)
    assert metrics["entropy_bonus"].item() == pytest.approx(3.0)  # 15 / 5
    with pytest.raises(ValueError, match=r"entropy_coef 0\.01 needs the full-vocabulary entropies, got None"):
        loss_of(a, a.new, hparams=hparams)
