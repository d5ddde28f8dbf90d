"""python -m evaluation.bench PART ...    what the suite costs, beside TRL and beside what the machine could do

generation  sampling against transformers.generate
engines     sampling by transformers.generate, by this project and by vLLM, with the accuracy of the responses
grpo, ppo   a training step against TRL's trainer, in turns
logits      memory of an update at a vocabulary of 151,936
scaling     exponents of seconds in batch, group, length, width and threads
settings    what each optimization of a run is worth: time and memory, with and without
overhead    what a finished study spent on anything but its stages, and what starting a stage costs
gpu         one shape on this device: memory by component and phase, tokens/s, MFU, against TRL
targets     the table of targets, from what is in --out
all         all but engines and gpu
Every part writes PART.csv and PART.json into --out.

Examples:
    python -m evaluation.bench generation --toy
    python -m evaluation.bench grpo ppo --steps 16 --threads 2
    python -m evaluation.bench overhead --results results/default --whole
    python -m evaluation.bench gpu --shape qwen2.5-0.5b --algorithms ppo grpo gspo
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from algos.pieces.settings import SettingsError, one_of, refusals
from evaluation.bench import gpu, logits, output, overhead, parts, sampling, switches
from evaluation.options import read_json

PROG = "python -m evaluation.bench"
PARTS = ("generation", "engines", "grpo", "ppo", "logits", "scaling", "settings", "overhead", "gpu", "targets")


def arguments(words: list[str] | None = None, prog: str = PROG) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__.replace(PROG, prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("parts", nargs="+", metavar="PART", help=f"{', '.join(PARTS)} or all")
    parser.add_argument("--steps", type=int, default=8, help="of each side, after one that does not count (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1, as a job of the study)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder for the files")
    parser.add_argument("--settings", default="{}", metavar="JSON", help="settings of all runs: JSON or a file of it")
    parser.add_argument("--task", default='{"name": "word_problems"}', metavar="JSON", help="task of all runs")
    parser.add_argument("--model", default="{}", metavar="JSON", help="sizes of the policy (default: the study's)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to try the benchmark; no target is decided")
    parser.add_argument("--results", type=Path, default=Path("results"), help="overhead: a study's results")
    parser.add_argument("--whole", action="store_true", help="overhead: --results is a whole study, from scratch")
    gpu.add_options(parser)
    args = parser.parse_args(words)
    for part in args.parts:
        one_of(part, (*PARTS, "all"), "PART")
    if "all" in args.parts:
        args.parts = [part for part in PARTS if part not in ("engines", "gpu")]
    refuse_unused(args)
    gpu.check(args)
    for name in ("steps", "threads"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    for name in ("settings", "task", "model", "set"):
        setattr(args, name, read_json(getattr(args, name), f"--{name}"))
    return args


def refuse_unused(args: argparse.Namespace) -> None:
    """Refuse options of a part that is not measured."""
    of_gpu = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    gpu.add_options(of_gpu)
    defaults = {"gpu": vars(of_gpu.parse_args([])), "overhead": {"results": Path("results"), "whole": False}}
    for part, options in defaults.items():
        changed = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) != options[name]]
        if changed and part not in args.parts:
            raise SettingsError(f"{', '.join(changed)} would have no effect without the part {part}.")


def bench_of(args: argparse.Namespace, scratch: Path) -> parts.Bench:
    return parts.Bench(
        scratch,
        run={**parts.RUN, **args.settings},
        runs={name: run for name, run in parts.RUNS.items() if name != args.settings.get("algorithm")},
        task=args.task,
        model=args.model,
        steps=args.steps,
        threads=args.threads,
        device_name=args.device,
        toy=args.toy,
    )


def measure(args: argparse.Namespace, bench: parts.Bench) -> None:
    """Measure the parts that args names, print each and write it as far as it has come; then the targets.

    args: of arguments(). A caller that has settings, task and model of its own makes its own bench.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    _quiet()
    measures: dict[str, Callable[[parts.Bench], Iterator[dict]]] = {
        "generation": sampling.generation,
        "engines": sampling.engines,
        "grpo": partial(parts.against_trl, algorithm="grpo"),
        "ppo": partial(parts.against_trl, algorithm="ppo"),
        "logits": logits.logits,
        "scaling": parts.scaling,
        "settings": switches.table,
        "overhead": partial(overhead.rows, results=args.results, whole=args.whole),
        "gpu": partial(gpu.rows, args=args),
    }
    for part in args.parts:
        if part == "targets":
            continue
        rows: list[dict] = []
        for figure in measures[part](bench):
            rows.append(figure)
            output.write(args.out, part, rows, {"steps": args.steps, "threads": args.threads, "toy": args.toy})
        output.write(args.out, part, rows, {**vars(args), "limits": bench.limits if part != "gpu" else None}, True)
        print(output.shown(rows), end="\n\n", flush=True)
    print(output.table(output.targets(output.read_all(args.out)), ("target", "bound", "measured", "verdict", "commit")))


def _quiet() -> None:
    """No progress bars and no advice of the libraries' on the terminal."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)


def main(words: list[str] | None = None, prog: str = PROG) -> None:
    """words: those of the command line, or else the process's own; prog: how the command is called there."""
    with refusals(OSError):
        args = arguments(words, prog)
        with TemporaryDirectory(prefix="bench-") as scratch:
            measure(args, bench_of(args, Path(scratch)))
