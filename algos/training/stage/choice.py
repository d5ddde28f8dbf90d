"""Settings that were chosen among several configurations, which stand over those that a stage was planned with."""

import json
from pathlib import Path

from algos.pieces.settings import SettingsError


def with_choice(settings: dict, path: str) -> dict:
    """The settings, and over them the `settings` of a file of JSON, mapping by mapping. Raises SettingsError."""
    try:
        choice = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--tuned {path}: {error.strerror}; the job that chooses the settings makes it.") from None
    except ValueError as error:
        raise SettingsError(f"--tuned {path} is not JSON: {error}.") from None
    if not isinstance(choice, dict) or not isinstance(choice.get("settings"), dict):
        raise SettingsError(f"--tuned {path}: there is no mapping `settings`; the job that chooses them makes it.")
    return _over(settings, choice["settings"])


def _over(shared: dict, own: dict) -> dict:
    made = dict(shared)
    for key, value in own.items():
        old = shared.get(key)
        made[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made
