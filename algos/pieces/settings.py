"""Settings: frozen dataclasses built from plain dicts, with every mistake named.

A study file is YAML and a stage gets its part as JSON; both end here. Light on purpose: no torch.
"""

import dataclasses
import difflib
import types
import typing

DTYPES = ("float32", "bfloat16")


class SettingsError(ValueError):
    """Bad input from the user: the message names the place, the value and what is allowed."""


def one_of(value: object, allowed, where: str) -> None:
    """Raise SettingsError unless value is among the allowed names; suggests the nearest one."""
    names = sorted(allowed)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"{where}: {value!r} is unknown.{hint} Allowed: {', '.join(names)}.")


def from_dict(cls, values: dict, where: str = "settings"):
    """Build dataclass cls from a dict; unknown keys, missing keys, wrong types and bad values raise SettingsError.

    `where` is the place in the study file that the message names, such as "runs.gspo.settings".
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{where}: expected a mapping of settings, got {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            one_of(key, fields, f"{where}, key")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            value = values[name]
            if (
                dataclasses.is_dataclass(hints[name])
                and field.default_factory is not dataclasses.MISSING
                and isinstance(value, dict)
            ):  # a part of a nested section: the rest keeps this field's defaults
                value = {**dataclasses.asdict(field.default_factory()), **value}
            arguments[name] = _checked(value, hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{where}.{name} is missing; it is a required {_describe(hints[name])}.")
    try:
        return cls(**arguments)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
    except ValueError as error:
        raise SettingsError(f"{where}: {error}.") from None


def _checked(value, hint, where: str, declared=None):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _checked(value, next(arg for arg in args if arg is not type(None)), where, declared=hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise SettingsError(f"{where} must be a finite number, got {value!r}.")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if origin is dict and isinstance(value, dict):
        return {_checked(k, args[0], f"{where} (key)"): _checked(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if (origin or hint) is dict and isinstance(value, dict):
        return dict(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    advice = ""
    if hint is float and isinstance(value, str) and _is_number(value):
        advice = f" YAML reads {value} as text; write {float(value):.1e}."
    raise SettingsError(f"{where} must be {_describe(declared or hint)}, got {value!r}.{advice}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _describe(hint) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else _describe(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {_describe(typing.get_args(hint)[0])}"
    return names.get(typing.get_origin(hint) or hint, "mapping")


def positive(settings, *names: str) -> None:
    """Raise ValueError for the first of the named fields that is not above 0; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def share(settings, *names: str) -> None:
    """Raise ValueError for the first of the named fields that is not in 0..1."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name} must be in 0..1, got {getattr(settings, name)}")
