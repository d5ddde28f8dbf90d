"""The files around the code agree: pyproject.toml, lock, citation, changelog, hooks, license."""

import hashlib
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LICENSE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of apache.org's LICENSE-2.0.txt


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_lock_holds_what_the_project_asks_for_with_hashes():
    lock = text("requirements.lock")
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M))
    assert len(locked) == len(re.findall(r"^[^#\s]", lock, re.M)) > 100
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), line


def test_the_lock_brings_no_cuda_and_ci_installs_from_it():
    assert not re.search(r"^(nvidia|cuda|triton)", text("requirements.lock"), re.M)
    assert "pip install --quiet --require-hashes -r requirements.lock\n" in text(".ci/run")


def test_citation_changelog_and_license_are_those_of_the_project():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what its schema requires
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.M)[:2] == ["Unreleased", PROJECT["version"]]
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == LICENSE and PROJECT["license"] == "Apache-2.0"


def test_the_hooks_before_a_commit_are_cis_linter():
    hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    checked = re.findall(r"^(ruff \w+)", text(".ci/run"), re.M)
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in hooks] == checked != []
