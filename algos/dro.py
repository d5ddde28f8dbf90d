"""DRO, or mirror descent: REINFORCE with a penalty on the squared log-ratio of whole responses, no ratio and no clip.

    J = 1 / B  sum_i  A_i log pi(y_i) - tau / 2 (log pi(y_i) - log pi_old(y_i))^2,   log pi(y_i) = sum_t log pi(y_it)

Source: Kimi Team 2025 (Kimi k1.5), arXiv:2501.12599v4, section 2.3.2, equation 3, with the group's mean reward as
baseline; Richemond et al. 2024, arXiv:2405.19107, under the name DRO. Each rollout batch asks for the policy that has
the largest reward minus tau times the KL to the batch's own sampler. Its solution fulfills r - tau log Z = tau log(pi /
pi_old) for every response, whoever sampled it, so that the squared difference is a loss without importance ratios. The
mean reward stands for tau log Z.

Thinking Machines' Tinker has the square by token instead of by response (loss dro, read in its documentation in 2026).
Kimi also resets the optimizer with each batch; here the optimizer goes on. Kimi does not publish tau.
"""

from pydantic import NonNegativeFloat
from torch import Tensor

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, needs_token_ratio
from algos.pieces.masked import masked_sum
from algos.pieces.settings import settings
from algos.pieces.types import Shares


@settings
class DROConfig(Estimator):
    baseline = "group_mean"
    ratio = "token"
    aggregation = "seq-mean-token-sum"
    drift_coef: NonNegativeFloat = 0.1  # tau, the weight of half the squared log-ratio of the response

    def __post_init__(self):
        super().__post_init__()
        needs_token_ratio(self, "DRO adds the log-ratios of a response's tokens up")


def mirror_objective(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, hparams: DROConfig
) -> tuple[Tensor, Shares]:
    """A log pi - tau / 2 (the response's log-ratio times the token's): (B, T). The tokens add the square up."""
    total = masked_sum(log_ratio, mask, dim=1, keepdim=True)  # (B, 1)
    objective = advantages * logprobs - 0.5 * hparams.drift_coef * total * log_ratio
    return objective, {"response_drift": total.detach().abs()}


ALGORITHM = Algorithm(
    DROConfig(),
    mirror_objective,
    lambda hparams: f"A log pi - {hparams.drift_coef:g}/2 log rho_it sum_s log rho_is",
    "REINFORCE with a penalty on the squared log-ratio of whole responses (mirror descent)",
    "arXiv:2501.12599v4, section 2.3.2",
    relative="reinforce_group",
)
