"""The JSON schema for editors: it comes from the settings and accepts every study."""

import copy
import json

import jsonschema
import pytest
import yaml
from studies import FILES, SMOKE

from pipelines.schema import PATH, study_schema

VALIDATOR = jsonschema.Draft202012Validator(study_schema())


def test_the_schema_file_is_that_of_the_settings():
    assert json.loads(PATH.read_text()) == study_schema(), "write it again: python -m pipelines schema"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_study_names_the_schema_and_fits_it(path):
    text = path.read_text()
    line = text.splitlines()[0]
    assert line.startswith("# yaml-language-server: $schema=")
    assert (path.parent / line.partition("=")[2]).resolve() == PATH
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "stage, key, value",
    [("grpo", "stepz", 1), ("grpo", "steps", 0), ("trl_grpo", "trainer", "xrl"), ("accepted", "data", "train")],
)
def test_an_editor_marks_what_the_settings_refuse(stage, key, value):
    config = copy.deepcopy(SMOKE)
    config["stages"][stage][key] = value
    assert list(VALIDATOR.iter_errors(config))


def test_an_editor_allows_null_which_removes_a_shared_value():
    config = copy.deepcopy(SMOKE)
    removed = {"steps": None, "trainer": None, "seeds": None, "reference": None, "vllm": None}
    config["stages"]["again"] = {"like": "grpo", **removed, "optimizer": {"name": None, "learning_rate": None}}
    assert list(VALIDATOR.iter_errors(config)) == []
    config["stages"]["again"]["like"] = None
    assert list(VALIDATOR.iter_errors(config))
