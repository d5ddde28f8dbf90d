"""Memory and file handles over 500 steps of ppo, grpo and gspo: nothing may grow.

    python -m tests.faults.flat --steps 500

The resident memory and the open files of the stage's process, after each line of metrics. What counts is the growth
from a fifth of the run, when allocators have what they need, to its end. The state is saved every 50 steps. In bfloat16
oneDNN keeps a primitive for every shape of batch that it has seen, up to 1,024 of them: here up to 8.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from pathlib import Path

from algos.training import train
from algos.training.stage.record import Record, main_guard
from tests.faults.stages import make_inputs, settings_of, warm_up, words

ALGORITHMS = ("ppo", "grpo", "gspo bfloat16")
MOST_BYTES, MOST_FILES = 8 << 20, 0  # growth that is none


def resident() -> int:
    """Bytes of this process in memory now."""
    return 1024 * int(re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def stage(case: str, steps: int, inputs: Path, out: Path, seen: Path) -> None:
    """A run of so many steps, in this process; its memory and files after each line go to `seen`."""
    log = Record.log

    def watched(record: Record, step: int, metrics: dict) -> None:
        log(record, step, metrics)
        with seen.open("a") as file:
            file.write(f"{resident()} {len(os.listdir('/proc/self/fd'))}\n")

    Record.log = watched
    settings = {**settings_of(case), "steps": steps, "sample_every": 50}
    saving = {"steps": 50, "minutes": None}
    sys.argv = ["train", "--settings", json.dumps(settings), "--saving", json.dumps(saving), "--threads", "1"]
    sys.argv += ["--out", str(out), *words("rl", inputs)]
    sys.stdout = sys.stderr = (out.parent / f"{out.name}.log").open("w", buffering=1)
    main_guard(train.main)


def measure(case: str, steps: int, folder: Path) -> tuple[list[int], list[int]]:
    """Bytes and open files after each step."""
    out, seen = folder / case.replace(" ", "_"), folder / "seen"
    seen.write_text("")
    process = multiprocessing.get_context("fork").Process(target=stage, args=(case, steps, folder, out, seen))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit((folder / f"{out.name}.log").read_text())
    rows = [[int(word) for word in line.split()] for line in seen.read_text().splitlines()]
    return [row[0] for row in rows], [row[1] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8"
    warm_up()
    wrong = False
    print(f"{'run':<16}{'steps':>7}{'MB at a fifth':>15}{'MB at the end':>15}{'growth, MB':>12}{'files':>12}")
    with tempfile.TemporaryDirectory() as scratch:
        make_inputs(Path(scratch))
        for case in ALGORITHMS:
            memory, files = measure(case, args.steps, Path(scratch))
            early = args.steps // 5
            growth, more = memory[-1] - memory[early], files[-1] - files[early]
            wrong |= growth > MOST_BYTES or more > MOST_FILES
            sizes = "".join(f"{size / 1e6:>15.1f}" for size in (memory[early], memory[-1]))
            print(
                f"{case:<16}{len(memory):>7}{sizes}{growth / 1e6:>12.1f}{f'{files[early]} -> {files[-1]}':>12}",
                flush=True,
            )
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
