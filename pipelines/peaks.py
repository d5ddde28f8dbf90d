"""The predicted peak of every RL stage of some studies, on the GPU that each study is planned for, as a table.

    python -m pipelines.peaks pipelines/studies/gsm8k_0.5b.yaml=24 pipelines/studies/gsm8k_1.5b.yaml=80

After each study stand the gigabytes (1e9 bytes) of its GPU. Prompts are as long as the stage admits. TRL's trainer is
not predicted. A model named by its hub id comes from the hub, or from the shapes that `evaluation.memory` knows.
"""

import argparse
from pathlib import Path

import pandas as pd

from algos.pieces.settings import SettingsError, refusals
from evaluation.memory.closed_form import GB, config_of
from evaluation.memory.plan import peak_with_vllm, settings_phases
from pipelines.stage import memory_arguments
from pipelines.study import Study, load


def peaks(study: Study, gigabytes: float) -> list[dict]:
    """A row for each RL stage of this project's trainer."""
    rows = []
    for name in study.of_kind("rl"):
        run = study.parsed(name, study.seeds_of(name)[0])
        if run.trainer == "own":
            model, on_reference = memory_arguments(study, name)
            phases = settings_phases(run, config_of(model), head_on_reference=on_reference)
            peak = peak_with_vllm(run, phases, gigabytes * GB)
            rows.append({"study": study.name, "gpu_gigabytes": gigabytes, "stage": name, "peak_gigabytes": peak / GB})
    return rows


def planned(word: str) -> tuple[str, float]:
    """FILE=GIGABYTES as both. Raises SettingsError where it is not that."""
    path, _, size = word.rpartition("=")
    try:
        return path, float(size)
    except ValueError:
        raise SettingsError(f"write FILE=GIGABYTES, such as study.yaml=24, got {word}.") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", metavar="FILE=GIGABYTES")
    parser.add_argument("--out", default="results/memory", metavar="DIR", help="default: %(default)s")
    args = parser.parse_args()
    with refusals(OSError):
        rows = [row for path, size in map(planned, args.studies) for row in peaks(load(path), size)]
        table = pd.DataFrame(rows)
        table["largest"] = table.groupby("study")["peak_gigabytes"].transform("max") == table["peak_gigabytes"]
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "studies.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
