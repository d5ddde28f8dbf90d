"""A stage's process starts quickly: packages that it never calls are not imported, and nothing is collected meanwhile.

transformers imports scikit-learn and scipy where they are installed, and they import pandas: a second and more of a
stage's start. Hiding them must come before the first import of transformers, so the package algos.training does it, in
the process of a stage alone.
"""

import gc
import sys

UNUSED = ("sklearn", "scipy")
STAGES = (
    "algos.training.train",
    "algos.training.supervised.",
    "algos.training.rewards.",
    "algos.training.models.build",
    "evaluation.evaluate",
    "evaluation.data",
)


def is_a_stage(words: list[str]) -> bool:
    """Whether a process with this command line (sys.orig_argv) is `python -m` of a stage's module."""
    return "-m" in words[:-1] and words[words.index("-m") + 1].startswith(STAGES)


def start_quickly() -> None:
    """Nothing is collected while a stage imports, and the unused packages are as if they were not installed."""
    gc.disable()
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def has_imported() -> None:
    """What a stage has imported lives as long as its process: no collection looks at it, nor the last one of all."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def show_all_packages() -> None:
    """Undo what start_quickly hid, for code that may need it: a user's own, vLLM."""
    for name in UNUSED:
        if sys.modules.get(name, "absent") is None:
            del sys.modules[name]
