"""The rules as Snakemake's users expect them: short, without Python, with logs, benchmarks and resources."""

import html
import re

import pytest
import yaml
from project import PROJECT, snakemake
from snakemake.cli import get_argument_parser

RULES = {path.name: path.read_text() for path in sorted((PROJECT / "pipelines" / "rules").glob("*.smk"))}
SNAKEFILE = (PROJECT / "Snakefile").read_text()
RULE = re.compile(r"^rule (\w+):\n(?:    .*\n|\n(?=    ))+", re.M)
EACH = {found[1]: found[0] for text in RULES.values() for found in RULE.finditer(text)}


def test_the_snakefile_is_on_one_screen():
    assert SNAKEFILE.count("\n") <= 48 and max(map(len, SNAKEFILE.splitlines())) <= 120


@pytest.mark.parametrize("rule", EACH)
def test_a_rule_has_no_python_and_all_that_a_cluster_needs(rule):
    assert not re.search(r"\b(def|lambda|import|run:)\b", EACH[rule])
    sections = re.findall(r"^    (\w+):", EACH[rule], re.M)
    assert {"output", "log", "benchmark", "resources", "params", "message", "shell"} <= set(sections)
    assert "2> {log:q}" in EACH[rule]


def test_all_functions_of_the_rules_stand_together():
    assert [name for name, text in RULES.items() if "def " in text] == ["common.smk"]


def test_snakemakes_linter_asks_for_one_thing_that_does_not_hold_here():
    """A software environment for each rule: all rules have the one that runs Snakemake, which the records name."""
    done = snakemake(PROJECT, "--lint", "--nolock")
    remarks = re.findall(r"^    \* (.*)$", done.stdout + done.stderr, re.M)
    assert set(remarks) == {"Specify a conda environment or container for each rule.:"}


def test_the_picture_of_the_rules_is_that_of_the_rules():
    drawn = (PROJECT / "docs" / "rules.svg").read_text()
    assert parts(snakemake(PROJECT, "--rulegraph", "--nolock").stdout) == parts_of_svg(drawn)


def parts(dot: str) -> set[tuple[str, ...]]:
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    return {(name,) for name in names.values()} | {(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", dot)}


def parts_of_svg(text: str) -> set[tuple[str, ...]]:
    nodes = re.findall(r'class="node">\s*<title>(\d+)</title>.*?<text [^>]*>(\w+)</text>', text, re.S)
    edges = re.findall(r'class="edge">\s*<title>(\d+)->(\d+)</title>', html.unescape(text))
    names = dict(nodes)
    return {(name,) for name in names.values()} | {(names[a], names[b]) for a, b in edges}


def test_the_folder_of_profiles_is_where_snakemake_looks():  # profiles/, beside the Snakefile
    assert yaml.safe_load((PROJECT / "profiles" / "default" / "config.yaml").read_text())["rerun-incomplete"] is True
    assert (PROJECT / "profiles").resolve() == PROJECT / "pipelines" / "profiles"


@pytest.mark.parametrize("name", ["default", "slurm", "kubernetes"])
def test_a_profile_holds_options_of_snakemake_and_of_its_executor(name):
    """Without the plugins, which every call of Snakemake would import where they are installed."""
    profile = yaml.safe_load((PROJECT / "profiles" / name / "config.yaml").read_text())
    known = {option.removeprefix("--") for option in get_argument_parser()._option_string_actions}
    own = f"{profile.get('executor')}-"
    assert [key for key in profile if key not in known and not key.startswith(own)] == []
