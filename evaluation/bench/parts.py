"""The parts of the benchmark that train: our trainer against TRL, and our step against itself at other sizes.

Each part yields the rows that output.py writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from algos.pieces.settings import SettingsError
from algos.training.models.checkpoints import resolve_device
from algos.training.update.needs import sampler_gives_old_logprobs
from evaluation.bench.measure import exponent, machine_limits, ratio_of_medians
from evaluation.bench.output import row
from evaluation.bench.steps import Loop, in_turns, median
from evaluation.bench.work import StepWork, decode_bytes
from evaluation.bench.workload import SHAPES, Shape, Workload, pretrained_workload, task_workload

PHASES = ("generate", "reward", "logprobs", "update")
RESPONSE_TOKENS = 20  # about the default study's mean
RUN = {"minibatches": 4, "micro_batch_tokens": 4096, "critic_learning_rate": 3.0e-4}  # as in the default study
RUNS = {
    "ppo": {"settings": {"clip_low": 0.2, "clip_high": 0.2, "gae_lambda": 1.0}},
    "grpo": {"settings": {"clip_low": 0.2, "clip_high": 0.28, "std_epsilon": 1.0e-4}},
    "gspo": {"settings": {"clip_low": 0.03, "clip_high": 0.04, "std_epsilon": 1.0e-4}},
}
TOY = {"prompts_per_step": 4, "group_size": 2, "micro_batch_size": 4, "max_response_tokens": 4}


@dataclass
class Bench:
    """Where and how much is measured."""

    scratch: Path  # an empty folder for models and records
    run: dict = field(default_factory=lambda: RUN)  # settings of all runs, as algos.training.train takes them
    runs: dict[str, dict] = field(default_factory=lambda: RUNS)  # settings of an algorithm's run, over those of all
    task: dict = field(default_factory=lambda: {"name": "word_problems"})
    model: dict = field(default_factory=dict)  # sizes of the policy that differ from Shape's
    loaded: bool = False  # the policy is a loaded model: `model` says which, with its own weights
    prompt: dict = field(default_factory=dict)  # the study's prompt settings, for a loaded model
    steps: int = 8  # of each of two sides that take turns, after one that does not count
    threads: int = 1
    device_name: str = "auto"
    toy: bool = False  # a model and batch of a few thousand numbers, to try the benchmark itself
    made: int = 0

    @cached_property
    def device(self) -> torch.device:
        return resolve_device(self.device_name)

    @cached_property
    def limits(self) -> dict:
        torch.set_num_threads(self.threads)
        return machine_limits(self.device)

    @property
    def shape(self) -> Shape:
        if self.toy:
            return SHAPES["toy"]
        known = {k: v for k, v in self.model.items() if k in vars(Shape())}
        return replace(Shape(), **known, key_value_heads=known.get("heads", Shape().heads))

    @property
    def response_tokens(self) -> int:
        """The limit of forced responses: a loaded model's is the study's."""
        return self.run["max_response_tokens"] if self.loaded else RESPONSE_TOKENS

    def folder(self) -> Path:
        self.made += 1
        path = self.scratch / str(self.made)
        path.mkdir()
        return path

    def workload(self, length: float | None = None, problems: int = 1024, **changed) -> Workload:
        """length: mean tokens of a response, which a loaded model does not heed; None: all have the most tokens."""
        if self.loaded and changed:
            raise SettingsError("a loaded model has one shape; measure scaling with a model that the study builds.")
        if self.loaded:
            return pretrained_workload(self.folder(), self.model, self.task, self.prompt, problems, length is None)
        return task_workload(self.folder(), self.task, problems, replace(self.shape, **changed), length)

    def settings(self, algorithm: str, **changed) -> dict:
        """The settings of an algorithm's run; lengths are forced, and the reward varies."""
        run = {**self.run, **self.runs.get(algorithm, {}), "algorithm": algorithm}
        if self.run.get("algorithm", algorithm) != algorithm and algorithm not in self.runs:
            run.pop("settings", None)  # the hyperparameters of another algorithm
        fixed = {
            "seed": 0,
            "device": self.device_name,
            "steps": self.steps + 2,  # up to two that do not count
            "max_response_tokens": self.response_tokens,
            "rewards": {"language": 1.0},
        }
        return {**run, **fixed, **(TOY if self.toy else {}), **changed}

    def loop(self, settings: dict, workload: Workload, threads: int | None = None) -> Loop:
        return Loop(settings, workload, self.folder(), threads or self.threads)


def ratio_row(case: str, slow: list[float], fast: list[float], note: str, target: str = "") -> dict:
    found = ratio_of_medians(slow, fast)
    return row(case, "ratio", found.mean, "x", note, found.low, found.high, target)


