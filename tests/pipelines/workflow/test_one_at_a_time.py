"""Who makes a study now, by the kernel's lock; and which of Snakemake's own locks are nobody's."""

import socket
import subprocess
import sys

import pytest

from pipelines.workflow import one_at_a_time

HOLD = (
    "import sys, time; sys.path.insert(0, sys.argv[2]); from pipelines.workflow import one_at_a_time as one; "
    "print(one.hold(sys.argv[1]), flush=True); "
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with Snakemake's locks on two studies."""
    monkeypatch.chdir(tmp_path)
    locks = tmp_path / one_at_a_time.SNAKEMAKES
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("my/rows.jsonl\nresults/mine/data/train.jsonl\n")
    (locks / "0.output.lock").write_text("results/mine/report/report.html\n")
    (locks / "1.output.lock").write_text("results/mine2/report/report.html\n")
    yield tmp_path
    one_at_a_time.release("results/mine")


def another(then: str) -> subprocess.Popen:
    """Another process that makes the study, and has said so."""
    command = [sys.executable, "-c", HOLD + then, "results/mine", sys.path[0]]
    command[-1] = str(one_at_a_time.__file__).rpartition("/pipelines/")[0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.said = process.stdout.readline()
    return process


def locks(place) -> list[str]:
    return sorted(path.name for path in (place / one_at_a_time.SNAKEMAKES).iterdir())


ALL = ["0.input.lock", "0.output.lock", "1.output.lock"]


def test_a_study_that_a_living_process_makes_is_held_and_keeps_its_locks(place):
    other = another("time.sleep(600)")
    assert other.said == "None\n"
    words = f"process {other.pid} on {socket.gethostname()}"
    assert one_at_a_time.look("results/mine") == one_at_a_time.hold("results/mine") == words and locks(place) == ALL
    other.kill()
    other.wait()
    assert one_at_a_time.look("results/mine") is None and locks(place) == ["1.output.lock"]  # of the other study
    assert one_at_a_time.hold("results/mine") is None


def test_after_a_reset_the_number_of_the_last_process_may_be_anothers(place):
    another("import os; os._exit(1)").wait()
    (place / "results/mine" / one_at_a_time.NAME).write_text(f"process 1 on {socket.gethostname()}")  # lives
    assert one_at_a_time.look("results/mine") is None and locks(place) == ["1.output.lock"]


def test_locks_of_which_it_cannot_be_told_stay(place):
    assert one_at_a_time.look("results/mine") is None and locks(place) == ALL  # nothing was made yet
    another("import os; os._exit(1)").wait()
    (place / "results/mine" / one_at_a_time.NAME).write_text("process 7 on another-machine")
    assert one_at_a_time.look("results/mine") is None and locks(place) == ALL
    another("one.release(sys.argv[1])").wait()  # an orderly end: what lies there is of somebody else
    assert one_at_a_time.look("results/mine") is None and locks(place) == ALL


def test_where_nothing_can_be_written_nothing_is_held(place):
    assert one_at_a_time.hold("/dev/null/mine") is None


def test_one_process_may_make_a_study_again(place):
    assert one_at_a_time.hold("results/mine") is None and one_at_a_time.hold("results/mine") is None
    assert one_at_a_time.look("results/mine") is None and locks(place) == ALL
