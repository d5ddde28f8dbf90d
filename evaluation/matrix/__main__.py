"""Every kind of stage on a tiny random model of every public architecture: matrix.csv, one row a model.

    python -m evaluation.matrix                       all models; a quarter of an hour on one core
    python -m evaluation.matrix qwen3_moe mamba       these alone; the other rows of the file stay
    python -m evaluation.matrix --out results/published/models

A cell is "equal" with the largest difference, or "refused" with its sentence; cells.py says what is compared. The
command fails if a cell is neither.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from algos.pieces.settings import SettingsError, one_of
from evaluation.matrix.architectures import ARCHITECTURES, imported, tokenizer
from evaluation.matrix.cells import STAGES, Tried

TOLERANCE = 2e-3  # of float32, through layers whose random weights are larger than those of real models
RESULTS = Path("results/models")


def row(name: str, stages: dict) -> dict[str, str]:
    """The cells of a model."""
    with TemporaryDirectory() as folder:
        try:
            tried = Tried(imported(name, tokenizer(), Path(folder)), Path(folder))
        except SettingsError as error:
            return {"model": name, "import": f"refused: {error}"} | dict.fromkeys(stages, "refused at import")
        return {"model": name, "import": "works"} | {stage: cell(tried, run) for stage, run in stages.items()}


def cell(tried: Tried, run) -> str:
    """What came of one kind of stage."""
    try:
        difference = run(tried)
    except SettingsError as error:
        return f"refused: {error}"
    except Exception as error:  # whatever a model's own code raises: the table says so, and the command fails
        return f"crashed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return f"{'equal' if difference <= TOLERANCE else 'unequal'}, {difference:.0e}"


def failures(table: pd.DataFrame) -> list[str]:
    """The cells that are neither equal nor refused."""
    return [
        f"{line.model}, {stage}: {line[stage]}"
        for _, line in table.iterrows()
        for stage in table.columns[2:]
        if not str(line[stage]).startswith(("equal", "refused"))
    ]


def write(rows: list[dict], path: Path) -> pd.DataFrame:
    """The rows in the file, in the order of the architectures; what it holds of other models stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = pd.read_csv(path).to_dict("records") if path.is_file() else []
    known = {line["model"]: line for line in [*old, *rows]}
    table = pd.DataFrame([known[name] for name in ARCHITECTURES if name in known])
    table.to_csv(path, index=False)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(ARCHITECTURES))
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    args = parser.parse_args()
    for name in args.models:
        one_of(name, ARCHITECTURES, "model")
    for name in args.models or ARCHITECTURES:
        line = row(name, STAGES)
        table = write([line], args.out / "matrix.csv")
        print("\n".join(f"{name:<16}{stage:<20}{text}" for stage, text in list(line.items())[1:]), flush=True)
    if failed := failures(table):
        print("\n".join(f"error: {line}" for line in failed), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
