"""The smoke study with a change, and small studies, as dictionaries."""

import copy
from pathlib import Path

import yaml

PIPELINES = Path(__file__).parents[2] / "pipelines"
FILES = [PIPELINES / "config.yaml", *sorted((PIPELINES / "studies").glob("*.yaml"))]
SMOKE = yaml.safe_load((PIPELINES / "studies" / "smoke.yaml").read_text())
REMOVED = object()


def changed(path: str, value: object) -> dict:
    """The smoke study with one key set, or removed."""
    config = copy.deepcopy(SMOKE)
    *parents, last = path.split("/")
    section = config
    for key in parents:
        section = section[key]
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    return config


def small(**stages: dict) -> dict:
    """The smoke study with these stages alone."""
    return {**copy.deepcopy(SMOKE), "stages": stages}


def sft(start: str = "base", **own) -> dict:
    return {"kind": "sft", "from": start, "data": "demonstrations", **own}


def rl(start: str = "base", **own) -> dict:
    return {"kind": "rl", "from": start, "algorithm": "grpo", **own}
