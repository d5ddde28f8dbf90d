"""A seed whose reward breaks in the middle: the study goes on, and its report counts the seed."""

import json
import re
import subprocess

import pandas as pd
import pytest
import yaml
from project import PROJECT, snakemake_here
from studies import rl, sft, small

from algos.training.failure import FAILED

REWARD = """
import sys

calls = []

def fair(prompts, responses, answers, rows):
    calls.append(1)
    broken = '"seed": 1' in " ".join(sys.argv) and len(calls) > 1
    return [float("nan") if broken else float(len(text) % 3) for text in responses]
"""


def test_a_study_with_a_failed_seed_has_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    (tmp_path / "mine.py").write_text(REWARD)
    study = small(cold=sft(steps=2, seeds=[0], evaluate=False), fair=rl("cold", rewards={"mine.py:fair": 1.0}))
    study |= {
        "seeds": [0, 1],
        "study": "mine",
        "evaluation": {"samples": 1},
        "models": {"base": study["models"]["base"]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    status, said = snakemake_here(tmp_path, "results/mine/report/report.html", study="mine.yaml")
    assert status == 0, said[-3000:]
    results = tmp_path / "results" / "mine"
    facts = [json.loads((results / f"stages/fair/seed{seed}/run.json").read_text()) for seed in (0, 1)]
    assert [record["status"] for record in facts] == ["finished", "failed"]
    row = pd.read_csv(results / "report" / "comparison.csv").set_index("stage").loc["fair"]
    assert row["seeds"] == 2 and row["failed_seeds"] == 0.5
    page = (results / "report" / "report.html").read_text()
    assert "fair, seed 1: the run failed (step 1: rewards: mine.py:fair must return finite numbers" in page


@pytest.mark.parametrize("ended, passes", [(0, True), (FAILED, True), (1, False), (2, False), (130, False)])
def test_the_rule_takes_a_failed_run_for_done_and_no_other_end(ended, passes):
    rule = (PROJECT / "pipelines" / "rules" / "rl.smk").read_text()
    (clause,) = re.findall(r'"( \|\| .*)"', rule)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"(exit {ended}){clause}"], check=False)
    assert (done.returncode == 0) == passes
