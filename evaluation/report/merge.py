"""Join results folders of one study, made on several machines, into a new one with a report of all.

By hand: python -m evaluation.report merge results/here results/there --out results/both

Each folder is a finished study with a report: the stages and seeds of the study file that its machine was given.
Checkpoints are not copied, as the report needs none.
"""

import argparse
import hashlib
import re
import shutil
from pathlib import Path

import pandas as pd

from algos.pieces.settings import SettingsError, refusals
from evaluation.collect import finished_record, read_json, record_folders
from evaluation.findings import record_keys
from evaluation.pairs import differing, say
from evaluation.report.page import write
from evaluation.tasks.files import read_jsonl

SAME = ("study", "task", "samples", "margin", "seed")  # of study.json, in all folders
NOT_A_RESULT = re.compile(r"run\.json|.*\.(log|tsv)")  # files that hold times, and differ between two equal runs
MEASURED = re.compile(r".*(seconds|per_second|bytes).*")  # columns of metrics.jsonl that differ between two equal runs


def merge(folders: list[Path], out: Path) -> dict:
    """Write the joined study into `out`; returns its study.json. Raises SettingsError before anything is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already; name a new folder.")
    studies = {folder: read_json(folder / "report" / "study.json") for folder in folders}
    study = joined(studies)
    runs: dict[str, Path] = {}
    for folder, part in studies.items():
        check_settings(folder, part, folders[0], studies)
        for key in record_keys(folder, part):
            finished_record(folder / key)
            if key in runs:
                check_equal(key, runs[key], folder / key)
            runs.setdefault(key, folder / key)
    for key, run in runs.items():
        (out / key).mkdir(parents=True, exist_ok=True)
        for file in run.iterdir():
            if file.is_file():
                shutil.copy2(file, out / key)
    for folder, part in studies.items():
        for name in (name for name, facts in part["stages"].items() if facts.get("tuned")):
            choice = Path("stages") / name / "tuning.json"  # every folder's chose the same: check_settings saw to it
            if not (out / choice).exists():
                shutil.copy2(folder / choice, out / choice)
    write(out, study, out / "report")
    return study


def joined(studies: dict[Path, dict]) -> dict:
    """The study of all stages and seeds; the first folder's order comes first."""
    (first, study), *others = studies.items()
    stages = {name: dict(facts) for name, facts in study["stages"].items()}
    models = list(study["models"])
    for folder, other in others:
        for key in SAME:
            if other[key] != study[key]:
                raise SettingsError(
                    f"{first} and {folder} are not one study: {key} is {study[key]!r} in the first and {other[key]!r} "
                    "in the second."
                )
        for name, facts in other["stages"].items():
            known = stages.setdefault(name, dict(facts))
            found = [gap for gap in differing(known, facts) if gap[0] != "seeds"]
            if found:
                raise SettingsError(f"stage {name} is not the same in {first} and {folder}: {say(found)}.")
            known["seeds"] = sorted({*known["seeds"], *facts["seeds"]})
        models += [name for name in other["models"] if name not in models]
    return {**study, "models": models, "stages": stages}


def check_settings(folder: Path, study: dict, first: Path, studies: dict[Path, dict]) -> None:
    """Refuse stages and evaluations whose settings differ from those of an earlier folder."""
    for name, facts in study["stages"].items():
        for earlier, part in studies.items():
            if earlier == folder:
                break
            if name not in part["stages"]:
                continue
            here, there = (record_folders(f, name, s) for f, s in ((folder, facts), (earlier, part["stages"][name])))
            for place, kind in ((0, "stage"), (1, "evaluation of stage")):
                if place and not facts["evaluated"]:
                    continue
                mine, others = (without_seed(read_json(found[0][place] / "run.json")) for found in (here, there))
                gaps = list(differing(others, mine))
                if gaps:
                    raise SettingsError(f"{kind} {name} has other settings in {folder} than in {earlier}: {say(gaps)}.")


def without_seed(record: dict) -> dict:
    return {key: value for key, value in record["settings"].items() if key != "seed"}


def check_equal(key: str, one: Path, other: Path) -> None:
    """Refuse two runs of one stage and seed whose results differ. Times may differ."""
    differ = [name for name in common_files(one, other) if not same_content(one / name, other / name)]
    if differ:
        raise SettingsError(
            f"{key} was run twice with different results, in {one} and {other} ({', '.join(differ)}). A study has one "
            "run of each stage and seed: run it on one machine, and copy its folder to the other before the stages "
            "that start from it."
        )


def common_files(one: Path, other: Path) -> list[str]:
    names = (path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file())
    return [str(name) for name in names if (other / name).is_file() and not NOT_A_RESULT.fullmatch(name.name)]


def same_content(one: Path, other: Path) -> bool:
    if one.name == "metrics.jsonl":
        return results_of(one).equals(results_of(other))
    return digest(one) == digest(other)


def results_of(path: Path) -> pd.DataFrame:
    table = pd.DataFrame(read_jsonl(path))
    return table[[name for name in table if not MEASURED.fullmatch(str(name))]]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report merge", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS", help="results folders of the study")
    parser.add_argument("--out", required=True, type=Path, help="a new results folder")
    args = parser.parse_args(words)
    with refusals():
        merge(args.folders, args.out)
    print(args.out / "report" / "report.html")
    return 0
