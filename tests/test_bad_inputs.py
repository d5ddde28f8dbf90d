"""Malformed studies, data, checkpoints, tokenizers and command lines get their one sentence (tests/faults)."""

import pytest

from tests.faults.bad.__main__ import CASES
from tests.faults.bad.cases import Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_bad_input_gets_its_one_sentence(case, tmp_path):
    assert case.fault(tmp_path) is None


def test_there_are_enough_of_each_kind():
    kinds = [case.what.partition(":")[0] for case in CASES]
    assert len(CASES) >= 120 and len({case.what for case in CASES}) == len(CASES)
    assert all(kinds.count(kind) >= 10 for kind in ("study", "data", "model", "words"))


def test_a_crash_a_good_status_and_another_sentence_are_faults(tmp_path):
    def fault(*words: str, says: str = "x") -> str:
        return str(Case("", lambda folder: list(words), says).fault(tmp_path))

    assert "ends with 0, not 2" in fault("algos", "list")
    assert "says \"error: NAME: 'gp' is unknown" in fault("algos", "describe", "gp", says="misspelled")


def test_an_exception_that_nobody_caught_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("algos.__main__.list_algorithms", lambda: 1 / 0)
    assert "crashes with ZeroDivisionError" in str(Case("", lambda folder: ["algos", "list"], "").fault(tmp_path))
