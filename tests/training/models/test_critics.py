"""Where a critic starts: the policy's first layers, another checkpoint, new weights; and what is refused."""

import pytest
import torch
from lean import CPU, PROMPTS, ROLLOUTS, TOKENIZER, batch_of, folder_of, run_config
from tiny import tiny_model

from algos.pieces.settings import SettingsError
from algos.training.assemble import Checkpoints
from algos.training.models.checkpoints import load_policy, save_policy
from algos.training.models.critics import make_critic
from algos.training.models.tokens import train_tokenizer


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


def critic_of(folder, start=None, **settings):
    policy = load_policy(folder / "policy", CPU)
    config = run_config("ppo", settings).hparams
    return make_critic(config, policy, Checkpoints(str(folder / "policy"), critic=start), 0, "float32"), policy


@pytest.mark.parametrize("init", ["policy", "fresh"])
def test_a_critic_may_be_the_first_layers(folder, init):
    critic, policy = critic_of(folder, critic_layers=1, critic_init=init)
    backbone = critic.model.backbone
    assert len(backbone.layers) == backbone.config.num_hidden_layers == 1 and len(policy.base_model.layers) == 2
    values = critic.values(batch_of())
    assert (values == 0).all() and values.shape == ROLLOUTS.response_ids.shape
    if init == "policy":  # its states are the norm of what leaves the policy's first layer
        seen = []
        policy.base_model.layers[0].register_forward_hook(lambda *call: seen.append(call[-1]))
        ids = torch.tensor([PROMPTS[0]])
        policy.base_model(input_ids=ids, use_cache=False)
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(states, policy.base_model.norm(seen[0]))


def test_a_critic_may_start_from_another_checkpoint(folder):
    other = tiny_model(TOKENIZER, 9, torch.float32)
    save_policy(other, TOKENIZER, folder / "other")
    critic, _ = critic_of(folder, str(folder / "other"), critic_layers=2)
    for name, parameter in critic.model.backbone.named_parameters():
        assert torch.equal(parameter, dict(other.base_model.named_parameters())[name])


def test_a_critic_that_cannot_be_is_refused(folder):
    with pytest.raises(SettingsError, match="critic_layers is 3, but the critic's checkpoint has 2 layers"):
        critic_of(folder, critic_layers=3)
    with pytest.raises(SettingsError, match=r"model '.*nothing' cannot be read"):
        critic_of(folder, str(folder / "nothing"))
    tokenizer = train_tokenizer(["something else"] * 3, 60)
    save_policy(tiny_model(tokenizer, 0, torch.float32), tokenizer, folder / "other")
    with pytest.raises(SettingsError, match=r"--critic: .*other must have the policy's tokenizer, but .* differ"):
        critic_of(folder, str(folder / "other"))
