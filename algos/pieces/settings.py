"""Settings: frozen dataclasses that pydantic checks, with every mistake named in one sentence.

A study file is YAML and a stage gets its part as JSON; both end here. A field's type is its limit (`PositiveInt`,
`Literal["loss", "reward"]`), and its comments are its description in the JSON schema. Light on purpose: no torch.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import json
import os
import re
import sys
import textwrap
import tokenize
import typing
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.json_schema import GenerateJsonSchema

# 1 is a number, true and "1" are not; a Literal of numbers would take true for 1, so a few numbers are limits, too
CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
WANTED = {  # pydantic's name of a mistake -> what is wanted
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "dataclass_exact_type": "a mapping",
    "tuple_type": "a list",
}

DType = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]


class SettingsError(ValueError):
    """Bad input from the user: the message, one line, names the place, the value and what is allowed."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name that it quotes may hold a line end


@contextlib.contextmanager
def refusals(*others: type[Exception]):
    """Around a command: a refusal ends it with one sentence and status 2; a reader such as head may stop reading."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not isinstance(error, (SettingsError, *others)):
            raise
        red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
        print(f"{red}error:{plain} {error}", file=sys.stderr)
        raise SystemExit(2) from None


def one_of(value: object, allowed, where: str) -> None:
    """Raise SettingsError unless value is among the allowed names; suggests the nearest one."""
    if value not in [*allowed]:  # a list, as a value of YAML need not be hashable
        raise SettingsError(_unknown(value, allowed, where))


def _unknown(value: object, allowed, where: str) -> str:
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where}: {value!r} is unknown.{hint} Allowed: {', '.join(names)}."


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(cls):
    """Class decorator: a frozen dataclass whose values are checked whenever one is made.

    A subclass gives an inherited field another default without its type: `kl_coef = 0.01`. mypy learns this rule from
    .ci/mypy_settings.py.
    """
    hints = inspect.get_annotations(cls)
    for base in cls.__mro__[1:]:
        hints = {n: t for n, t in inspect.get_annotations(base).items() if n in vars(cls)} | hints
    cls.__annotations__ = hints
    cls = dataclass(frozen=True, config=CONFIG)(cls)
    unchecked = cls.__init__

    @functools.wraps(unchecked)
    def __init__(self, *args, **kwargs):
        try:
            unchecked(self, *args, **kwargs)
        except ValidationError as error:
            raise SettingsError(_sentence(cls, error)) from None

    cls.__init__ = __init__
    return cls


def from_dict(cls, values: dict, where: str = "settings"):
    """Build settings class cls from a dict; unknown keys, missing keys, wrong types and bad values raise SettingsError.

    `where` is the place in the study file that the message names, such as "stages.gspo.settings". Checked as JSON, in
    which a list may stand for a tuple and a mapping for a nested section.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{where}: expected a mapping of settings, got {values!r}.")
    try:
        return _adapter(cls).validate_json(json.dumps(_filled(cls, values), default=str))
    except ValidationError as error:
        raise SettingsError(_sentence(cls, error, where)) from None


_adapter = functools.cache(TypeAdapter)


def _filled(cls, values: dict) -> dict:
    """values, where a part of a nested section keeps the rest of that field's defaults."""
    filled = dict(values)
    for field in dataclasses.fields(cls):
        value, default = values.get(field.name), field.default_factory
        if isinstance(value, dict) and default is not dataclasses.MISSING and dataclasses.is_dataclass(default()):
            filled[field.name] = _filled(type(default()), {**dataclasses.asdict(default()), **value})
    return filled


_hints = functools.cache(typing.get_type_hints)


