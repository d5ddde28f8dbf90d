"""The notebook of the published results: its code runs as it stands, and finds what it shows."""

import json
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
PROJECT = Path(__file__).parents[3]
NOTEBOOK = json.loads((PROJECT / "docs" / "results.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("folder", [PROJECT, PROJECT / "docs"])
def test_the_cells_run_in_the_project_and_beside_the_notebook(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    for code in CODE:
        exec(compile(code, "results.ipynb", "exec"), names)
    assert len(names["scores"]) == len(names["comparison"]) > 5
    assert names["scores"].loc["grpo", names["main"]] == 100 * names["comparison"].loc["grpo", "mean@8"]
    assert {"ppo", "grpo", "gspo"} <= set(names["at_budget"].index) and len(names["axes"].lines) > 3


def test_the_notebook_is_valid_and_carries_no_outputs():
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert all(cell["outputs"] == [] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
