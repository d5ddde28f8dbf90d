"""python -m evaluation.report: the report of a study; and `merge` and `compare-published`, each with a --help."""

import argparse
import sys
from pathlib import Path

from algos.pieces.settings import SettingsError, refusals
from evaluation.options import read_json
from evaluation.report import merge, published, write

NEEDED = ("study", "source", "samples", "margin", "models", "stages")
COMMANDS = {"merge": merge.main, "compare-published": published.main}


def main(words: list[str] | None = None) -> None:
    """words: those of the command line, or else the process's own."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] in COMMANDS:
        raise SystemExit(COMMANDS[words[0]](words[1:]))
    parser = argparse.ArgumentParser(
        description=f"Write the report of a study from its files. Other commands: {', '.join(COMMANDS)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--study", required=True, help="the study's stages and their settings: JSON or a file of it")
    parser.add_argument("--results", required=True, type=Path, help="the study's results folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    args = parser.parse_args(words)
    with refusals():
        study = read_json(args.study, "--study")
        if missing := [key for key in NEEDED if key not in study]:
            raise SettingsError(f"--study lacks {', '.join(missing)}; report/study.json of a study has all of them.")
        write(args.results, study, args.out)


if __name__ == "__main__":
    main()
