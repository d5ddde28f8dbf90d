"""TRPO: a natural-gradient step, as large as a hard bound on KL(old || new) allows. PPO approximates TRPO.

    maximize  1 / sum_i T_i  sum_it rho_it A_it   subject to   mean_it KL(pi_old(. | s_it) || pi(. | s_it)) <= max_kl
    H x = g by conjugate gradient,   step = sqrt(2 max_kl / x'Hx) x,   halved until the surrogate rises within the bound

g is the surrogate's gradient and H the Hessian of the mean KL at the old policy, the Fisher matrix. Source: Schulman et
al. 2015, arXiv:1502.05477, section 6 and appendix C. Each conjugate-gradient iteration costs a double backward pass and
several vectors of the size of the parameters. So TRPO is for small models, as a standard to compare with.
"""

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import needs_ratio
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class TRPOConfig(WithCritic):
    kl_in = "reward"
    kl_estimator = "k1"
    max_kl: PositiveFloat = 0.01  # bound on the mean KL(old || new) per token, in nats, for each step
    cg_iterations: PositiveInt = 10
    cg_damping: NonNegativeFloat = 0.1  # added to the diagonal of the Fisher matrix
    line_search_steps: PositiveInt = 10  # halvings of the step before it is given up
    fisher_responses: PositiveInt = 32  # responses that the Fisher matrix is estimated from

    def __post_init__(self):
        super().__post_init__()
        needs_ratio(self)
        if self.critic != "separate":
            raise ValueError(
                f"trpo needs critic separate, got {self.critic}: a value loss on its backbone obeys no bound"
            )

    def warnings(self, optimizer_steps: int = 1) -> list[str]:
        return super().warnings(2)  # its one step is a line search, in which the ratios leave 1


def surrogate_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: TRPOConfig
) -> tuple[Tensor, Shares]:
    """ratio A: (B, T)."""
    return log_ratio.exp() * advantages, {}


def conjugate_gradient(product, g: Tensor, iterations: int, tolerance: float = 1.0e-10) -> Tensor:
    """x with H x = g, H given by product(v) = H v and positive definite; all (N,)."""
    x, residual, direction = torch.zeros_like(g), g.clone(), g.clone()
    square = residual @ residual
    for _ in range(iterations):
        if not square >= tolerance:  # or it is NaN; without numbers, as memory is predicted, it goes on
            break
        curved = product(direction)
        rate = square / (direction @ curved)
        x = x + rate * direction
        residual = residual - rate * curved
        new_square = residual @ residual
        direction = residual + new_square / square * direction
        square = new_square
    return x


def full_step(x: Tensor, curved: Tensor, max_kl: float) -> Tensor:
    """sqrt(2 max_kl / x'Hx) x, with curved = H x: the step at which the quadratic model of the KL is max_kl."""
    return x * (2 * max_kl / (x @ curved).clamp(min=1e-20)).sqrt()


def trust_region_step(gradient: Tensor, fisher_product, evaluate, move, hparams: TRPOConfig) -> dict[str, float]:
    """Move the parameters by one trust-region step, or not at all.

    gradient        (N,) of the surrogate loss, which is minimized
    fisher_product  v -> H v, without damping
    evaluate        () -> (surrogate loss, mean KL(old || new)) at the current parameters
    move            fraction, step -> sets the parameters to old + fraction * step
    """
    if not bool(gradient.any()):
        return {"step_fraction": 0.0, "line_search_kl": 0.0, "surrogate_gain": 0.0}

    def damped(v):
        return fisher_product(v) + hparams.cg_damping * v

    x = conjugate_gradient(damped, -gradient, hparams.cg_iterations)
    step = full_step(x, damped(x), hparams.max_kl)
    start, _ = evaluate()
    fraction = 1.0
    for _ in range(hparams.line_search_steps):
        move(fraction, step)
        loss, kl = evaluate()
        if loss < start and kl <= hparams.max_kl:
            return {"step_fraction": fraction, "line_search_kl": kl, "surrogate_gain": start - loss}
        fraction /= 2
    move(0.0, step)
    return {"step_fraction": 0.0, "line_search_kl": 0.0, "surrogate_gain": 0.0}


ALGORITHM = Algorithm(
    TRPOConfig(),
    surrogate_objective,
    lambda hparams: f"rho A  subject to  mean KL(old || new) <= {hparams.max_kl:g}",
    "a natural-gradient step under a hard KL bound; the reference that PPO approximates",
    "arXiv:1502.05477, section 6",
    relative="ppo",
    run={"epochs": 1, "minibatches": 1},
    update=trust_region_step,
)
