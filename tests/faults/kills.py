"""Stages of every kind are killed at random moments and run again: each must end as if it had never been killed.

    python -m tests.faults.kills --kills 100

Compared are weights, samples and everything else byte by byte, and all figures of metrics.jsonl that are not measured.
A third of the stages is killed twice.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.stages import CASES, differences, finish, make_inputs, result, run, warm_up

COLUMNS = ("kills", "went on", "identical")


def trials(folder: Path, names: list[str], kills: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """Counts by case: kills, those whose stage went on from a saved state, identical finishes. And what went wrong."""
    rng, wrong = random.Random(seed), []
    counts = {column: Counter() for column in COLUMNS}
    moments: dict[str, int] = {}
    expected: dict[str, dict] = {}
    number = 0
    while counts["kills"].total() < kills:
        name = names[number % len(names)]
        if name not in moments:
            status, moments[name] = run(name, folder, folder / "whole" / name.replace(" ", "_"))
            if status:
                raise SystemExit(f"{name}: {(folder / 'whole' / (name.replace(' ', '_') + '.log')).read_text()}")
            expected[name] = result(folder / "whole" / name.replace(" ", "_"))
        out = folder / "killed" / str(number)
        times = 2 if rng.random() < 1 / 3 else 1
        count = finish(name, folder, out, lambda most: rng.randint(1, most), moments[name], times)
        found = differences(expected[name], result(out))
        counts["kills"][name] += count
        counts["went on"][name] += len(json.loads((out / "run.json").read_text()).get("resumed", []))
        counts["identical"][name] += 0 if found else count
        wrong += [f"{name}, stage {number}: {', '.join(found)} differ"] if found else []
        print(f"{counts['kills'].total()} kills, {len(wrong)} stages differ", flush=True)
        number += 1
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    args = parser.parse_args()
    warm_up()
    start = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        make_inputs(Path(scratch))
        counts, wrong = trials(Path(scratch), args.cases, args.kills, args.seed)
    print(f"{'stage':<26}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name in args.cases:
        print(f"{name:<26}" + "".join(f"{counts[column][name]:>11}" for column in COLUMNS))
    totals = "".join(f"{counts[column].total():>11}" for column in COLUMNS)
    print(f"{'all':<26}{totals}   in {time.time() - start:.0f} s")
    print("\n".join(wrong), end="")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
