"""A reward model that is a head on the reference: one pass gives scores and reference log-probabilities."""

import json
from dataclasses import replace

import pytest
import torch
from lean import CPU, REWARDS, ROLLOUTS, TOKENIZER, folder_of, run_config

from algos.pieces.types import Rollouts, make_batch
from algos.training.assemble import Checkpoints, make_learner
from algos.training.models.checkpoints import ScalarModel, load_policy
from algos.training.models.packing import shares_prompts
from algos.training.rewards import reward_model
from algos.training.rewards.config import RewardModelConfig
from algos.training.rewards.rewards import Rewards
from algos.training.rewards.shared_pass import drop_equal_backbone
from algos.training.stage.record import component_memory
from algos.training.update.update import prepare
from evaluation.tasks.files import write_jsonl


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


def judged(folder, config, joint: bool, rollouts):
    """Rewards, reference log-probabilities, and the passes through backbones that they took."""
    learner, models = make_learner(config, Checkpoints(str(folder / "policy"), str(folder / "reward_model")), CPU)
    head = models["reward_model"][0]
    assert head.backbone is None and models["reference"][0] is learner.reference
    passes = []
    learner.reference.base_model.register_forward_hook(lambda *_: passes.append(1))
    if not joint:
        head = ScalarModel.load(folder / "reward_model", CPU)
        head.backbone.register_forward_hook(lambda *_: passes.append(1))
        assert shares_prompts(head.backbone)
        passes.clear()
    judge = Rewards(config, TOKENIZER, head, learner.layout(config), learner.reference if joint else None)
    scores, ref_logprobs = judge.learned(rollouts)
    batch = make_batch(replace(rollouts, ref_logprobs=ref_logprobs), REWARDS, TOKENIZER.pad_token_id)
    batch, _ = prepare(batch, learner, config, config.hparams)
    return scores, batch.ref_logprobs, len(passes), component_memory(**models)


def test_one_pass_gives_scores_and_reference_log_probabilities(folder):
    config = run_config("grpo", {"kl_coef": 0.1}, rewards={"reward_model": 1.0}, temperature=0.8)
    scores, logprobs, passes, memory = judged(folder, config, True, ROLLOUTS)
    two_scores, two_logprobs, two_passes, _ = judged(folder, config, False, ROLLOUTS)
    torch.testing.assert_close(scores, two_scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs, two_logprobs, atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.01 and logprobs.abs().max() > 0.1
    assert (passes, two_passes) == (3, 6)
    assert memory["reward_model"]["parameters"] == 17  # the head alone: the weights are the reference's


def test_a_reward_model_with_a_frozen_backbone_is_a_head_on_the_start(folder):
    rows = [
        {"id": f"train/{i}", "prompt": f"{i}+5=", "responses": ["1", "22"], "correct": [True, False]} for i in range(4)
    ]
    for split in ("train", "held_out"):
        write_jsonl(folder / f"{split}.jsonl", [{**row, "pairs": [[0, 1]], "gold_pairs": [[0, 1]]} for row in rows])
    memory = {}
    for frozen in (True, False):
        config = RewardModelConfig(0, freeze_backbone=frozen, device="cpu", dtype="bfloat16")
        reward_model.train(config, str(folder / "policy"), str(folder), str(folder / "rm"), "", 1)
        memory[frozen] = json.loads((folder / "rm" / "run.json").read_text())["memory"]["reward_model"]
        saved = ScalarModel.load(folder / "rm" / "checkpoint", CPU, "bfloat16")
        assert drop_equal_backbone(saved, load_policy(folder / "policy", CPU, "bfloat16")) is frozen
        assert saved.score.weight.abs().max() > 0
    assert memory[True]["gradients"] == 4 * 17 and memory[True]["parameters"] == memory[False]["parameters"]
    assert memory[False]["gradients"] == 4 * memory[False]["parameters"]


def test_another_backbone_stays_the_reward_models_own(folder):
    policy = load_policy(folder / "policy", CPU)
    other = ScalarModel.load(folder / "reward_model", CPU)
    with torch.no_grad():
        other.backbone.norm.weight[0] += 1e-6
    assert not drop_equal_backbone(other, policy) and other.backbone is not None
    config = run_config("grpo", rewards={"reward_model": 1.0})  # no KL, no reference to share with
    _, models = make_learner(config, Checkpoints(str(folder / "policy"), str(folder / "reward_model")), CPU)
    assert models["reward_model"][0].backbone is not None


def test_known_reference_log_probabilities_follow_the_groups():
    known = torch.arange(8.0)[:, None].expand(8, 7)
    rollouts = replace(ROLLOUTS, ref_logprobs=known)
    assert rollouts.select_groups([1]).ref_logprobs[:, 0].tolist() == [4, 5, 6, 7]
    joined = Rollouts.join([rollouts.select_groups([1]), rollouts.select_groups([0])], TOKENIZER.pad_token_id)
    assert joined.ref_logprobs[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert Rollouts.join([rollouts, ROLLOUTS], TOKENIZER.pad_token_id).ref_logprobs is None
