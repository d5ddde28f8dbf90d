"""python -m algos list                          all algorithms and presets, each with its idea and its source
python -m algos describe NAME                 an algorithm's equation and resolved hyperparameters
python -m pipelines describe STUDY STAGE      the same for a stage of a study
"""

import argparse
import os
import sys

from algos import ALGORITHMS
from algos.describe import page
from algos.pieces.settings import SettingsError, one_of


def list_algorithms() -> str:
    width = max(map(len, ALGORITHMS))
    lines = []
    for name, algorithm in ALGORITHMS.items():
        lines += [f"{name:<{width}}  {algorithm.idea}", f"{'':<{width}}  {algorithm.source}"]
    return "\n".join(lines)


def describe(name: str) -> str:
    """The page of an algorithm."""
    one_of(name, ALGORITHMS, "NAME")
    return page(name, ALGORITHMS[name], ALGORITHMS)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m algos", description="The algorithms, and their equations.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all algorithms and presets, each with its idea and its source")
    one = commands.add_parser("describe", help="an algorithm's equation and resolved hyperparameters")
    one.add_argument("name")
    args = parser.parse_args()
    try:
        print(list_algorithms() if args.command == "list" else describe(args.name))
        sys.stdout.flush()
    except BrokenPipeError:  # the reading command, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
