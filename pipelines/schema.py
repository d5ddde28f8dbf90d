"""The JSON schema of study files, made from the settings themselves: editors complete and check a study with it."""

import json
from pathlib import Path

from algos.pieces.settings import json_schema
from algos.training.models.config import ModelConfig
from evaluation.config import StudyEvaluation
from evaluation.tasks import SPLITS, TASKS
from evaluation.tuning.space import Range, TuneSettings
from pipelines.kinds import KINDS, Kind
from pipelines.plan import StudySettings

PATH = Path(__file__).with_name("study.schema.json")
COMMON = {
    "kind": {"enum": [*KINDS], "description": "what the stage does"},
    "like": {"type": "string", "description": "a stage whose settings this one takes; the others are the change"},
    "vary": {"type": "object", "additionalProperties": {"type": "array"}, "description": "setting: [values]"},
    "tune": {"$ref": "#/$defs/TuneSettings", "description": "its configurations are tried on dev; then it runs"},
    "seeds": {"type": "array", "items": {"type": "integer"}, "description": "one run each; default: the study's"},
    "evaluate": {"type": "boolean", "description": "false: its checkpoints are not evaluated"},
    "threads": {"type": "integer", "minimum": 1, "description": "CPU threads of each run"},
    "path": {"type": "string", "description": "preferences of your own, JSONL, in place of `from`"},
}


def study_schema() -> dict:
    """The schema of a whole study file."""
    schema = json_schema(StudySettings)
    definitions = schema.setdefault("$defs", {})
    definitions["TuneSettings"] = _tune(definitions)
    for name, kind in KINDS.items():
        definitions[f"stage_{name}"] = _closed(_stage_properties(kind, definitions))
        definitions[f"defaults_{name}"] = _closed(
            _or_null(_settings(kind.settings, definitions) | {"threads": COMMON["threads"]})
        )
    anything = {key: value for name in KINDS for key, value in definitions[f"stage_{name}"]["properties"].items()}
    definitions["stage_like"] = _closed(anything)
    definitions["stage"] = {"allOf": [_if_kind(name) for name in KINDS] + [_without_kind()]}
    model = _settings(ModelConfig, definitions) | {"tokenizer": {"type": "string", "description": "of another model"}}
    properties = schema["properties"]
    properties["models"]["additionalProperties"] = {"anyOf": [{"type": "string"}, _closed(model)]}
    task = definitions["TaskSettings"]  # a task's own settings may stand beside the common ones
    for entry in TASKS.values():
        for key, value in _settings(entry.config, definitions).items():
            task["properties"][key] = {"anyOf": [task["properties"][key], value]} if key in SPLITS else value
    properties["stages"]["additionalProperties"] = {"$ref": "#/$defs/stage"}
    properties["defaults"] |= _closed({name: {"$ref": f"#/$defs/defaults_{name}"} for name in KINDS})
    evaluation = _settings(StudyEvaluation, definitions)
    evaluation["other_task"] = {"anyOf": [{"$ref": "#/$defs/TaskSettings"}, {"type": "null"}]}
    properties["evaluation"] |= _closed(evaluation)
    return schema


def _tune(definitions: dict) -> dict:
    """Of `tune`: a setting of the space has bounds or choices. A stage may write a part of what it takes over."""
    definitions["Range"] = json_schema(Range)
    choices = {"type": "array", "minItems": 2}
    space = {"type": "object", "additionalProperties": {"anyOf": [{"$ref": "#/$defs/Range"}, choices]}}
    schema = json_schema(TuneSettings)
    schema["properties"]["space"] |= space
    return {key: value for key, value in schema.items() if key != "required"}


def _settings(cls: type, definitions: dict) -> dict:
    """The properties of a settings class but the seed; the classes within it become definitions."""
    schema = json_schema(cls)
    for name, part in schema.get("$defs", {}).items():
        part = _without_seed(part)
        definitions[name] = {**part, "properties": _or_null(part["properties"])}
    return _without_seed(schema)["properties"]


def _without_seed(schema: dict) -> dict:
    """A schema without a seed that must be given: the study gives every stage its seed."""
    required = schema.get("required", [])
    if "seed" not in required:
        return schema
    properties = {key: value for key, value in schema["properties"].items() if key != "seed"}
    return {**schema, "properties": properties, "required": [key for key in required if key != "seed"]}


def _stage_properties(kind: Kind, definitions: dict) -> dict:
    edges = {key: {"type": "string", "description": f"from {', '.join(e.sources)}"} for key, e in kind.edges.items()}
    common = {key: value for key, value in COMMON.items() if key in kind.keys}
    return _or_null(common | edges | _settings(kind.settings, definitions)) | {"like": COMMON["like"]}


def _or_null(properties: dict) -> dict:
    """The same properties, each of which may be null: it removes what is shared."""
    made = {}
    for name, schema in properties.items():
        if "$ref" in schema:
            schema = {"anyOf": [schema, {"type": "null"}]}
        elif isinstance(schema.get("type"), str):
            names = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
            schema = {**schema, "type": [schema["type"], "null"], **names}
        made[name] = schema
    return made


def _closed(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _if_kind(name: str) -> dict:
    named = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
    return {"if": named, "then": {"$ref": f"#/$defs/stage_{name}"}}


def _without_kind() -> dict:
    return {"if": {"not": {"required": ["kind"]}}, "then": {"$ref": "#/$defs/stage_like", "required": ["like"]}}


def write(path: Path = PATH) -> str:
    """Write the schema; returns where."""
    path.write_text(json.dumps(study_schema(), indent=1) + "\n", encoding="utf-8")
    return str(path)
