"""The critic's network: one of its own, or a head on the policy's backbone."""

import torch
from torch import Tensor, nn

from algos.pieces.settings import SettingsError
from algos.pieces.types import Batch
from algos.training.models.checkpoints import (
    ScalarModel,
    check_causal_lm,
    fresh_backbone,
    load_tokenizer,
    place_head,
    scalar_head,
)
from algos.training.models.logprobs import head_values, hidden_states

FRESH_SEED = 1 << 20  # far from the seeds that base models are made with: a fresh critic is not one of them


class SharedCritic(nn.Module):
    """A value head on the policy's hidden states. Its parameters are the head's alone; the backbone is the policy's."""

    def __init__(self, policy, head: str, detach: bool):
        super().__init__()
        self.policy = [policy]  # in a list, so that it is no submodule
        self.detach = detach
        parameter = next(policy.parameters())
        self.score = scalar_head(policy.config.get_text_config().hidden_size, head, 0.0)
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
        self.model = model

    def values(self, batch: Batch, states: Tensor | None = None, frozen: bool = False) -> Tensor:
        """Values (B, T); the policy's states are not used."""
        return head_values(self.model.score, hidden_states(self.model.backbone, batch), batch)


def make_critic(config, policy, policy_path: str, reward_model_path: str | None, seed: int, dtype: str):
    """The critic that an algorithm's settings ask for; its values start at 0, but for critic_init reward_model."""
    if config.critic == "shared":
        return SharedCritic(policy, config.critic_head, config.critic_detach)
    if config.critic_init == "reward_model":
        if reward_model_path is None:
            raise SettingsError("critic_init is reward_model, but no reward model was given (--reward-model).")
        model = ScalarModel.load(reward_model_path, policy.device, dtype)
        if model.head != config.critic_head:
            raise SettingsError(
                f"critic_init reward_model: that model has a {model.head} head, critic_head is {config.critic_head}; "
                f"set critic_head to {model.head}."
            )
        last = model.score if isinstance(model.score, nn.Linear) else model.score[-1]
        with torch.no_grad():  # values are in the rewards' units, those of the normalized score
            last.weight.mul_(model.gain)
            last.bias.sub_(model.offset).mul_(model.gain)
        return SeparateCritic(model)
    if config.critic_init == "fresh":
        backbone = fresh_backbone(policy_path, FRESH_SEED + seed, dtype, config.critic_layers)
        return SeparateCritic(ScalarModel(backbone, config.critic_head, 0.0).to(policy.device))
    start = config.critic_path or policy_path
    if config.critic_path is not None:
        check_tokenizer(start, policy_path)
    model = ScalarModel.from_policy(start, config.critic_head, 0.0, policy.device, dtype, layers=config.critic_layers)
    return SeparateCritic(model)


def check_tokenizer(critic_path: str, policy_path: str) -> None:
    """Raise SettingsError unless a token id means the same to critic and policy."""
    check_causal_lm(critic_path)
    ours, theirs = (set(load_tokenizer(path).get_vocab().items()) for path in (critic_path, policy_path))
    if ours != theirs:
        raise SettingsError(
            f"critic_path: {critic_path} must have the policy's tokenizer, but {len(ours ^ theirs)} of their tokens "
            f"differ, as does {min(ours ^ theirs)!r}."
        )
