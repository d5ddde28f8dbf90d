"""What a shell completes on the command line: study files, their RL stages, algorithms. Light: no torch."""

from glob import escape, glob
from pathlib import Path

import typer

from algos import FILES


def is_study(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def studies(incomplete: str) -> list[str]:
    """Study files that begin so, and those up to two folders below."""
    start = escape(incomplete)
    found = [path for more in ("*", "*/*", "*/*/*") for path in sorted(glob(start + more)) if is_study(path)]
    return [path for path in found if "\nstages:" in Path(path).read_text(encoding="utf-8", errors="replace")]


def algorithms(incomplete: str) -> list[str]:
    return [name for name in FILES if name.startswith(incomplete)]


def described(incomplete: str) -> list[str]:
    """What `describe` takes first."""
    return algorithms(incomplete) + studies(incomplete)


def stages(context: typer.Context, incomplete: str) -> list[str]:
    """RL stages of the study that stands before."""
    return _rl_stages(context.params["name"], incomplete)


def study_and_stage(context: typer.Context, incomplete: str) -> list[str]:
    """The words of a command that takes STUDY STAGE before other words, and algorithms after --algorithm."""
    match context.params.get("words") or []:
        case []:
            return studies(incomplete)
        case [*_, "--algorithm" | "--algorithms"]:
            return algorithms(incomplete)
        case [study] if is_study(study):
            return _rl_stages(study, incomplete)
    return []


def _rl_stages(path: str, incomplete: str) -> list[str]:
    """The names of a study's RL stages, those that a `vary` makes included; none while the file cannot be read."""
    from algos.pieces.settings import SettingsError
    from pipelines.source import read, varied

    names: list[str] = []
    try:
        written = read(path)[0].get("stages")
        for parent, stage in written.items():
            if _kind(written, parent) == "rl":
                names += varied(parent, stage["vary"]) if stage.get("vary") is not None else [parent]
    except (SettingsError, AttributeError):  # somebody is writing it
        return []
    return [name for name in names if name.startswith(incomplete)]


def _kind(written: dict, name: str) -> str | None:
    """The kind of a stage, or of the one that it is like."""
    for _ in written:  # a circle of `like` ends here
        stage = written.get(name.partition("-")[0]) or {}  # what a `vary` makes is named STAGE-KEY=VALUE
        if "kind" in stage:
            return stage["kind"]
        name = str(stage.get("like"))
    return None
