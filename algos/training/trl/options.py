"""The options of TRL's trainers that make them the estimator of a run.

Every option that decides the estimator is set explicitly, because the defaults of TRL make another estimator: the loss
of DAPO, gradient checkpointing, an off-policy correction. The tables of hyperparameters are in
`algos/training/trl/trainers.py`.
"""

import math
from pathlib import Path

from algos.training.config import RunConfig
from algos.training.trl.trainers import CRITIC, GROUP, LEAVE_ONE_OUT, Setting, loss_type

NO_VALUE_CLIP = 1.0e9  # a clip range that no value reaches
NO_EFFECT_CLIP = 0.2  # for objectives without a clip: their ratio is 1, or TRL does not look at it


def translated(config: RunConfig, table: dict[str, Setting]) -> dict:
    """The run's hyperparameters as TRL's options, by the table of its trainer."""
    hparams, options = config.hparams, {}
    for name, known in table.items():
        if known.option is not None and hasattr(hparams, name):
            value = getattr(hparams, name)
            options[known.option] = value if known.values is None else known.values.get(value, value)
    return options


def shared_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of transformers.TrainingArguments that all of TRL's trainers take.

    Those of optimizer and schedule are not among them: both are handed over as objects.
    """
    return {
        "output_dir": str(Path(out) / "trl"),
        "seed": config.seed,
        "data_seed": config.seed,
        "temperature": config.temperature,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": config.dtype == "bfloat16",  # autocast; the float32 weights are then their own masters
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device.type != "cpu",
    }


def _sampling_arguments(config: RunConfig, out: str, device, micro: int) -> dict:
    """Options that trl.GRPOConfig and trl.RLOOConfig share; `micro` responses go through the model at once."""
    minibatch = config.responses_per_step // config.minibatches
    return {
        **shared_arguments(config, out, device),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": minibatch // micro,
        "steps_per_generation": config.responses_per_step // micro,
        "num_iterations": config.epochs,
        "num_generations": config.group_size,
        "max_completion_length": config.max_response_tokens,
        "max_steps": config.steps * config.minibatches * config.epochs,
        "logging_steps": config.minibatches * config.epochs,
        "max_grad_norm": config.optimizer.max_grad_norm or 0.0,
        "shuffle_dataset": False,
        "epsilon": NO_EFFECT_CLIP,
        "epsilon_high": NO_EFFECT_CLIP,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "mask_truncated_completions": False,
        "sync_ref_model": False,
        "disable_dropout": True,
        "use_vllm": False,
        "remove_unused_columns": False,
        "log_completions": False,
    }


def grpo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.GRPOConfig that make it the run's estimator."""
    minibatch = config.responses_per_step // config.minibatches
    micro = math.gcd(minibatch, config.micro_batch_size)  # equal micro-batches, over which TRL's loss adds up exactly
    kind = loss_type(config)
    over_tokens = config.hparams.entropy_coef or config.algorithm_entry.select is not None
    if kind == "bnpo" or over_tokens:  # TRL takes these over the tokens of a micro-batch
        micro = minibatch
    return {
        **_sampling_arguments(config, out, device, micro),
        "loss_type": kind,
        "multi_objective_aggregation": "sum_then_normalize",
        "delta": None,
        "use_adaptive_entropy": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_liger_kernel": False,
        "router_aux_loss_coef": 0.0,  # TRL's own default adds a load-balancing loss to every mixture of experts
        **translated(config, GROUP),
    }


def rloo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.RLOOConfig that make it the run's estimator."""
    micro = math.gcd(config.responses_per_step // config.minibatches, config.micro_batch_size)
    return {
        **_sampling_arguments(config, out, device, micro),
        "normalize_advantages": False,
        "reward_clip_range": None,
        **translated(config, LEAVE_ONE_OUT),
    }


def ppo_arguments(config: RunConfig, out: str, device) -> dict:
    """Options of trl.experimental.ppo.PPOConfig that make it the run's estimator."""
    options = translated(config, CRITIC)
    if options["cliprange_value"] is None:
        options["cliprange_value"] = NO_VALUE_CLIP
    return {
        **shared_arguments(config, out, device),
        "per_device_train_batch_size": config.responses_per_step,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": config.minibatches,
        "num_ppo_epochs": config.epochs,
        "total_episodes": config.steps * config.responses_per_step,
        "local_rollout_forward_batch_size": config.responses_per_step,
        "response_length": config.max_response_tokens,
        "stop_token": "eos",
        "missing_eos_penalty": None,
        "num_sample_generations": 0,
        "logging_steps": 1,
        "whiten_rewards": False,
        **options,
    }
