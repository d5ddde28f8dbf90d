"""Memory or disk that did not suffice, as one sentence that says what to lower or to free."""

import errno
import os
import re

from algos.training.stage.environment import resident_bytes

FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_WORDS = re.compile(r"No space left on device|Disk quota exceeded|disk is full", re.IGNORECASE)
MEMORY_WORDS = re.compile(r"out of memory|can't allocate memory|std::bad_alloc|Cannot allocate memory", re.IGNORECASE)
SMALLER = (  # settings that a stage's memory depends on
    "micro_batch_tokens",
    "micro_batch_size",
    "batch_size",
    "prompts_per_batch",
    "rows_at_once",
    "max_response_tokens",
)


def explained(error: BaseException, settings: dict, out: str) -> str | None:
    """The sentence for an error that says that memory or disk is exhausted; None for any other.

    settings: those of the stage; out: the folder that it writes into.
    """
    context = None if error.__suppress_context__ else error.__context__
    for e in filter(None, (error, error.__cause__, context)):
        if getattr(e, "errno", None) in FULL or DISK_WORDS.search(str(e)):
            place = getattr(e, "filename", None) or out
            return f"the disk of {place} is full: free some space, then give the same command again."
        if isinstance(e, MemoryError) or MEMORY_WORDS.search(str(e)):
            lower = f"Lower {_smaller(settings)}; `rlcompare memory STUDY STAGE` predicts the peak of an RL stage."
            return f"out of memory: {_peak(e)}. {lower}"
    return None


def _peak(error: BaseException) -> str:
    import torch

    if "CUDA" in str(error) and torch.cuda.is_available():
        used, all_of_it = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        return f"at most {used / 1e9:.1f} GB were allocated on a GPU of {all_of_it / 1e9:.1f} GB"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"the process had {resident_bytes() / 1e9:.1f} GB of {total / 1e9:.1f} GB"


def _smaller(settings: dict) -> str:
    """The settings that a stage has and that can be made smaller, with their values."""
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]  # expert iteration has two
    given = {key: part[key] for part in parts for key in SMALLER if part.get(key) is not None}
    if "micro_batch_tokens" in given:
        given.pop("micro_batch_size", None)  # has no effect then
    named = [f"{key} (now {value})" for key, value in given.items()]
    if settings.get("gradient_checkpointing") is False:
        named.append("or set gradient_checkpointing: true")
    return ", ".join(named) or "the size of the model"
