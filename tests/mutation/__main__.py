"""Mutation testing of the mathematics in algos/: python tests/mutation [--list] [--only PATTERN] [--jobs N]

Each mutant is one small mistake: a sign, a bound, a mask, a divisor, a comparison, a default. A mutant is killed if a
test fails with it. A mutant that survives is a mistake that no test would notice. Torch is imported once. Every mutant
is a forked process that hands out the mutated module in place of the file and runs pytest until the first failure, on a
copy of the tree taken at the start. This is a command and not a test: pytest does not collect it.
"""

import argparse
import fnmatch
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mutants import ROOT, Mutant, equivalent, mutants
from processes import OWN_TESTS, TESTS, Outcome, baseline, run, test_file


def summary(done: list[tuple[Mutant, Outcome]], excused: list[Mutant], seconds: dict[str, float], took: float) -> str:
    """The result as markdown."""
    survivors = [mutant for mutant, outcome in done if outcome.passed]
    killed = len(done) - len(survivors)
    kinds = Counter(mutant.kind for mutant, _ in done)
    alive = Counter(mutant.kind for mutant in survivors)
    lines = [
        f"{killed} of {len(done)} mutants killed ({killed / max(len(done), 1):.1%}), {len(survivors)} survived, "
        f"{len(excused)} equivalent and not run; {took:.0f} s.",
        f"Tests: {', '.join(test_file(name) for name in seconds)}.",
        "",
        "| kind | mutants | survived |",
        "|---|---|---|",
        *(f"| {kind} | {count} | {alive[kind]} |" for kind, count in sorted(kinds.items())),
        "",
    ]
    for mutant in survivors:
        lines += [f"{mutant.name}", "```diff", mutant.diff, "```"]
    if excused:
        lines += ["", "Equivalent:", *(f"- {m.name}: `{m.before}` -> `{m.after}`: {equivalent(m)}" for m in excused)]
    return "\n".join(lines)


def written(path: Path, done: list[tuple[Mutant, Outcome]], excused: list[Mutant], text: str) -> None:
    if path.suffix != ".json":
        path.write_text(text + "\n")
        return
    rows = [(mutant, "survived" if o.passed else "killed", o.by, o.seconds) for mutant, o in done]
    rows += [(mutant, "equivalent", equivalent(mutant), 0.0) for mutant in excused]
    names = ("file", "line", "kind", "before", "after")
    path.write_text(
        json.dumps(
            [{n: getattr(m, n) for n in names} | {"result": r, "by": by, "seconds": s} for m, r, by, s in rows],
            indent=1,
        )
    )


def tested(args) -> tuple[list[tuple[Mutant, Outcome]], list[Mutant], str]:
    """In a copy of the tree: what became of the chosen mutants, those that are equivalent, and the summary."""
    import pytest  # noqa: F401  before any fork, like torch
    import torch

    torch.set_num_threads(1)
    start = time.monotonic()
    chosen, excused = selected(args, Path("."))
    own = {name for mutant in chosen for name in OWN_TESTS.get(Path(mutant.file).stem, [])}
    seconds = baseline([*TESTS, *sorted(own)])
    print(f"tests without a mutant: {sum(seconds.values()):.0f} s; {len(chosen)} mutants", flush=True)
    done = run(chosen, seconds, args.jobs)
    return done, excused, summary(done, excused, seconds, time.monotonic() - start)


def selected(args, root: Path) -> tuple[list[Mutant], list[Mutant]]:
    """Mutants to run, and equivalent ones."""
    chosen = [mutant for mutant in mutants(root) if fnmatch.fnmatch(mutant.name, args.only)]
    if not chosen:
        raise SystemExit(f"--only {args.only}: no mutant has such a name")
    return [m for m in chosen if not equivalent(m)][:: args.every], [m for m in chosen if equivalent(m)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Mutation testing of the mathematics in algos/*.py.", allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument(
        "--only", default="*", help="glob on 'algos/pieces/kl.py:30 sign', such as '*kl.py*' or '*sign'"
    )
    parser.add_argument("--every", type=int, default=1, help="only every Nth mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, nargs="*", default=[], help="result files, .json or .md")
    args = parser.parse_args()
    if args.list:
        chosen, excused = selected(args, ROOT)
        for mutant in chosen:
            print(f"{mutant.name}\n{mutant.diff}")
        print(f"{len(chosen)} mutants, {len(excused)} equivalent")
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    outputs = [path.resolve() for path in args.out]
    with tempfile.TemporaryDirectory() as copied:
        for name in ("algos", "tests", "evaluation", "pipelines"):
            shutil.copytree(ROOT / name, Path(copied) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copied)
        os.chdir(copied)
        sys.path[:] = [copied] + [
            path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")
        ]
        done, excused, text = tested(args)
        os.chdir(ROOT)
    print(text)
    for path in outputs:
        written(path, done, excused, text)
    raise SystemExit(any(outcome.passed for _, outcome in done))


if __name__ == "__main__":
    main()
