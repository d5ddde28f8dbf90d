"""The critic's network: one of its own, or a head on the policy's backbone."""

import torch
from torch import Tensor, nn

from algos.pieces.settings import SettingsError
from algos.pieces.types import Batch
from algos.training.models.checkpoints import (
    ScalarModel,
    check_causal_lm,
    fresh_backbone,
    place_head,
    scalar_head,
    state_width,
)
from algos.training.models.logprobs import head_values, hidden_states
from algos.training.models.tokens import load_tokenizer

FRESH_SEED = 1 << 20  # far from the seeds of base models, so that no fresh critic has the weights of a base model


class SharedCritic(nn.Module):
    """A value head on the policy's hidden states. Its parameters are the head's alone; the backbone is the policy's."""

    def __init__(self, policy, head: str, detach: bool):
        super().__init__()
        self.policy = [policy]  # in a list, so that it is no submodule
        self.detach = detach
        parameter = next(policy.parameters())
        self.score = scalar_head(state_width(policy.base_model), head, 0.0)
        place_head(self.score, parameter)

    def values(self, batch: Batch, states: Tensor | None = None, frozen: bool = False) -> Tensor:
        """Values (B, T) from states (B, T, H) of the policy's forward pass, or from a pass of its own.

        frozen keeps the gradient out of the backbone, as `detach` always does.
        """
        if states is None:
            states = hidden_states(self.policy[0].base_model, batch)
        return head_values(self.score, states.detach() if self.detach or frozen else states, batch)


class SeparateCritic(nn.Module):
    """A backbone and a head of its own."""

    def __init__(self, model: ScalarModel):
        super().__init__()
        self.model, self.config = model, model.config

    def values(self, batch: Batch, states: Tensor | None = None, frozen: bool = False) -> Tensor:
        """Values (B, T); the policy's states are not used."""
        return head_values(self.model.score, hidden_states(self.model.backbone, batch), batch)


def check_critic_checkpoint(hparams, path: str | None) -> None:
    """Raise SettingsError if a checkpoint is given to a critic that does not start from one."""
    if path is None:
        return
    if not hparams.has_critic:
        raise SettingsError("--critic is given, but this algorithm has no critic; leave it out.")
    if hparams.critic == "shared":
        raise SettingsError("--critic is given, but critic shared stands on the policy's backbone; leave it out.")
    if hparams.critic_init != "policy":
        raise SettingsError(
            f"--critic is given, but critic_init {hparams.critic_init} says what the critic starts from; leave one out."
        )


def make_critic(hparams, policy, paths, seed: int, dtype: str):
    """The critic that an algorithm's hparams ask for; its values start at 0, but for critic_init reward_model.

    paths: the run's Checkpoints.
    """
    if hparams.critic == "shared":
        return SharedCritic(policy, hparams.critic_head, hparams.critic_detach)
    if hparams.critic_init == "reward_model":
        return SeparateCritic(_from_reward_model(hparams, policy, paths.reward_model, dtype))
    if hparams.critic_init == "fresh":
        backbone = fresh_backbone(paths.policy, FRESH_SEED + seed, dtype, hparams.critic_layers)
        return SeparateCritic(ScalarModel(backbone, hparams.critic_head, 0.0).to(policy.device))
    if paths.critic is not None:
        check_tokenizer(paths.critic, paths.policy, "critic")
    start, layers = paths.critic or paths.policy, hparams.critic_layers
    return SeparateCritic(ScalarModel.from_policy(start, hparams.critic_head, 0.0, policy.device, dtype, layers=layers))


def _from_reward_model(hparams, policy, path: str | None, dtype: str) -> ScalarModel:
    """The reward model as a critic; its head gives the normalized score, in the units of the rewards."""
    if path is None:
        raise SettingsError("critic_init is reward_model, but no reward model was given (--reward-model).")
    model = ScalarModel.load(path, policy.device, dtype)
    if model.head != hparams.critic_head:
        raise SettingsError(
            f"critic_init reward_model: that model has a {model.head} head, critic_head is {hparams.critic_head}; "
            f"set critic_head to {model.head}."
        )
    last = model.score[-1] if isinstance(model.score, nn.Sequential) else model.score
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(model.gain)
        last.bias.sub_(model.offset).mul_(model.gain)
    return model


def check_tokenizer(path: str, policy_path: str, model: str) -> None:
    """Raise SettingsError unless a token id means the same to the policy and to the named model, "critic" or so."""
    check_causal_lm(path)
    own, policys = (set(load_tokenizer(path).get_vocab().items()) for path in (path, policy_path))
    if own != policys:
        raise SettingsError(
            f"--{model}: {path} must have the policy's tokenizer, but {len(own ^ policys)} of their tokens "
            f"differ, as does {min(own ^ policys)!r}."
        )
