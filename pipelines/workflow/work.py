"""What a stage computes, as far as its memory and its time depend on it: counts of models, tokens and passes."""

import math
from dataclasses import dataclass, replace
from functools import cache

from algos.training.config import RunConfig
from algos.training.rewards.config import PreferenceConfig, RewardModelConfig
from algos.training.supervised.config import (
    DistillationConfig,
    ExpertIterationConfig,
    SupervisedConfig,
)
from pipelines.study import Study

PROMPT_TOKENS = 512  # where no setting limits them
ROWS = 512  # responses that are sampled side by side
PROBLEMS = 1500  # of a split whose size is not set
USUAL = 3  # a prompt and its response, in longest responses: memory must hold the longest, time goes by the usual


@dataclass(frozen=True)
class Work:
    device: str
    trained: int = 0  # models with gradients and an optimizer
    frozen: int = 0
    sampled: int = 0  # tokens
    positions: int = 0  # of a response, which are sampled one after the other
    rows: int = 0  # sampled side by side
    length: int = 0  # tokens of a prompt and its response
    learned: int = 0  # tokens that gradients are computed of, prompts included
    at_once: int = 0  # tokens of one pass
    logits_at_once: bool = True  # False: in pieces
    checkpointing: bool = False
    offload: bool = False


@cache
def of_stage(study: Study, name: str) -> Work:
    config = study.parsed(name, study.seeds_of(name)[0])
    response = study.settings.sampling.max_response_tokens
    if isinstance(config, RunConfig):
        return _run(config)
    if isinstance(config, SupervisedConfig):
        return _supervised(config, response)
    if isinstance(config, RewardModelConfig):
        pairs = study.parsed(study.edges(name)["data"], study.seeds_of(study.edges(name)["data"])[0])
        return _reward_model(config, pairs, response)
    if isinstance(config, DistillationConfig):
        return _distillation(config)
    if isinstance(config, ExpertIterationConfig):
        return _expert_iteration(config)
    return _sampling(config, config.prompts * config.responses)


@cache
def of_evaluation(study: Study, checkpoints: int, split: str = "test") -> Work:
    """Of one checkpoint after the other: a greedy response and the sampled ones to each problem.

    On the test problems also what `reach` and `other_task` add.
    """
    config, other = study.parsed_evaluation, study.other_task
    responses = (getattr(study.settings.task, split) or PROBLEMS) * (1 + config.samples)
    if split == "test" and other is not None:
        responses += (other.test or PROBLEMS) * (1 + config.samples)
    if split == "test" and config.reach is not None:
        responses += config.reach.problems * config.reach.samples
    return _sampling(config, responses * checkpoints, config.rows_at_once)


def _run(config: RunConfig) -> Work:
    hparams, own = config.hparams, config.trainer == "own"
    length = config.max_prompt_tokens + config.max_response_tokens
    rows = config.responses_per_step
    side = min(rows, ROWS)  # sampled side by side
    at_once = config.micro_batch_tokens if own else None
    critic = hparams.has_critic and hparams.critic != "shared"
    measured = 0 if config.dev_every is None else 2 + config.steps // config.dev_every  # times
    return Work(
        config.device,
        trained=1 + critic,
        frozen=hparams.needs_reference + config.needs_reward_model,
        sampled=(config.steps * rows + measured * config.dev_problems) * config.max_response_tokens,
        positions=(config.steps * math.ceil(rows / side) + measured * math.ceil(config.dev_problems / side))
        * config.max_response_tokens,
        rows=side,
        length=length,
        learned=config.steps * config.epochs * rows * USUAL * config.max_response_tokens,
        at_once=min(at_once or config.micro_batch_size * length, rows * length),
        logits_at_once=not own or config.logits_at_once is None,
        checkpointing=config.gradient_checkpointing,
        offload=bool(config.offload),
    )


def _supervised(config: SupervisedConfig, response_tokens: int) -> Work:
    return Work(
        config.device,
        trained=1,
        learned=config.steps * config.batch_size * USUAL * response_tokens,
        at_once=config.batch_size * (PROMPT_TOKENS + response_tokens),
        logits_at_once=config.trainer == "trl",
    )


def _reward_model(config: RewardModelConfig, pairs: PreferenceConfig, response_tokens: int) -> Work:
    return Work(
        config.device,
        trained=1,
        learned=config.epochs * pairs.prompts * pairs.responses * USUAL * response_tokens,
        at_once=config.prompts_per_batch * pairs.responses * (PROMPT_TOKENS + response_tokens),
        logits_at_once=False,
    )


def _distillation(config: DistillationConfig) -> Work:
    length, rows = PROMPT_TOKENS + config.max_response_tokens, config.responses_per_step
    return Work(
        config.device,
        trained=1,
        frozen=1,
        sampled=config.steps * rows * config.max_response_tokens,
        positions=config.steps * math.ceil(rows / ROWS) * config.max_response_tokens,
        rows=min(rows, ROWS),
        length=length,
        learned=config.steps * rows * USUAL * config.max_response_tokens,
        at_once=min(config.micro_batch_size, rows) * length,
    )


def _expert_iteration(config: ExpertIterationConfig) -> Work:
    """Sampling and training in turns, twice the sampling for the problems that are asked again with a hint."""
    rounds = config.rounds
    sampling = _sampling(config.sampling, 2 * rounds * config.sampling.prompts * config.sampling.responses)
    training = _supervised(config.training, config.sampling.max_response_tokens)
    return replace(
        sampling, trained=1, frozen=0, learned=rounds * training.learned, at_once=training.at_once, logits_at_once=False
    )


def _sampling(config, responses: int, rows: int = ROWS) -> Work:
    """Of a policy that is only sampled from; rows: responses side by side."""
    return Work(
        config.device,
        frozen=1,
        sampled=responses * config.max_response_tokens,
        positions=math.ceil(responses / rows) * config.max_response_tokens,
        rows=min(responses, rows),
        length=PROMPT_TOKENS + config.max_response_tokens,
    )