def without_nulls(cls, values: dict) -> dict:
    """values without the nulls of fields that cannot be null, so that these fields keep their own defaults."""
    kept = {}
    for key, value in values.items():
        hint = _hints(cls).get(key)
        parts = typing.get_args(hint)
        if value is None and hint is not None and type(None) not in parts:
            continue
        section = next((part for part in (hint, *parts) if dataclasses.is_dataclass(part)), None)
        if isinstance(value, dict) and section is not None:
            value = without_nulls(section, value)
        elif isinstance(value, dict) and typing.get_origin(hint) is dict:  # name -> number
            value = {name: number for name, number in value.items() if number is not None}
        kept[key] = value
    return kept


def _sentence(cls, error: ValidationError, where: str = "") -> str:
    """The first of pydantic's mistakes, unknown keys before all others, as one sentence."""
    mistake = min(error.errors(include_url=False), key=lambda m: m["type"] != "unexpected_keyword_argument")
    kind, place, value, context = mistake["type"], mistake["loc"], mistake["input"], mistake.get("ctx", {})
    at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    at = f"{where}{at}".lstrip(".")
    if kind == "unexpected_keyword_argument":
        return _unknown(place[-1], _keys(cls, place), f"{at.rpartition('.')[0] or 'settings'}, key")
    if kind == "literal_error" and (names := re.findall("'([^']*)'", context["expected"])):
        return _unknown(value, names, at)
    if kind == "value_error":
        return f"{at}: {context['error']}".removeprefix(": ").rstrip(".") + "."
    if kind in ("missing", "missing_argument"):
        return f"{at} is missing; it is required."
    if kind not in WANTED:
        return f"{at}: {mistake['msg']}, got {value!r}."
    null = ", or null" if type(None) in typing.get_args(_hint(cls, place)) else ""
    return f"{at} must be {WANTED[kind].format(**context)}{null}, got {value!r}.{_advice(kind, value)}"


def _advice(kind: str, value) -> str:
    try:
        number = float(value) if isinstance(value, str) and kind == "float_type" else None
    except ValueError:
        return ""
    return "" if number is None else f" YAML reads {value} as text; write {number:.1e}."


def _hint(cls, place):
    """The type of a nested section's field: RunConfig, ("optimizer", "learning_rate") -> PositiveFloat."""
    for key in place:
        sections = [hint for hint in (cls, *typing.get_args(cls)) if dataclasses.is_dataclass(hint)]
        cls = typing.get_type_hints(sections[0], include_extras=True).get(key) if sections else None
    return cls


def _keys(cls, place) -> list[str]:
    """The keys that stand beside the one at this place."""
    section = _hint(cls, place[:-1])
    return [
        field.name
        for hint in (section, *typing.get_args(section))
        if dataclasses.is_dataclass(hint)
        for field in dataclasses.fields(hint)
    ]


def json_schema(cls) -> dict:
    """The JSON schema of a settings class: types, limits, defaults, and each field's comment as its description."""
    return TypeAdapter(cls).json_schema(schema_generator=_WithComments)


class _WithComments(GenerateJsonSchema):
    def dataclass_schema(self, schema):
        made = super().dataclass_schema(schema)
        for name, text in comments(schema["cls"]).items():
            if name in made["properties"]:
                made["properties"][name]["description"] = text
        return made


def comments(cls) -> dict[str, str]:
    """Field -> its comments, in the class or the nearest base that has any: those beside it, then those right above.

    A comment with an empty line below it is the heading of several fields, and no field's own.
    """
    found: dict[str, str] = {}
    for base in cls.__mro__[-2::-1]:
        source = textwrap.dedent(inspect.getsource(base))
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
        said = {token.start[0]: token.string.strip(" #") for token in tokens}
        alone = {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}
        statement = ast.parse(source).body[0]
        assert isinstance(statement, ast.ClassDef)
        for node in statement.body:
            assert node.end_lineno is not None
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            above = itertools.takewhile(alone.__contains__, range(node.lineno - 1, 0, -1))
            beside = [line for line in range(node.lineno, node.end_lineno + 1) if line in said]
            text = ". ".join(" ".join(said[line] for line in lines) for lines in (beside, sorted(above)) if lines)
            if isinstance(target, ast.Name) and text:
                found[target.id] = text
    return found
