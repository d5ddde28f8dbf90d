"""TRL's SFTTrainer and GKDTrainer in place of the loops of sft.py and distillation.py: a second implementation.

Everything around the loop is the same: the examples of every step and their order, model, optimizer, schedule, record.
Every option that decides the estimator is set explicitly; settings that TRL does not have are refused.

What remains different in TRL 1.12:
- SFTTrainer: nothing but the code. Batches carry attention masks, the loss is transformers' cross-entropy;
- GKDTrainer takes no micro-batches here, so its peak memory is that of a whole step. With micro-batches it would throw
  its coin for each of them, and divide by the tokens of the given responses even where it trains on sampled responses;
- GKDTrainer samples with transformers' generate and torch's global generator: other responses from the same seed;
- GKDTrainer throws its coins with Python's global generator; here it is given those of distillation.py, so that both
  take the same steps.
"""

import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import algos.training.trl.without_vllm  # noqa: F401
from algos.training.stage.record import Phases
from algos.training.supervised.config import DistillationConfig, SupervisedConfig
from algos.training.supervised.examples import Example, Texts, ordered_batches, schedule
from algos.training.trl.check import check_supervised
from algos.training.trl.common import count_positions_by_mask, refuse_other_gpus, sample_plainly, silence

IGNORED = -100  # the label of a token without a loss


def prepare(config: SupervisedConfig | DistillationConfig, device) -> None:
    """Check settings and machine; import TRL before memory is first measured: libraries are not what the run needs."""
    import datasets
    import trl.experimental.gkd  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    check_supervised(config)
    refuse_other_gpus(device)
    datasets.disable_progress_bars()


def sft_arguments(config: SupervisedConfig | DistillationConfig, batch_size: int, out: str, device) -> dict:
    """Options of trl.SFTConfig that make it the estimator of sft.py. Optimizer and schedule are handed over."""
    return {
        "output_dir": out,
        "seed": config.seed,
        "data_seed": config.seed,
        "max_steps": config.steps,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": config.optimizer.max_grad_norm or 0.0,
        "train_sampling_strategy": "sequential",
        "shuffle_dataset": False,
        "completion_only_loss": True,
        "loss_type": "nll",
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "packing": False,
        "padding_free": False,
        "max_length": None,
        "use_liger_kernel": False,
        "router_aux_loss_coef": 0.0,  # TRL's own default adds a load-balancing loss to every mixture of experts
        "gradient_checkpointing": False,
        "bf16": config.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": device.type == "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device.type != "cpu",
    }


def gkd_arguments(config: DistillationConfig, out: str, device) -> dict:
    """Options of trl.experimental.gkd.GKDConfig that make it the estimator of distillation.py."""
    return {
        **sft_arguments(config, config.responses_per_step, out, device),
        "lmbda": config.on_policy_share,
        "beta": config.beta,
        "temperature": config.temperature,
        "max_new_tokens": config.max_response_tokens,
        "seq_kd": False,
        "disable_dropout": True,
        "remove_unused_columns": False,
    }


def fit(
    model,
    tokenizer,
    optimizer,
    scheduler,
    examples: list[Example],
    config: SupervisedConfig,
    phases: Phases,
    on_step: Callable[[int, dict], None],
) -> None:
    """The fit of sft.py, by SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    batches = ordered_batches(examples, config)
    tokens = [sum(len(response) for _, response in batch) for batch in batches]
    with TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**sft_arguments(config, config.batch_size, scratch, model.device)),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([sft_row(*example) for batch in batches for example in batch]),
            optimizers=(optimizer, scheduler),
            callbacks=[
                _callback(phases, lambda step, metrics: on_step(step, {**metrics, "batch_tokens": tokens[step]}))
            ],
        )
        silence(trainer)
        trainer.train()


def sft_row(prompt: list[int], response: list[int]) -> dict[str, list[int]]:
    """An example as TRL's own tokenization of prompt-completion data leaves it."""
    return {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}


