"""Memory of a run, predicted from its settings alone: by model, component and phase; and what fits on a GPU.

    python -m evaluation.memory                                             the worked table of 7 B models
    python -m evaluation.memory --model qwen2.5-0.5b --algorithm ppo        a named shape, a folder or a hub id
    python -m evaluation.memory --model 7B --precision mixed                a bare size: model states only
    python -m evaluation.memory --model DIR --settings FILE.json            a run's own settings, JSON or a file of it
    python -m evaluation.memory --check                                     predictions beside measurements
    python -m evaluation.memory --model qwen2.5-7b --figure                 PPO and GRPO as stacked bars

--settings is what algos.training.train takes; --model may then be JSON too, the shape of a model that a study builds.
GB is 1e9 bytes.
"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from algos.pieces.settings import SettingsError, from_dict
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.update.needs import PARTS
from evaluation.memory import closed_form as closed
from evaluation.memory.check import check
from evaluation.memory.options import read_json
from evaluation.memory.plan import CHOICES, Plan
from evaluation.memory.text import report, settings_report, worked_table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m evaluation.memory",
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", help=f"{', '.join(closed.SHAPES)}, a folder, a hub id, or a size such as 7B")
    for field in fields(Plan):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if field.name == "model":
            continue
        if isinstance(default, bool):
            made.add_argument(flag, action="store_true")
        elif field.name == "offload":
            made.add_argument(flag, nargs="*", default=(), metavar="WHAT", help=", ".join(PARTS))
        elif isinstance(default, int) or field.name in ("lora_rank", "critic_layers"):
            made.add_argument(flag, type=int, default=default, metavar="N", help=f"default: {default or 'off'}")
        else:
            names = CHOICES.get(field.name, ())
            made.add_argument(
                flag, default=default, help=f"{', '.join(names)}{'; ' if names else ''}default: {default}"
            )
    made.add_argument("--settings", metavar="JSON", help="settings of a run, as JSON or the name of a file of it")
    made.add_argument("--check", action="store_true", help="measure small configurations beside their predictions")
    made.add_argument("--figure", action="store_true", help="draw PPO and GRPO for the model")
    made.add_argument("--out", default="results/memory", metavar="DIR", help="for --check and --figure")
    return made


def of_settings(args: argparse.Namespace, prompt_tokens: int | None) -> str:
    """The report of --settings, on --model."""
    if args.model is None:
        raise SettingsError("--settings needs --model: a named shape, a folder, a hub id, or a shape as JSON.")
    model = args.model
    if model.lstrip().startswith("{"):
        model = from_dict(ModelConfig, read_json(model, "--model"), "--model")
    run = from_dict(RunConfig, read_json(args.settings, "--settings"), "--settings")
    try:
        return settings_report(run, model, prompt_tokens, args.freeze_backbone)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def answer(args: argparse.Namespace) -> str:
    """The text that the options ask for."""
    if args.settings:
        given = any(word.startswith("--prompt-tokens") for word in sys.argv)
        return of_settings(args, args.prompt_tokens if given else None)
    plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan) if f.name not in ("model", "offload")})
    plan = replace(plan, offload=tuple(args.offload), **({"model": args.model} if args.model else {}))
    if args.figure:
        from evaluation.memory.figure import draw  # matplotlib takes a second to import

        return draw(plan, Path(args.out))
    return worked_table() if args.model is None else report(plan)


def main() -> None:
    args = parser().parse_args()
    try:
        if args.check:
            check(Path(args.out))
        else:
            print(answer(args))
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
