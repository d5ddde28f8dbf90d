"""Mixtures of experts: the share of tokens that sampler and trainer send to the same experts, `router_agreement`.

A router takes the k experts of the highest scores. Sampling runs it token by token on a cache, training on whole
sequences; where two scores are close, rounding decides, and the token's probability changes by more than rounding: its
importance ratio is off 1 on fresh weights. GSPO's ratio of whole responses is to stand that (arXiv:2507.18071, section
5.3); MoE runs have been seen to collapse from it (arXiv:2510.11370). 1 in float32, up to ties.

Only the first RESPONSES responses of a step are looked at: hooks note their experts while they are sampled, and one
more pass over them shows the trainer's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from algos.pieces.types import Rollouts, make_batch
from algos.training.models.logprobs import scatter
from algos.training.models.packing import Layout, forward

RESPONSES = 8


def routers(model) -> list:
    """The modules that choose k experts of a token. Empty: the model has none, or has them choose in another place."""
    return [m for m in model.modules() if isinstance(getattr(m, "top_k", None), int) and "weight" in m._parameters]


class Routing:
    """The experts that a policy's routers chose while it sampled, and choose now."""

    def __init__(self, policy):
        self.policy, self.routers = policy, routers(policy)
        self.chosen: list[Tensor] = []  # of the pass under way: (tokens, k) of each router
        self.sampled: list[tuple[Tensor, Tensor]] = []  # of each token: rows (n,), experts (routers, n, k)
        self.rollouts: Rollouts | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, `chosen` gets what the routers choose."""

        def note(router, _, output) -> None:
            for x in output if isinstance(output, tuple) else (output,):
                if x.dtype in (torch.int64, torch.int32) and x.shape[-1] == router.top_k:
                    self.chosen.append(x.reshape(-1, router.top_k))

        hooks = [router.register_forward_hook(note) for router in self.routers]
        self.chosen.clear()
        try:
            yield
        finally:
            self.chosen.clear()
            for hook in hooks:
                hook.remove()

    def after_prompts(self) -> None:
        """A sampler's pass over prompts is done: their experts are not compared."""
        self.chosen.clear()
        self.sampled = []

    def after_token(self, rows: Tensor) -> None:
        """A sampler's pass over one more token of the responses `rows` is done."""
        if self.chosen:
            seen = rows < RESPONSES
            self.sampled.append((rows[seen], torch.stack(self.chosen)[:, seen]))
            self.chosen.clear()

    @torch.no_grad()
    def agreement(self, pad_id: int, layout: Layout) -> dict[str, float]:
        """The share of (token, layer) with the same experts in both passes, as a metric; forgets what was sampled."""
        rollouts, sampled, self.rollouts, self.sampled = self.rollouts, self.sampled, None, []
        if rollouts is None or not sampled:
            return {}
        groups = range(min(max(RESPONSES // rollouts.group_size, 1), len(rollouts.prompts)))
        first = rollouts.select_groups(list(groups))
        batch = make_batch(first, torch.zeros(len(first.response_ids)), pad_id)
        batch = batch.select(torch.arange(min(RESPONSES, len(batch)), device=batch.rewards.device))
        layers, _, k = sampled[0][1].shape
        table = batch.response_ids.new_full((len(batch), batch.response_mask.shape[1], layers, k), -1)
        for step, (rows, experts) in enumerate(sampled[: table.shape[1]]):  # others may go on longer than the first
            first_rows = rows < len(batch)
            table[rows[first_rows], step] = experts[:, first_rows].transpose(0, 1)
        same = []
        for rows, part in layout.micro_batches(batch):
            assert part.packed is not None
            with self.listening():
                forward(self.policy.base_model, part.packed)
                now = torch.stack(self.chosen, dim=1)  # (tokens of all rows, layers, k)
            fed = part.response_mask[:, 1:]  # a response's last token is not fed to the sampler
            places = scatter(part.packed.source, part.response_mask)[:, 1:][fed]
            then = table[rows, : fed.shape[1]][fed]
            same.append((then.sort(dim=-1).values == now[places].sort(dim=-1).values).all(dim=-1))
        return {"router_agreement": float(torch.cat(same).float().mean())} if any(map(len, same)) else {}
