"""Parts that a phase does not need are on the CPU: optimizer state, critic, reference, reward model, behavior policy.

Each name of the setting `offload` stands for tensors. Before a phase begins, the tensors that it needs (needs.py) are
brought to the device and the others are sent away. The moves count as a phase of their own, `offload`.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from algos.training.config import RunConfig
from algos.training.sampling.behavior import own_tensors
from algos.training.stage.record import Phases
from algos.training.update.needs import needed_parts
from algos.training.update.update import Learner

FROZEN = {"reference", "reward_model"}  # their copy on the CPU is never out of date
NO_EFFECT = "offload has no effect on the CPU, where everything is already."


def worthwhile(device: torch.device) -> bool:
    return device.type != "cpu"


def make_phases(config: RunConfig, device: torch.device, learner: Learner, reward_model: nn.Module | None) -> Phases:
    """The clock of a run's phases; one that moves tensors if the run offloads something and is not on the CPU."""
    if not config.offload or not worthwhile(device):
        return Phases(device)
    head_on_reference = reward_model is not None and reward_model.backbone is None
    held = {
        "optimizer": lambda: optimizer_tensors(learner),
        "critic": lambda: model_tensors(learner.critic),
        "reference": lambda: model_tensors(learner.reference),
        "reward_model": lambda: model_tensors(reward_model),
        "behavior": lambda: own_tensors(learner.behavior, learner.policy),
    }
    needed = needed_parts(config, head_on_reference)
    return OffloadingPhases(device, {name: held[name] for name in config.offload}, needed)


def model_tensors(model) -> list[Tensor]:
    """Parameters and buffers of a module; no tensors of a reference without weights of its own, or of None."""
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def optimizer_tensors(learner: Learner) -> list[Tensor]:
    """State and float32 masters of the policy's and the critic's optimizer; single numbers stay where they are."""
    found: dict[int, Tensor] = {}
    for model, optimizer in ((learner.policy, learner.optimizer), (learner.critic, learner.critic_optimizer)):
        if optimizer is None:
            continue
        masters = [p.master for p in model.parameters() if hasattr(p, "master")]
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        found |= {id(t): t for t in (*masters, *states) if t.numel() > 1}
    return list(found.values())


class OffloadingPhases(Phases):
    """Phases before which every needed tensor is brought to the device."""

    def __init__(
        self, device: torch.device, held: dict[str, Callable[[], Iterable[Tensor]]], needed: dict[str, set[str]]
    ):
        """held: the tensors of each name. needed: the names that each phase needs; a phase that is not named: all."""
        super().__init__(device)
        self.held, self.needed = held, needed
        self.copies: dict[int, Tensor] = {}  # of every tensor that has been away, by id: the host's copy
        self.away: dict[int, Tensor] = {}

    @contextmanager
    def __call__(self, name: str):
        with super().__call__("offload"):
            self.place(self.needed.get(name, set(self.held)))
        with super().__call__(name):
            yield

    def place(self, needed: set[str]) -> None:
        """Bring the needed tensors and send away the others; a tensor of two names stays if one of them is needed."""
        tensors = {name: list(tensors()) for name, tensors in self.held.items()}
        wanted = {id(t) for name in tensors if name in needed for t in tensors[name]}
        for name, group in tensors.items():
            for tensor in group:
                if id(tensor) not in wanted and id(tensor) not in self.away:
                    self.send(tensor, name in FROZEN)
        for group in tensors.values():
            for tensor in group:
                if id(tensor) in wanted and id(tensor) in self.away:
                    self.bring(tensor)

    def send(self, tensor: Tensor, frozen: bool) -> None:
        """To the CPU, into page-locked memory where the device is a GPU: copies from and to it do not wait."""
        key = id(tensor)
        known = key in self.copies
        if not known:
            self.copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
        if not (known and frozen):
            self.copies[key].copy_(tensor.detach(), non_blocking=True)
        self.away[key] = tensor
        tensor.data = self.left_behind(tensor, self.copies[key])

    def left_behind(self, tensor: Tensor, copy: Tensor) -> Tensor:
        """The data of a tensor while it is away."""
        return copy

    def bring(self, tensor: Tensor) -> None:
        copy = self.copies[id(tensor)]
        tensor.data = copy.to(self.device, non_blocking=True, copy=True)
        del self.away[id(tensor)]
