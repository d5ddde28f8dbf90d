"""Study files as they are written: YAML, the line of each key for messages, the names of stages. Light: no torch."""

import math
import re
from itertools import product
from pathlib import Path

import yaml

from algos.pieces.settings import SettingsError

Lines = dict[tuple[str, ...], int]  # the keys from the top of a file down to a value -> the line of the last key
MERGE = "tag:yaml.org,2002:merge"  # `<<: *anchor`
VALUE = re.compile(r"[\w.+-]+")  # of a varied setting, as a part of a stage's name
MOST_VALUES = 100_000  # of a study file; a few lines of aliases can make billions
KEYS = yaml.constructor.SafeConstructor()  # what YAML reads a key as: `on` as True


def read(path: str | Path) -> tuple[dict, Lines]:
    """The settings of a YAML file, and the line of each key.

    Raises SettingsError for a file that cannot be read, is no YAML, is no mapping, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        config = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not text in UTF-8.") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SettingsError(f"{path}: not YAML: nested too deeply.") from None
    except ValueError as error:  # a number of thousands of digits, a day that there is not
        raise SettingsError(f"{path}: a value that cannot be read ({str(error).partition(';')[0]}).") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: expected a mapping of settings.")
    if _size(config, {}) > MOST_VALUES:
        raise SettingsError(f"{path}: its aliases make more than {MOST_VALUES:,} values of it; write fewer.")
    lines: Lines = {}
    _visit(node, (), lines, str(path))
    return config, lines


def _size(value: object, known: dict[int, float]) -> float:
    """How many values a value holds, each alias counted wherever it stands; infinite for one within itself."""
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is known: an alias that leads here is within the value
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def _visit(node: yaml.Node, keys: tuple[str, ...], lines: Lines, path: str) -> None:
    """Note the lines of all keys below a node. Raises SettingsError for the second of two equal keys."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == MERGE:
            continue
        place, line = (*keys, str(KEYS.construct_object(key))), key.start_mark.line + 1
        if place in lines and place[:-1] == keys:
            raise SettingsError(
                f"{path}, line {line}: the key {'.'.join(place)!r} stands in line {lines[place]} already; "
                "YAML would drop the first. Remove or rename one."
            )
        lines[place] = line
        _visit(value, place, lines, path)


def refuse_keys_that_are_no_text(values: object, where: str = "the study") -> None:
    """Raise SettingsError for a key that YAML reads as a number or a truth value, such as 1 or on."""
    if isinstance(values, dict):
        for key, value in values.items():
            if not isinstance(key, str):
                raise SettingsError(f"{where}: the key {key!r} is no text; put it in quotes or choose another name.")
            refuse_keys_that_are_no_text(value, key if where == "the study" else f"{where}.{key}")


def varied(parent: str, vary: object) -> dict[str, dict]:
    """The stages that the `vary` of a stage makes: name -> the value of each key."""
    where = f"stages.{parent}.vary"
    if not isinstance(vary, dict) or not vary:
        raise SettingsError(f"{where} must be a mapping of settings to lists of values, got {vary!r}.")
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise SettingsError(f"{where}.{key} must be a list of at least one value, got {values!r}.")
    made: dict[str, dict] = {}
    for values in product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "-".join([parent, *(f"{key}={_shown(v, f'{where}.{key}')}" for key, v in chosen.items())])
        if name in made:
            raise SettingsError(f"{where} makes {name} twice; two stages cannot share a folder. Remove one value.")
        made[name] = chosen
    return made


def _shown(value: object, where: str) -> str:
    """A varied value as a part of a name."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, (int, float)) else value
    if not isinstance(text, str) or not VALUE.fullmatch(text):
        raise SettingsError(f"{where}: a varied value is a number, true, false, null or a plain word, got {value!r}.")
    return text


def located(message: str, source: str, lines: Lines, inherited: dict[str, list[tuple[str, ...]]]) -> str:
    """The message with the file before it, and the line where the key that it names is written.

    A message begins with the place of a value, such as `stages.grpo: settings: clip_low must be`. What a stage does
    not write itself is looked up in `inherited`: for each stage the places that it takes settings from, nearest first.
    """
    words = re.findall(r"[^\s:,;'\"`\[\]]+", message.removeprefix("the study"))
    place: tuple[str, ...] = ()
    if words and words[0].startswith("stages."):
        name = max((n for n in inherited if f"{words[0]}.".startswith(f"stages.{n}.")), key=len, default=None)
        if name is not None:
            rest = [words[0].removeprefix(f"stages.{name}").strip("."), *words[1:6]]
            starts = [("stages", name), *inherited[name]]
            found = [(_descend(start, rest, lines), start) for start in starts]
            place, _ = max(found, key=lambda pair: (pair[0] in lines, len(pair[0]) - len(pair[1])))
            return f"{_file(source, lines, place)}: {message}"
    place = _descend((), words[:6], lines)
    return f"{_file(source, lines, place)}: {message}"


def _descend(place: tuple[str, ...], words: list[str], lines: Lines) -> tuple[str, ...]:
    """The deepest key below a place that the words name in order; a key may hold dots, as those of `vary` do."""
    for word in words:
        parts = word.rstrip(".").split(".")
        while parts:
            taken = next((n for n in range(len(parts), 0, -1) if (*place, ".".join(parts[:n])) in lines), 0)
            place = (*place, ".".join(parts[:taken])) if taken else place
            parts = parts[taken or 1 :]
    return place


def _file(source: str, lines: Lines, place: tuple[str, ...]) -> str:
    return f"{source}, line {lines[place]}" if place in lines else source
