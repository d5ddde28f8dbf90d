"""TRPO's step on a language model: gradients, Fisher-vector products and KL by micro-batches; see algos/trpo.py."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from algos.pieces.advantages import per_minibatch
from algos.pieces.estimator import Estimator
from algos.pieces.kl import kl_full
from algos.pieces.masked import masked_sum
from algos.pieces.types import Batch, Totals
from algos.training.config import RunConfig
from algos.training.models.logprobs import token_logits
from algos.training.update.optimize import optimizer_step
from algos.training.update.update import Learner, accumulate_gradients, check_losses, policy_part


def trust_region_update(
    batch: Batch, learner: Learner, config: RunConfig, hparams: Estimator, generator: torch.Generator, warming_up: bool
) -> list[dict[str, float]]:
    """One trust-region step of the policy and one optimizer step of the critic on the whole rollout batch."""
    assert batch.advantages is not None
    batch = replace(batch, advantages=per_minibatch(batch.advantages, batch.loss_mask, hparams))
    metrics: dict[str, Any] = dict(accumulate_gradients(batch, learner, config, hparams, warming_up))
    check_losses(metrics)
    if learner.critic is not None:
        metrics["critic_grad_norm"] = optimizer_step(
            learner.critic, learner.critic_optimizer, learner.critic_scheduler, config.optimizer.max_grad_norm
        )
    if not warming_up:
        metrics |= TrustRegion(batch, learner, config, hparams, generator).step()
        learner.policy.zero_grad(set_to_none=True)
    return [{name: float(value) for name, value in metrics.items()}]


class TrustRegion:
    """The functions that algos.trpo.trust_region_step asks for, on the policy's parameters as one vector."""

    def __init__(self, batch: Batch, learner: Learner, config: RunConfig, hparams: Any, generator):
        self.batch, self.learner, self.config, self.hparams = batch, learner, config, hparams
        self.parameters = [p for p in learner.policy.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]
        self.totals = Totals.of(batch.loss_mask)
        order = torch.randperm(len(batch), generator=generator, device=generator.device)
        self.fisher_batch = batch.select(order[: hparams.fisher_responses])
        with torch.no_grad():
            self.old = [self._all_logprobs(part) for part in self._micro(batch)]

    def step(self) -> dict[str, float]:
        gradient = torch.cat([p.grad.flatten() for p in self.parameters])
        norm = gradient.norm().item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}: training diverged; try a smaller max_kl")
        update = self.config.algorithm_entry.update
        assert update is not None
        figures = update(gradient, self.fisher_product, self.evaluate, self.move, self.hparams)
        return {"grad_norm": norm, **figures}

    def _micro(self, batch: Batch) -> Iterator[Batch]:
        return (part for _, part in self.learner.layout(self.config).micro_batches(batch))

    def _all_logprobs(self, part: Batch) -> Tensor:
        logits = token_logits(self.learner.policy, part) / self.config.temperature
        return torch.log_softmax(logits, dim=-1)  # (B, T, V)

    def fisher_product(self, vector: Tensor) -> Tensor:
        """H v for the mean KL(old || new) over the tokens of the Fisher responses, by a double backward pass."""
        tokens = Totals.of(self.fisher_batch.loss_mask).response_tokens
        result = torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for part in self._micro(self.fisher_batch):
                new = self._all_logprobs(part)
                kl = masked_sum(kl_full(new.detach(), new), part.loss_mask) / tokens
                first = torch.autograd.grad(kl, self.parameters, create_graph=True)
                slope = torch.cat([g.flatten() for g in first]) @ vector
                second = torch.autograd.grad(slope, self.parameters)
                result += torch.cat([g.flatten() for g in second])
        return result

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Surrogate loss and mean KL(old || new) per token at the current parameters."""
        loss = kl = 0.0
        for part, old in zip(self._micro(self.batch), self.old, strict=True):
            loss += policy_part(part, self.learner, self.config, self.hparams, self.totals)[0].item()
            kl += masked_sum(kl_full(old, self._all_logprobs(part)), part.loss_mask).item()
        return loss, kl / self.totals.response_tokens

    @torch.no_grad()
    def move(self, fraction: float, step: Tensor) -> None:
        sizes = [p.numel() for p in self.parameters]
        for parameter, start, piece in zip(self.parameters, self.start, step.split(sizes), strict=True):
            parameter.copy_(start + fraction * piece.view_as(parameter))
