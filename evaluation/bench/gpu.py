"""One model shape on this device: memory by component and phase, tokens/s and MFU by phase, beside TRL.

Weights and prompts are random, lengths forced, nothing is downloaded. Each run has the device to itself. Our run
and TRL's both sample with transformers. A run that does not fit is recorded as out of memory, and a run past the time
budget as not measured.
By hand:
    python -m evaluation.bench gpu --shape qwen2.5-0.5b --algorithms ppo ppo_shared grpo gspo --optimizers adamw
    python -m evaluation.bench gpu --shape toy --device cpu
"""

import argparse
import gc
import time
from collections.abc import Iterator

import torch

from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.stage.record import component_memory
from evaluation.bench.measure import machine_limits
from evaluation.bench.output import row
from evaluation.bench.parts import Bench, ratio_row, step_rows, work_of
from evaluation.bench.steps import Loop, counted, in_turns
from evaluation.bench.switches import merged
from evaluation.bench.workload import SHAPES, Workload, synthetic_workload

DTYPES = ("auto", "float32", "bfloat16")
WARMUP = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("gpu")
    group.add_argument("--shape", default="qwen2.5-0.5b", help=", ".join(SHAPES))
    group.add_argument("--algorithms", nargs="+", default=["grpo", "ppo"])
    group.add_argument("--optimizers", nargs="+", default=["adamw"])
    group.add_argument("--prompts", type=int, default=8, help="per step")
    group.add_argument("--group", type=int, default=8, help="responses per prompt")
    group.add_argument("--prompt-tokens", type=int, default=256)
    group.add_argument("--response-tokens", type=int, default=256)
    group.add_argument("--dtype", default="auto", help="auto: bfloat16 on CUDA, if this commit's runs have it")
    group.add_argument("--set", default="{}", metavar="JSON", help="more settings of all runs: JSON or a file of it")
    group.add_argument("--no-trl", action="store_true", help="ours alone")
    group.add_argument("--minutes", type=float, default=9.0, help="no run begins, and no step follows, after these")


def check(args: argparse.Namespace) -> None:
    """Raises SettingsError for an option that means nothing."""
    one_of(args.shape, SHAPES, "--shape")
    one_of(args.dtype, DTYPES, "--dtype")
    for name in ("prompts", "group", "prompt_tokens", "response_tokens", "minutes"):
        if getattr(args, name) <= 0:
            raise SettingsError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}.")


def run_settings(bench: Bench, args: argparse.Namespace, algorithm: str, optimizer: str) -> dict:
    """The settings of one run with our trainer. dtype auto is resolved against what a run may be here."""
    micro = min(bench.settings(algorithm).get("micro_batch_size", 32), args.prompts * args.group)  # responses
    fixed = {
        "prompts_per_step": args.prompts,
        "group_size": args.group,
        "max_prompt_tokens": args.prompt_tokens,
        "max_response_tokens": args.response_tokens,
        "micro_batch_size": micro,
        "micro_batch_tokens": micro * (args.prompt_tokens + args.response_tokens),  # the same limit in tokens
        "steps": WARMUP + args.steps,
        "optimizer": {"name": optimizer},
        "dtype": "float32" if args.dtype == "auto" else args.dtype,
    }
    settings = merged(merged(bench.settings(algorithm), fixed), args.set)
    if args.dtype == "auto" and bench.device.type == "cuda" and "dtype" not in args.set:
        try:
            from_dict(RunConfig, {**settings, "dtype": "bfloat16"}, "settings")
            return {**settings, "dtype": "bfloat16"}
        except SettingsError:
            return settings
    return settings