def step_rows(case: str, rows: list[dict], work: StepWork, limits: dict, element: int = 4) -> Iterator[dict]:
    """Seconds and tokens per second by phase, and their shares of what the machine reaches; element: bytes a number."""
    yield row(case, "step_seconds", median(rows, "wall_seconds"), "s", f"median of {len(rows)}")
    for phase in PHASES:
        seconds = median(rows, f"{phase}_seconds")
        yield row(case, f"{phase}_seconds", seconds, "s")
        if work.flops.get(phase) and seconds:
            yield row(case, f"{phase}_tokens_per_second", work.tokens[phase] / seconds, "tokens/s")
            share = work.flops[phase] / seconds / limits["matmul_flops"]
            yield row(case, f"{phase}_mfu", share, "", "of the measured matmul peak")
            if limits.get("nominal_bfloat16_flops"):
                share = work.flops[phase] / seconds / limits["nominal_bfloat16_flops"]
                yield row(case, f"{phase}_mfu_nominal", share, "", "of the data sheet's dense bfloat16")
    read = decode_bytes(work.shape, work.prompt, work.response, work.rows, element)
    bound = read / limits["copy_bytes_per_second"]
    generate = median(rows, "generate_seconds")
    if generate:
        yield row(case, "decode_bandwidth_share", bound / generate, "", f"{bound:.3g} s to read weights and cache")


def work_of(config, workload: Workload, response: float) -> StepWork:
    """TRL's GRPO has no pass for old log-probabilities either, where a rollout batch has one optimizer step."""
    hparams = config.hparams
    sampled = config.trainer == "own" and sampler_gives_old_logprobs(config)
    sampled = sampled or (config.trainer == "trl" and not hparams.has_critic and config.updates_per_step == 1)
    return StepWork(
        workload.shape,
        workload.prompt_tokens,
        response,
        config.responses_per_step,
        config.prompts_per_step,
        hparams.has_critic and hparams.critic == "separate",
        passes=int(not sampled) + int(hparams.needs_reference),
    )


def forced(rows: list[dict], response: int, case: str) -> None:
    """Raise RuntimeError unless every response had the forced length: the two sides would do different work."""
    lengths = {round(float(line["response_tokens"]), 6) for line in rows}
    if lengths != {float(response)}:
        raise RuntimeError(f"{case}: responses should all have {response} tokens, means were {sorted(lengths)}")


def against_trl(bench: Bench, algorithm: str) -> Iterator[dict]:
    """Steps of our trainer and of TRL's for the same run, in turns: with the study's minibatches, and with one.

    Then the study's number of minibatches again, with our minibatches made of whole prompts. TRL's are made of shuffled
    responses, so that a prompt has fewer of its responses beside it: as much work, but other minibatches.
    """
    workload = bench.workload()
    study_minibatches = bench.settings(algorithm).get("minibatches", 1)
    cases = dict.fromkeys([(study_minibatches, "responses"), (1, "responses"), (study_minibatches, "prompts")])
    for minibatches, unit in cases:
        if unit == "prompts" and minibatches == 1:
            continue  # the same as of responses
        settings = bench.settings(algorithm, minibatches=minibatches)
        loops = {
            "trl": bench.loop({**settings, "trainer": "trl"}, workload),
            "ours": bench.loop({**settings, "minibatch_of": unit}, workload),
        }
        config = loops["ours"].config
        found = in_turns(loops, bench.steps)
        name = f"{algorithm}, {minibatches} minibatches" + (" of prompts" if unit == "prompts" else "")
        forced(found["ours"], config.max_response_tokens, name)
        for side, rows in found.items():
            work = work_of(loops[side].config, workload, config.max_response_tokens)
            yield from step_rows(f"{name}, {side}", rows, work, bench.limits)
        trl, ours = ([line["wall_seconds"] for line in found[side]] for side in ("trl", "ours"))
        decides = not bench.toy and (minibatches, unit) == (study_minibatches, "responses")
        target = f"{algorithm}_step" if decides else ""
        yield ratio_row(name, trl, ours, f"TRL's step / ours, {len(ours)} pairs", target)


SCALING = {  # what is varied -> (settings or shape, values, one step in logarithms)
    "prompts_per_step": ("settings", (8, 16, 32, 64)),
    "group_size": ("settings", (2, 4, 8, 16)),
    "max_response_tokens": ("settings", (10, 20, 40, 80)),
    "hidden_size": ("shape", (64, 128, 256)),
    "threads": ("threads", (1, 2)),
}
TOY_SCALING = {
    "prompts_per_step": ("settings", (2, 4, 8)),
    "hidden_size": ("shape", (8, 16, 32)),
    "threads": ("threads", (1, 2)),
}


def scaling(bench: Bench) -> Iterator[dict]:
    """Our GRPO step with one thing varied at a time, all its values in turns: the exponent of seconds."""
    for name, (kind, values) in (TOY_SCALING if bench.toy else SCALING).items():
        loops = {}
        for value in values:
            shape = {}
            if kind == "shape":  # width and feed-forward width together
                shape = {name: value, "intermediate_size": round(value * 2.75)}
            workload = bench.workload(**shape, problems=256)
            settings = bench.settings("grpo", **({name: value} if kind == "settings" else {}))
            loops[str(value)] = bench.loop(settings, workload, value if kind == "threads" else None)
        found = in_turns(loops, max(bench.steps // 2, 1))
        for phase in ("generate", "update"):
            seconds = [median(rows, f"{phase}_seconds") for rows in found.values()]
            for value, s in zip(values, seconds, strict=True):
                yield row(f"{name} {value}", f"{phase}_seconds", s, "s")
            slope, error = exponent(values, seconds)
            low, high = slope - 1.96 * error, slope + 1.96 * error
            note = f"standard error {error:.3f}; seconds ~ {name}^exponent"
            yield row(name, f"{phase}_exponent", slope, "", note, low, high)
