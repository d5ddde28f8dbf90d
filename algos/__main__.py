"""python -m algos list                          all algorithms and presets, each with its idea and its source
python -m algos describe NAME                 an algorithm's equation and resolved hyperparameters
python -m algos check NAME                    the conformance tests, on an algorithm or on a file of your own
python -m pipelines describe STUDY STAGE      the same for a stage of a study
"""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from algos import ALGORITHMS, check_name
from algos.describe import page
from algos.pieces.settings import SettingsError, refusals


def list_algorithms() -> str:
    width = max(map(len, ALGORITHMS))
    lines = []
    for name, algorithm in ALGORITHMS.items():
        lines += [f"{name:<{width}}  {algorithm.idea}", f"{'':<{width}}  {algorithm.source}"]
    return "\n".join(lines)


def describe(name: str) -> str:
    """The page of an algorithm."""
    check_name(name, "NAME")
    return page(name, ALGORITHMS[name], ALGORITHMS)


def check(name: str) -> int:
    """Run the conformance tests on an algorithm; returns pytest's exit status."""
    check_name(name, "NAME")
    tests = Path(__file__).parents[1] / "tests" / "conformance"
    if find_spec("pytest") is None or not tests.is_dir():
        raise SettingsError("the conformance tests need a clone of the project and pip install -e '.[test]'.")
    pieces = f"--ignore={tests / 'test_conformance_combinations.py'}"  # of the pieces, whatever the algorithm
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pieces, str(tests)],
        env={**os.environ, "CONFORMANCE_OF": name},
        check=False,
    ).returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m algos", description="The algorithms, and their equations.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all algorithms and presets, each with its idea and its source")
    one = commands.add_parser("describe", help="an algorithm's equation and resolved hyperparameters")
    one.add_argument("name")
    checked = commands.add_parser("check", help="run the conformance tests on one algorithm")
    checked.add_argument("name", help="of the table, or the path of a file that defines ALGORITHM")
    args = parser.parse_args()
    with refusals():
        if args.command == "check":
            raise SystemExit(check(args.name))
        print(list_algorithms() if args.command == "list" else describe(args.name))


if __name__ == "__main__":
    main()
