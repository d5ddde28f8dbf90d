"""JSON on command lines."""

import json
from pathlib import Path

from algos.pieces.settings import SettingsError


def read_json(text: str, option: str) -> dict:
    """A mapping, written in JSON on the command line or in a file of that name."""
    try:
        values = json.loads(text if text.lstrip().startswith(("{", "[")) else Path(text).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{option} is not JSON: {error.msg} at character {error.pos}.") from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise SettingsError(f"{option} cannot be read as JSON: {error}.") from None
    except OSError:
        raise SettingsError(f"{option} is neither JSON nor a file that can be read: {text[:60]!r}.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{option} must be a mapping of settings, got {str(values)[:60]}.")
    return values
