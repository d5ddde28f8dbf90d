"""What can be asked of a study's stage before it runs.

python -m pipelines describe STUDY STAGE                  the estimator of an RL stage: equation and settings, resolved
python -m pipelines memory STUDY STAGE                    its peak memory by model, component and phase, predicted
python -m pipelines bench STUDY STAGE PART ... [OPTIONS]  the parts of `python -m evaluation.bench`, with its settings
python -m pipelines schema                                writes the JSON schema of study files, for editors
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from algos.describe import page
from algos.pieces.settings import SettingsError, from_dict, one_of
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from pipelines.memory import memory_arguments, only_shape
from pipelines.schema import write
from pipelines.study import Study, load


def rl_stage(study: Study, name: str) -> RunConfig:
    """The settings of an RL stage, with the first of its seeds."""
    one_of(name, study.of_kind("rl"), "STAGE")
    return study.parsed(name, study.seeds_of(name)[0])


def describe(study: Study, name: str) -> str:
    """The page of a stage's algorithm, with the stage's own settings."""
    from algos import ALGORITHMS

    run = rl_stage(study, name)
    loop = {key: getattr(run, key) for key in ("epochs", "minibatches", "group_size", "prompts_per_step", "rewards")}
    text = page(run.algorithm, ALGORITHMS[run.algorithm], ALGORITHMS, run.hparams, loop | _rate(run))
    return f"{name} ({run.algorithm}{', by TRL' if run.trainer == 'trl' else ''})\n{text}"


def _rate(run: RunConfig) -> dict:
    return {"learning_rate": run.optimizer.learning_rate}


def memory(study: Study, name: str, prompt_tokens: int | None) -> str:
    """The predicted peak of a stage; prompts as long as the stage admits, unless it is said how long they are."""
    from evaluation.memory.text import settings_report

    run = rl_stage(study, name)
    model, on_reference = memory_arguments(study, name)
    return settings_report(run, model, prompt_tokens, on_reference, f"{name} of {study.source}")


def bench(study: Study, name: str, words: list[str]) -> None:
    """Measure parts of the benchmark with a stage's settings, task and model."""
    from evaluation.bench import command, parts

    given = [word for word in words if word.partition("=")[0] in ("--settings", "--task", "--model")]
    if given:
        raise SettingsError(f"{given[0]} would have no effect: settings, task and model are those of stage {name}.")
    args, run = command.arguments(words), study.resolved(name, study.seeds_of(name)[0])
    model = only_shape(study, name)
    loaded = not from_dict(ModelConfig, model, "model").built
    with TemporaryDirectory(prefix="bench-") as scratch:
        made = parts.Bench(Path(scratch), run=run, runs=_runs(study), task=study.task(), model=model)
        made.loaded, made.prompt = loaded, study.prompt()
        made.steps, made.threads, made.device_name, made.toy = args.steps, args.threads, args.device, args.toy
        command.measure(args, made)


def _runs(study: Study) -> dict[str, dict]:
    """For each algorithm of a study the settings of its first stage."""
    runs: dict[str, dict] = {}
    for name in study.of_kind("rl"):
        settings = study.resolved(name, study.seeds_of(name)[0])
        runs.setdefault(settings["algorithm"], settings)
    return runs


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("describe", "memory", "bench"):
        made = commands.add_parser(command, allow_abbrev=False)
        made.add_argument("study", metavar="STUDY", help="study file")
        made.add_argument("stage", metavar="STAGE", help="one of its RL stages")
        if command == "memory":
            made.add_argument("--prompt-tokens", type=int, metavar="N", help="length of the prompts")
    commands.add_parser("schema")
    args, rest = parser.parse_known_args()
    if rest and args.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args, rest


def main() -> None:
    args, rest = arguments()
    try:
        if args.command == "schema":
            print(write())
        elif args.command == "bench":
            study = load(args.study)
            rl_stage(study, args.stage)
            bench(study, args.stage, rest)
        elif args.command == "memory":
            print(memory(load(args.study), args.stage, args.prompt_tokens))
        else:
            print(describe(load(args.study), args.stage))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, head for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
