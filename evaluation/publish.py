"""Copy a finished study's tables and figures into results/published/<study>/, which no rule writes.

By hand: python -m evaluation.publish results/<study>
"""

import argparse
import shutil
import sys
from pathlib import Path

from algos.pieces.settings import SettingsError, refusals
from evaluation.collect import read_json
from evaluation.config import FOLDER_NAME, figures_of

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
TABLES = (".csv", ".md")  # the page holds all of them and the figures again, and is not published


def publish(results: Path, out: Path = PUBLISHED) -> list[Path]:
    """Replace the published tables of the study in `results`; returns the new files."""
    report = results / "report"
    if not (report / "report.html").is_file():
        raise SettingsError(f"{report / 'report.html'} is missing: let the study finish first.")
    study = read_json(report / "study.json")
    name, figures = study["study"], {f"{figure}.svg" for figure in figures_of(study)}
    if not FOLDER_NAME.fullmatch(name):
        raise SettingsError(f"the study is called {name!r}, which is no folder's name; rename it.")
    folder = out / name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "comparison.csv").is_file():
        raise SettingsError(f"{folder} holds files that are no study's tables; rename the study.")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [p for p in sorted(report.iterdir()) if p.suffix in TABLES or p.name in figures]
    files = [Path(shutil.copy(path, folder)) for path in wanted]
    for old in set(folder.iterdir()) - set(files):
        old.unlink()
    return files


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", type=Path, help="the study's results folder")
    args = parser.parse_args(words)
    with refusals():
        files = publish(args.results)
    if "-dirty" in (args.results / "report" / "provenance.csv").read_text(encoding="utf-8"):
        print("warning: some stages were made from files that differ from their commit (-dirty).", file=sys.stderr)
    print(f"{files[0].parent}: {len(files)} files; python -m evaluation.pages writes them into README.md and docs/")


if __name__ == "__main__":
    main()