def fit_distillation(
    student,
    teacher,
    tokenizer,
    optimizer,
    scheduler,
    texts: Texts,
    config: DistillationConfig,
    phases: Phases,
    on_step: Callable[[int, dict, list[list[int]]], None],
) -> None:
    """The fit of distillation.py, by GKDTrainer."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    sample_plainly(student, tokenizer)
    for model in (student, teacher):
        count_positions_by_mask(model)
    steps = schedule(config, texts)
    rows = [gkd_row(texts, step.on_policy, i) for step in steps for i in step.rows for _ in _copies(config, step)]
    responses: list[list[int]] = []  # of the current step

    def begin(number: int) -> None:
        step = steps[number]
        trainer.lmbda = float(step.on_policy)
        responses[:] = [] if step.on_policy else [texts.examples[i][1] for i in step.rows]

    def finish(number: int, metrics: dict) -> None:
        step = steps[number]
        prompts = [gkd_row(texts, step.on_policy, i)["prompt_ids"] for i in step.rows for _ in _copies(config, step)]
        scored = sum(map(len, prompts)) + sum(map(len, responses))
        on_step(number, {**metrics, "scored_tokens": scored}, list(responses))

    with TemporaryDirectory() as scratch:
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(**gkd_arguments(config, scratch, student.device)),
            data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            optimizers=(optimizer, scheduler),
            callbacks=[_callback(phases, finish, begin)],
        )
        trainer.model_accepts_loss_kwargs = False  # else the divisor is the number of given tokens, whatever is sampled
        generate = trainer.generate_on_policy_outputs

        def timed_generate(model, inputs, generation_config):
            with phases("generate"):
                ids, attention_mask, labels = generate(model, inputs, generation_config)
            responses[:] = [row[label != IGNORED].tolist() for row, label in zip(ids, labels, strict=True)]
            return ids, attention_mask, labels

        trainer.generate_on_policy_outputs = timed_generate  # type: ignore[method-assign]  # measured from outside
        teacher.forward = _timed(teacher.forward, phases, "teacher")
        silence(trainer)
        trainer.train()


def _copies(config: DistillationConfig, step) -> range:
    """A prompt stands in the batch once for each response that is sampled to it, a given example once."""
    return range(config.responses if step.on_policy else 1)


def gkd_row(texts: Texts, on_policy: bool, i: int) -> dict[str, list[int]]:
    """A row of TRL's batch. If the student answers, TRL samples the response."""
    prompt, response = (texts.prompts[i], []) if on_policy else texts.examples[i]
    return {"prompt_ids": prompt, "response_ids": response}


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """The inputs of GKDTrainer: [padding | prompt | response | padding], and the prompts alone to sample from."""
    prompts, responses = [row["prompt_ids"] for row in rows], [row["response_ids"] for row in rows]
    before, after = max(map(len, prompts)), max(map(len, responses))
    ids = [
        [pad_id] * (before - len(p)) + p + r + [pad_id] * (after - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    seen = [
        [0] * (before - len(p)) + [1] * (len(p) + len(r)) + [0] * (after - len(r))
        for p, r in zip(prompts, responses, strict=True)
    ]
    labels = [[IGNORED] * before + r + [IGNORED] * (after - len(r)) for r in responses]
    input_ids, attention_mask = torch.tensor(ids), torch.tensor(seen)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": torch.tensor(labels),
        "prompts": input_ids[:, :before],
        "prompt_attention_mask": attention_mask[:, :before],
    }


def _timed(function, phases: Phases, phase: str):
    """The function, with its seconds added to a phase."""

    def wrapper(*args, **kwargs):
        with phases(phase):
            return function(*args, **kwargs)

    return wrapper


def _callback(phases: Phases, finish: Callable[[int, dict], None], begin: Callable[[int], None] = lambda _: None):
    """Tells when optimizer steps begin and finish; the time of a step that is in no other phase is the update's."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        started = 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            phases.wait()
            self.started = time.perf_counter()  # imports and set-up are no part of the first step

        def on_step_begin(self, args, state, control, **kwargs):
            begin(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in logs:  # the trainer's closing summary
                return
            if logs["grad_norm"] != logs["grad_norm"] or abs(logs["grad_norm"]) == float("inf"):
                raise FloatingPointError(f"the gradient norm is {logs['grad_norm']}: the loss diverged")
            phases.wait()
            now = time.perf_counter()
            phases.add("update", now - self.started - sum(phases.step.values()))
            finish(state.global_step - 1, {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")})
            self.started = time.perf_counter()

    return Steps()
