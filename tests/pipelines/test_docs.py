"""The documentation says what the code does: equations, sources and links are compared with it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from algos import ALGORITHMS
from algos.describe import equation
from evaluation.memory.text import worked_table
from pipelines.kinds import COMMON, KINDS, SPLITS
from pipelines.plan import StudySettings
from pipelines.study import load
from pipelines.tree import tree

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "algos" / "README.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0].strip(): part for part in PAGE.split("\n### ")[1:]}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_section_prints_its_equation_and_source(name):
    block = re.search(r"```\n(.*?)```", SECTIONS[name], re.S)[1]
    assert block == "\n".join(equation(ALGORITHMS[name], ALGORITHMS[name].defaults)) + "\n"
    assert f"- **Source**: {ALGORITHMS[name].source}" in " ".join(SECTIONS[name].split())


def test_the_page_has_no_section_of_something_else():
    assert set(SECTIONS) == set(ALGORITHMS)


FOLDERS = (".", "algos", "docs")
PAGES = [str(page.relative_to(PROJECT)) for folder in FOLDERS for page in sorted(PROJECT.glob(f"{folder}/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (PROJECT / page).read_text(encoding="utf-8"))
    assert len(links) > (5 if page.endswith("README.md") else 0)
    missing = [link for link in links if not (PROJECT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("name", ALGORITHMS)
def test_metrics_to_watch_are_names_of_metrics(name):
    """Every name in a Watch line is logged somewhere in the loop, so that a reader finds it."""
    found = re.search(r"- \*\*Watch\*\*: (.*?)\n- ", SECTIONS[name], re.S)
    if not found:  # presets share their algorithm's
        return
    sources = "".join(path.read_text(encoding="utf-8") for path in PROJECT.glob("algos/**/*.py"))
    for metric in re.findall(r"[a-z]+_[a-z_0-9]+", found[1]):
        parts = (metric, metric.removeprefix("reward_"), metric.removesuffix("_min"), metric.removesuffix("_max"))
        known = any(f'"{part}"' in sources for part in parts)
        assert known or hasattr(ALGORITHMS[name].defaults, metric), metric


def graph(study: Path) -> str:
    """The tree of a study file, without what is done of it."""
    return re.sub(r"\s+\[.*done\]", "", re.sub(r", \d+ of them done", "", tree(load(study))))


GRAPHS = {name: f"studies/{name}" for name in ("ladder", "r1", "ablations", "hacking", "capability")}
GRAPHS |= {"default": "config", "optimizers-memory": "studies/optimizers_memory"}


@pytest.mark.parametrize("page, study", GRAPHS.items())
def test_a_page_of_results_shows_the_graph_of_its_study(page, study):
    assert graph(PROJECT / "pipelines" / f"{study}.yaml") in (PROJECT / "docs" / f"{page}.md").read_text(
        encoding="utf-8"
    )


def test_the_page_on_memory_shows_the_worked_table():
    assert worked_table() in (PROJECT / "docs" / "optimizers-memory.md").read_text(encoding="utf-8")


def test_the_chain_of_the_users_page_is_a_study_with_the_tree_shown(tmp_path):
    text = (PROJECT / "docs" / "your-own-chain.md").read_text(encoding="utf-8")
    study = tmp_path / "mine.yaml"
    study.write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1], encoding="utf-8")
    assert graph(study) in text


def test_the_readmes_own_things_are_those_of_the_page_that_a_test_executes():
    page = (PROJECT / "docs" / "your-own.md").read_text(encoding="utf-8")
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"```python\n(.*?)```", readme, re.S)[1] in page
    task = re.search(r"```yaml\n(task:.*?)```", readme, re.S)[1]
    lines = [" ".join(line.partition("  #")[0].split()) for line in task.splitlines()]
    known = {" ".join(line.split()) for line in page.splitlines()} | {"models: {base: my/model}"}
    assert lines and set(lines) <= known


def test_the_readmes_graph_is_a_study(tmp_path):
    head = (PROJECT / "pipelines" / "config.yaml").read_text(encoding="utf-8").split("\nstages:\n")[0]
    stages = re.search(r"```yaml\n(stages:.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "study.yaml").write_text(f"{head}\n{stages}", encoding="utf-8")
    study = load(tmp_path / "study.yaml")
    assert study.warnings == [] and study.stages["trl_zero"].like == "zero"


def test_the_page_on_study_files_names_every_kind_edge_and_key():
    page = (PROJECT / "docs" / "study-files.md").read_text(encoding="utf-8")
    keys = [f.name for f in fields(StudySettings)] + [edge for kind in KINDS.values() for edge in kind.edges]
    assert [key for key in [*keys, *KINDS, *COMMON, *SPLITS] if f"`{key}" not in page] == []
