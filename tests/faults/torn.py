"""The newest saved state of a killed stage is damaged: the one before it is used, and the stage ends the same.

python -m tests.faults.torn --trials 20
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.stages import CASES, differences, make_inputs, result, run, warm_up


def cut(state: Path, rng: random.Random) -> None:
    """A file ends early."""
    path = rng.choice(sorted(state.iterdir()))
    path.write_bytes(path.read_bytes()[: rng.randrange(max(path.stat().st_size, 1))])


def flip(state: Path, rng: random.Random) -> None:
    """A bit of a file is another one."""
    path = rng.choice([path for path in sorted(state.iterdir()) if path.stat().st_size])
    text = bytearray(path.read_bytes())
    text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    path.write_bytes(text)


def lose(state: Path, rng: random.Random) -> None:
    """A file is gone."""
    rng.choice(sorted(state.iterdir())).unlink()


def half(state: Path, rng: random.Random) -> None:
    """Half of the state's files lie under the name that a state has while it is written."""
    files = sorted(state.iterdir())
    shutil.rmtree(state.with_name("unfinished"), ignore_errors=True)  # what the kill left
    state.rename(state.with_name("unfinished"))
    for path in rng.sample(files, len(files) // 2):
        (state.with_name("unfinished") / path.name).unlink()


def empty(state: Path, rng: random.Random) -> None:
    """All files have their names and no bytes, as after a power cut on a file system that writes names first."""
    for path in state.iterdir():
        path.write_bytes(b"")


FAULTS: tuple[Callable[[Path, random.Random], None], ...] = (cut, flip, lose, half, empty)


def recovered(case: str, inputs: Path, killed: Path, expected: dict, out: Path, fault, rng: random.Random) -> list[str]:
    """What is wrong after a fault in a copy of a killed stage, run again; empty: nothing."""
    shutil.copytree(killed, out)
    newest = max(path for path in (out / "resume").iterdir() if path.name.isdigit())
    fault(newest, rng)
    status, _ = run(case, inputs, out)
    said = (out.parent / f"{out.name}.log").read_text()
    if status:
        return [said]
    if fault is not half and "is damaged" not in said:
        return ["the damage was not noticed"]
    return [
        *differences(expected, result(out)),
        *([] if "resumed" in (out / "run.json").read_text() else ["not resumed"]),
    ]


def killed_stage(case: str, inputs: Path, folder: Path) -> tuple[Path, dict]:
    """A stage that was killed late, and the result of the whole one."""
    status, moments = run(case, inputs, folder / "whole")
    assert status == 0, (folder / "whole.log").read_text()
    run(case, inputs, folder / "killed", kill_at=moments - 20)
    assert len([path for path in (folder / "killed" / "resume").iterdir() if path.name.isdigit()]) >= 2
    return folder / "killed", result(folder / "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--case", choices=CASES, default="ppo")
    args = parser.parse_args()
    warm_up()
    rng, good = random.Random(0), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_inputs(folder)
        killed, expected = killed_stage(args.case, folder, folder)
        for i in range(args.trials):
            fault = FAULTS[i % len(FAULTS)]
            wrong = recovered(args.case, folder, killed, expected, folder / f"torn{i}", fault, rng)
            print(f"{fault.__name__}: {', '.join(wrong) or 'recovered'}", flush=True)
            good += not wrong
    print(f"{good} of {args.trials} recovered")
    raise SystemExit(good < args.trials)


if __name__ == "__main__":
    main()
