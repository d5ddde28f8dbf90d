"""Memory of the logits in an update at a vocabulary of 151,936 and 4,096 tokens, and the memory predictor's errors."""

from collections.abc import Iterator

from algos.training.config import LOGITS_AT_ONCE
from evaluation.bench.output import row
from evaluation.bench.parts import Bench
from evaluation.memory.check import CASES, FAST, VOCABULARY, compare, logits_bytes


def logits(bench: Bench) -> Iterator[dict]:
    """Bytes of logits, and of their gradients, at the fullest moment of one update: all at once, and in pieces."""
    tokens, at_once = (256, 2**22) if bench.toy else (4096, LOGITS_AT_ONCE)
    full, pieces = logits_bytes(None, tokens), logits_bytes(at_once, tokens)
    case = f"vocabulary {VOCABULARY:,}, {tokens:,} tokens"
    yield row(case, "full_bytes", float(full), "bytes", "logits_at_once null")
    yield row(case, "update_bytes", float(pieces), "bytes", f"logits_at_once {at_once:,}")
    yield row(case, "update_share", pieces / full, "x", "update / full", target="" if bench.toy else "logits")
    yield from predictor(bench)


def predictor(bench: Bench) -> Iterator[dict]:
    """The largest relative difference between a phase's measured peak and the peak predicted without weights."""
    for name in FAST[:1] if bench.toy else FAST:
        found = compare(CASES[name])
        worst = max(found, key=lambda phase: abs(phase["ratio"] - 1))
        note = f"{worst['phase']}: {worst['predicted_bytes']:,} predicted, {worst['measured_bytes']:,} measured"
        target = "" if bench.toy else "predictor"
        yield row(f"predictor, {name}", "relative_difference", abs(worst["ratio"] - 1), "", note, target=target)
