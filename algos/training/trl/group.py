"""A run by TRL's GRPOTrainer or RLOOTrainer.

What remains different in TRL 1.12:
- the responses of a rollout batch are shuffled into minibatches once, not in every epoch;
- for token means with several minibatches, and with an entropy bonus, the micro-batch is the minibatch (GRPO);
- the logged loss of reinforce.py and rloo.py is that of a ratio of 1, which has the same gradient.
"""

import json
from typing import Any
from unittest.mock import patch

import algos.training.trl.without_vllm  # noqa: F401
from algos.training.trl.common import Work, count_positions_by_mask, silence
from algos.training.trl.monitor import Monitor, scoring_only, step_logs
from algos.training.trl.options import grpo_arguments, rloo_arguments
from algos.training.trl.trainers import trainer_of
from algos.training.update.optimize import make_optimizer

METRICS = {  # TRL's name -> the suite's name; the name of kl depends on the trainer
    "loss": "policy_loss",
    "grad_norm": "grad_norm_last",
    "entropy": "entropy",
    "learning_rate": "learning_rate",
    "clip_ratio/region_mean": "clip_fraction",
    "clip_ratio/low_mean": "clip_fraction_low",
    "clip_ratio/high_mean": "clip_fraction_high",
    "cispo_clip_ratio": "clip_fraction_high",
}


def train_group(work: Work, monitor: Monitor) -> dict:
    """Train the policy on the rows, in their order; the models by name, as (model, optimizer or None)."""
    trainer = _make_trainer(work, monitor)
    silence(trainer)
    count_positions_by_mask(work.policy, trainer.ref_model)
    trainer._get_per_token_logps_and_entropies = monitor.timed(trainer._get_per_token_logps_and_entropies, scoring_only)
    trainer._generate_and_score_completions = monitor.timed(
        trainer._generate_and_score_completions, "generate", minus=("reward", "logprobs")
    )
    trainer.train()
    models = {"policy": (work.policy, _plain_optimizer(trainer.optimizer))}
    if trainer.ref_model is not None:
        models["reference"] = (trainer.ref_model, None)
    return models


def _make_trainer(work: Work, monitor: Monitor):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config = work.config
    kind: Any
    arguments: Any
    if trainer_of(config).kind == "grpo":
        kind, arguments, kl = GRPOTrainer, GRPOConfig(**grpo_arguments(config, work.out, work.device)), "kl_loss_k3"
    else:
        kind, arguments, kl = RLOOTrainer, RLOOConfig(**rloo_arguments(config, work.out, work.device)), "kl_to_ref_k1"

    def reward(prompts, completions, completion_ids, problem, **_):
        return monitor.score([json.loads(row) for row in problem], completion_ids)

    # TRL loads the reference policy from the folder that the policy's config names, if the KL coefficient is above 0
    with patch.object(work.policy.config, "_name_or_path", work.reference_path):
        return kind(
            model=work.policy,
            args=arguments,
            reward_funcs=reward,
            processing_class=work.tokenizer,
            optimizers=make_optimizer(work.policy, config.optimizer, config.steps * config.updates_per_step),
            train_dataset=Dataset.from_list(
                [{"prompt": row["prompt"], "problem": json.dumps(row)} for row in work.rows]
            ),
            callbacks=[step_logs(monitor, {**METRICS, "kl": kl})],
        )


def _plain_optimizer(optimizer):
    """The torch optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
