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
from collections.abc import Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from algos.pieces.settings import SettingsError, from_dict, refusals
from algos.training.config import RunConfig
from algos.training.models.config import ModelConfig
from algos.training.update.needs import PARTS
from evaluation.memory import closed_form as closed
from evaluation.memory.check import check
from evaluation.memory.plan import CHOICES, Plan
from evaluation.memory.text import report, settings_report, worked_table
from evaluation.options import read_json

PLAN = {field.name for field in fields(Plan)}
USED = {  # by what is asked for: the options that it uses
    "check": {"out"},
    "settings": {"model", "prompt_tokens", "freeze_backbone"},
    "figure": {*PLAN, "out"},
    "model": PLAN,
}


PROG = "python -m evaluation.memory"


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    description, examples = __doc__.replace(PROG, prog).split("\n\n", 1)
    made = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"Examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # so that only the options that are given have a value
    )
    made.add_argument("--model", help=f"{', '.join(closed.SHAPES)}, a folder, a hub id, or a size such as 7B")
    for field in fields(Plan):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if field.name == "model":
            continue
        if isinstance(default, bool):
            made.add_argument(flag, action="store_true")
        elif field.name == "offload":
            made.add_argument(flag, nargs="*", metavar="WHAT", help=", ".join(PARTS))
        elif isinstance(default, int) or field.name in ("lora_rank", "critic_layers"):
            made.add_argument(flag, type=int, metavar="N", help=f"default: {default or 'off'}")
        else:
            names = CHOICES.get(field.name, ())
            made.add_argument(flag, help=f"{', '.join(names)}{'; ' if names else ''}default: {default}")
    made.add_argument("--settings", metavar="JSON", help="settings of a run, as JSON or the name of a file of it")
    made.add_argument("--check", action="store_true", help="measure small configurations beside their predictions")
    made.add_argument("--figure", action="store_true", help="draw PPO and GRPO for the model")
    made.add_argument("--out", metavar="DIR", help="for --check and --figure; default: results/memory")
    return made


def refuse_unused(given: dict) -> None:
    """Refuse options that have no effect on what is asked for."""
    asked = next((name for name in USED if name in given), "")
    used = USED.get(asked, set())
    unused = flags(given.keys() - used - {asked})
    if unused and not asked:
        raise SettingsError(f"{unused} would have no effect without --model.")
    if unused:
        raise SettingsError(f"{unused} would have no effect beside --{asked}, which takes {flags(used - {asked})}.")


def flags(names: Set[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))


def of_settings(given: dict) -> str:
    """The report of --settings, on --model."""
    if "model" not in given:
        raise SettingsError("--settings needs --model: a named shape, a folder, a hub id, or a shape as JSON.")
    model = given["model"]
    if model.lstrip().startswith("{"):
        model = from_dict(ModelConfig, read_json(model, "--model"), "--model")
    run = from_dict(RunConfig, read_json(given["settings"], "--settings"), "--settings")
    try:
        return settings_report(run, model, given.get("prompt_tokens"), "freeze_backbone" in given)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def answer(given: dict, out: Path) -> str:
    """The text that the given options ask for."""
    if "settings" in given:
        return of_settings(given)
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n in PLAN}
    plan = Plan(**values)
    if "figure" in given:
        from evaluation.memory.figure import draw  # matplotlib takes a second to import

        return draw(plan, out)
    return report(plan) if "model" in given else worked_table()


def main(words: list[str] | None = None, prog: str = PROG) -> None:
    """words: those of the command line, or else the process's own; prog: how the command is called there."""
    given = vars(parser(prog).parse_args(words))
    out = Path(given.get("out", "results/memory"))
    with refusals(OSError):
        refuse_unused(given)
        if "check" in given:
            check(out)
        else:
            print(answer(given, out))


if __name__ == "__main__":
    main()