def rows(bench: Bench, args: argparse.Namespace) -> Iterator[dict]:
    """All combinations of --algorithms and --optimizers, each beside TRL's trainer where TRL can do it."""
    ends = time.monotonic() + 60 * args.minutes
    torch.set_num_threads(bench.threads)
    workload = synthetic_workload(bench.folder(), SHAPES[args.shape], 4 * args.prompts, args.prompt_tokens)
    limits: dict[str, dict] = {}  # by dtype
    for algorithm in args.algorithms:
        for optimizer in args.optimizers:
            case = f"{args.shape} {algorithm} {optimizer}"
            try:
                settings = run_settings(bench, args, algorithm, optimizer)
                config = from_dict(RunConfig, settings, case)
            except SettingsError as error:
                yield row(case, "not measured", None, note=str(error))
                continue
            if config.dtype not in limits:
                limits[config.dtype] = machine_limits(bench.device, config.dtype)
                for name in ("matmul_flops", "nominal_bfloat16_flops"):
                    if limits[config.dtype].get(name):
                        yield row(f"{config.dtype} machine", name, limits[config.dtype][name], "FLOP/s")
                for name in ("copy_bytes_per_second", "nominal_bytes_per_second"):
                    if limits[config.dtype].get(name):
                        yield row(f"{config.dtype} machine", name, limits[config.dtype][name], "bytes/s")
            times: dict[str, list[float]] = {}
            for side in ("ours",) if args.no_trl else ("ours", "trl"):
                trainer = "own" if side == "ours" else "trl"
                for figure in one_run(
                    bench, f"{case}, {side}", {**settings, "trainer": trainer}, workload, limits, ends
                ):
                    times.setdefault(side, figure.pop("times", None))
                    decides = figure["quantity"] == "update_mfu_nominal" and side == "ours"
                    decides = decides and args.shape == "qwen2.5-0.5b" and config.dtype == "bfloat16"
                    yield {**figure, "target": "gpu_mfu"} if decides else figure
            if times.get("ours") and times.get("trl"):
                pairs = min(map(len, times.values()))
                target = "gpu_step" if args.shape == "qwen2.5-0.5b" and bench.device.type == "cuda" else ""
                slow, fast = times["trl"][:pairs], times["ours"][:pairs]
                yield ratio_row(case, slow, fast, f"TRL's step / ours, {pairs} steps each, one after the other", target)


def one_run(bench: Bench, case: str, settings: dict, workload: Workload, limits: dict, ends: float) -> Iterator[dict]:
    """The figures of one run; the first carries its step `times`. A failed run gives a figure too."""
    if time.monotonic() > ends:
        yield row(case, "not measured", None, note="past the time budget of --minutes")
        return
    loop: Loop | None = None
    memory: dict = {}

    def after_each(_) -> bool:
        assert loop is not None
        memory.update(component_memory(**loop.models))
        return time.monotonic() > ends

    try:
        loop = bench.loop(settings, workload)
        found = in_turns({"run": loop}, bench.steps, WARMUP, after_each)["run"]
        if bench.device.type == "cpu" and settings["trainer"] == "own":
            loop.peak_bytes = counted(settings, workload, bench.folder(), bench.threads).peak_bytes
    except SettingsError as error:
        yield row(case, "not measured", None, note=str(error))
        return
    except torch.OutOfMemoryError as error:
        yield row(case, "out_of_memory", 1, note=str(error).split(". ")[0][:120])
        return
    finally:
        peaks, config = (loop.peak_bytes, loop.config) if loop is not None else ({}, None)
        loop = None
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    if not found:
        yield row(case, "not measured", None, note="the time budget of --minutes ended before a step that counts")
        return
    work = work_of(config, workload, config.max_response_tokens)
    element = 2 if config.dtype == "bfloat16" else 4
    times = [line["wall_seconds"] for line in found]
    for figure in step_rows(case, found, work, limits[config.dtype], element):
        yield {**figure, "times": times}
    source = "torch's allocator" if bench.device.type == "cuda" else "live tensors"
    for phase, size in peaks.items():
        yield row(case, f"peak_bytes_{phase}", size, "bytes", source)
    for component, sizes in memory.items():
        for kind, size in sizes.items():
            yield row(case, f"{component}_{kind}", size, "" if kind == "parameters" else "bytes")
