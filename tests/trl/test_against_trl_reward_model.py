"""A second implementation: TRL's RewardTrainer agrees with the suite's reward model in loss and gradient."""

import pytest
import torch
from agreement import close
from tiny import gradients, tiny_model, tiny_tokenizer

from algos.training.models.checkpoints import ScalarModel
from algos.training.models.packing import Layout, shares_prompts
from algos.training.rewards.reward_model import bradley_terry_loss, score_examples

CPU = torch.device("cpu")
PROMPT = [5, 6, 7, 8, 9]


@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_loss_and_gradient_of_the_reward_model(centering, tmp_path):
    """TRL's RewardTrainer on the same pairs; its classification head on the same backbone is our linear head."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = tiny_tokenizer()
    policy = tiny_model(tokenizer)
    policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=1, dtype=torch.float64, pad_token_id=tokenizer.pad_token_id
    )
    model = ScalarModel(policy.base_model, "linear", 0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.score.weight.copy_(model.score.weight)
        model.score.bias.zero_()  # TRL's head has none
    chosen = [[*PROMPT, *range(20, 20 + n), tokenizer.eos_token_id] for n in (3, 6, 1)]
    rejected = [[*PROMPT, *range(30, 30 + n), tokenizer.eos_token_id] for n in (5, 2, 4)]
    pairs = [{"chosen_ids": c, "rejected_ids": r} for c, r in zip(chosen, rejected, strict=True)]
    trainer = RewardTrainer(
        model=theirs,
        args=RewardConfig(
            output_dir=str(tmp_path / "out"),
            center_rewards_coefficient=centering or None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
    )
    inputs = trainer.data_collator(pairs)
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    assert shares_prompts(model.backbone)
    examples = [(ids[:2], ids[2:]) for ids in chosen + rejected]
    scores = score_examples(model, examples, tokenizer.pad_token_id, CPU, Layout(share_prompts=True))
    loss = bradley_terry_loss(*scores.chunk(2), centering=centering)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(bradley_terry_loss(*scores.chunk(2)).item() - loss.item()) > 1e-3 or not centering
    got = {name.replace("backbone.", "model."): gradient for name, gradient in gradients(model).items()}
    assert got.pop("score.bias").abs() >= 0
    close(got, gradients(theirs))
