"""Copy a finished study's tables and figures into results/published/<study>/, which no rule writes.

By hand: python -m evaluation.publish results/<study>
"""

import argparse
import shutil
import sys
from pathlib import Path

from algos.pieces.settings import SettingsError
from evaluation.collect import read_json

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
KINDS = (".csv", ".md", ".svg")  # the page itself holds every figure again, and is not published


def publish(results: Path, out: Path = PUBLISHED) -> list[Path]:
    """Replace the published tables of the study in `results`; returns the new files."""
    report = results / "report"
    if not (report / "report.html").is_file():
        raise SettingsError(f"{report / 'report.html'} is missing: let the study finish first.")
    name = read_json(report / "study.json")["study"]
    if Path(name).name != name:
        raise SettingsError(f"the study is called {name!r}, which is no folder's name; rename it.")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.suffix in KINDS:
            old.unlink()
    return [Path(shutil.copy(path, folder)) for path in sorted(report.iterdir()) if path.suffix in KINDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the study's results folder")
    args = parser.parse_args()
    try:
        files = publish(args.results)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if "-dirty" in (args.results / "report" / "provenance.csv").read_text(encoding="utf-8"):
        print("warning: some stages were made from files that differ from their commit (-dirty).", file=sys.stderr)
    print(f"{files[0].parent}: {len(files)} files")


if __name__ == "__main__":
    main()
