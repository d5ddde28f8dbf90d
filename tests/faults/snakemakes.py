"""Snakemake is killed at random moments, alone or with its stages, and given again: the study must end the same.

    python -m tests.faults.snakemakes --kills 20

The smoke study, with a state saved after every step. Compared are all weights, samples, scores and responses byte by
byte, and all figures of metrics that are not measured. A stage that was finished must not be made again. With
--megabytes the study then meets a full disk, a file system of its own (as root), and goes on once there is space.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))
from project import STUDY, copy_project, environment, results

from algos.training.stage.records import find_records, same_again

COMMAND = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", STUDY]
SAME = (
    "samples.jsonl",
    "scores.json",
    "responses.jsonl",
    "other_responses.jsonl",
    "accepted.jsonl",
    "model.safetensors",
)


def project(folder: Path) -> Path:
    tree = copy_project(folder)
    config = yaml.safe_load((tree / STUDY).read_text())
    config["saving"] = {"steps": 1, "minutes": None}
    (tree / STUDY).write_text(yaml.safe_dump(config, sort_keys=False))
    return tree


def start(tree: Path) -> subprocess.Popen:
    log = (tree / "snakemake.log").open("a")
    return subprocess.Popen(COMMAND, cwd=tree, env=environment(tree), stdout=log, stderr=log, start_new_session=True)


def outcome(tree: Path) -> dict[str, str]:
    """Digests of what the study has made, without what is measured."""
    found = {}
    for record in find_records(results(tree)):
        name = record.relative_to(results(tree)).as_posix()
        for path in (p for p in record.rglob("*") if p.name in SAME):
            found[path.relative_to(results(tree)).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = (record / "metrics.jsonl").read_text().splitlines()
        found[f"{name}/metrics.jsonl"] = json.dumps([same_again(json.loads(line)) for line in lines])
    return found


def finished(tree: Path) -> dict[Path, float]:
    """The records of finished stages, and when each was finished."""
    facts = {record: json.loads((record / "run.json").read_text() or "{}") for record in find_records(results(tree))}
    return {record: f["finished"] for record, f in facts.items() if f.get("status") == "finished"}


def kills(tree: Path, count: int, seconds: float, rng: random.Random) -> list[str]:
    """Kill Snakemake so many times while it makes the study, which takes so many seconds; what went wrong."""
    wrong = []
    for number in range(count):
        process = start(tree)
        with_stages = rng.random() < 0.5
        try:
            process.wait(timeout=rng.uniform(4, 4 + 1.5 * seconds / count))
            break  # the study is finished
        except subprocess.TimeoutExpired:
            pass
        before = finished(tree)
        if with_stages:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        time.sleep(rng.uniform(0, 1))
        print(f"kill {number + 1}, {'with its stages' if with_stages else 'alone'}: {len(before)} finished", flush=True)
        again = finished(tree)
        wrong += [f"{record.name} is gone after kill {number + 1}" for record in before if record not in again]
    status = start(tree).wait()
    wrong += [] if status == 0 else [f"the last run ended with {status}"]
    return wrong


def full_disk(tree: Path, whole: dict[str, str], megabytes: int) -> list[str]:
    """The same study on a disk that is too small, then on one that is not."""
    place = tree / "results"
    shutil.rmtree(place)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=True)
    try:
        (tree / "snakemake.log").unlink()
        status = start(tree).wait()
        said = (tree / "snakemake.log").read_text()
        wrong = [] if status else ["the study finished on a full disk"]
        wrong += [] if "is full: free some space" in said else ["nothing says that the disk is full"]
        before = finished(tree)
        subprocess.run(["mount", "-o", "remount,size=8g", str(place)], check=True)
        wrong += [f"with space again it ended with {status}"] if (status := start(tree).wait()) else []
        after = finished(tree)
        wrong += [f"{record} was made again" for record, time in before.items() if after[record] != time]
        print(f"full disk: {len(before)} stages were finished when it was full, {len(after)} in the end", flush=True)
        return wrong + [f"full disk: {name} differs" for name, value in outcome(tree).items() if whole[name] != value]
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # the mirror into MLflow may still look at it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=0, help="size of the disk that is too small; 0: not tried")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.time()
        undisturbed = project(Path(scratch) / "undisturbed")
        if status := start(undisturbed).wait():
            raise SystemExit(
                f"undisturbed it ended with {status}: {(undisturbed / 'snakemake.log').read_text()[-3000:]}"
            )
        seconds, whole = time.time() - began, outcome(undisturbed)
        print(f"undisturbed: {len(whole)} files in {seconds:.0f} s", flush=True)
        tree = project(Path(scratch) / "killed")
        wrong = kills(tree, args.kills, seconds, random.Random(args.seed))
        found = outcome(tree)
        wrong += [f"{name} differs" for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
        print("\n".join(wrong) or f"kills: all {len(whole)} files are the same", flush=True)
        if args.megabytes:
            wrong += full_disk(tree, whole, args.megabytes)
    print("\n".join(wrong) or "nothing is wrong")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
