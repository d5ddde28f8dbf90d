"""120 malformed studies, data files, checkpoints, tokenizers and command lines: each is refused in its one sentence.

    python -m tests.faults.bad

A right answer is exit status 2 and one sentence with the place, the value and the fix; a traceback is none.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.bad import data, models, studies, words
from tests.faults.bad.cases import Case

CASES: list[Case] = [*studies.CASES, *data.CASES, *models.CASES, *words.CASES]


def faults(cases: list[Case]) -> list[str]:
    """What is wrong with the answers to these inputs."""
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            if fault := case.fault(Path(folder)):
                found.append(f"{case.what}: {fault}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="only the inputs that are called so")
    args = parser.parse_args()
    cases = [case for case in CASES if all(word in case.what for word in args.words)]
    start = time.monotonic()
    found = faults(cases)
    print(*found, sep="\n")
    seconds = time.monotonic() - start
    print(f"{len(cases)} bad inputs: {len(cases) - len(found)} right sentences, in {seconds:.0f} s")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
