"""Two processes never make one stage at once, and a stage ends with the Snakemake that started it."""

import fcntl
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from algos.training.stage import record, signals
from algos.training.stage.alone import Alone
from algos.training.stage.environment import start_up_seconds
from algos.training.stage.record import main_guard

PROJECT = Path(__file__).parents[3]
HOLD = "import sys, time; from pathlib import Path; from algos.training.stage.alone import Alone; "


def process(out: Path, then: str) -> subprocess.Popen:
    """A process that makes the stage and says so, then does something."""
    code = f"{HOLD}alone = Alone(Path(sys.argv[1])); print('mine', flush=True); {then}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=PROJECT, **pipes)


def test_a_second_process_waits_until_the_first_is_gone(tmp_path):
    first = process(tmp_path / "seed0", "time.sleep(600)")
    assert first.stdout.readline() == "mine\n"
    second = process(tmp_path / "seed0", "")
    said = second.stderr.readline()
    assert said.startswith(f"waiting for process {first.pid} on ") and said.endswith("still makes this stage\n")
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.communicate(timeout=60)[0] == "mine\n" and second.returncode == 0


def test_what_is_released_leaves_no_file_and_is_there_for_the_next(tmp_path):
    mine = Alone(tmp_path / "seed0")
    assert [path.name for path in tmp_path.iterdir()] == [".seed0.lock"]
    mine.release()
    assert [*tmp_path.iterdir()] == []
    assert process(tmp_path / "seed0", "").communicate(timeout=60)[0] == "mine\n"


def test_a_lock_that_was_removed_while_one_waited_for_it_is_nobodys(tmp_path):
    mine = Alone(tmp_path / "seed0")
    waiting = process(tmp_path / "seed0", "time.sleep(600)")
    waiting.stderr.readline()
    mine.release()
    assert waiting.stdout.readline() == "mine\n"
    third = process(tmp_path / "seed0", "")
    assert third.stderr.readline().startswith(f"waiting for process {waiting.pid}")
    for one in (waiting, third):
        one.kill()
        one.wait()


def test_a_lock_that_is_removed_between_its_opening_and_its_locking_is_not_taken(tmp_path, monkeypatch):
    path, lock, calls = tmp_path / ".seed0.lock", fcntl.flock, []

    def flock(file, how):
        calls.append(path.unlink() if not calls else None)  # as by a holder who releases it now
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    mine = Alone(tmp_path / "seed0")
    assert len(calls) == 2 and path.is_file()
    mine.release()
    assert not path.exists()


def test_one_process_makes_one_stage_after_the_other(tmp_path):
    Alone(tmp_path / "seed0")  # its stage failed, and released nothing
    Alone(tmp_path / "seed0")


def test_where_no_lock_can_be_written_nothing_is_held():
    Alone(Path("/dev/null/seed0")).release()


def test_waiting_is_no_start_up(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "Alone", lambda out: time.sleep(1.5) or Alone(out))
    before = start_up_seconds(time.time())
    made = record.Record(tmp_path / "seed0", "rl", {}, threads=1)
    made.finish()
    assert made.facts["start_up_seconds"] - before < 1.0


def test_a_folder_that_snakemake_has_deleted_is_not_made_again(tmp_path):
    made = record.Record(tmp_path / "evaluation" / "seed0", "evaluation", {}, threads=1)
    shutil.rmtree(tmp_path / "evaluation")
    made.set_aside()
    record.Record.unfinished.remove(made)
    assert [*tmp_path.iterdir()] == []


FOLLOW = "import sys, time; from algos.training.stage import signals; signals.LOOK_SECONDS = 0.05; signals.listen(); "


def test_a_stage_ends_with_the_process_that_it_follows(tmp_path):
    followed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    code = FOLLOW + "signals.follow(int(sys.argv[1])); print('on', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(followed.pid)]
    stage = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert stage.stdout.readline() == "on\n"
    time.sleep(0.3)
    assert stage.poll() is None
    followed.kill()  # it stays a zombie until it is waited for
    assert "signals.Stopped" in stage.communicate(timeout=60)[1]
    followed.wait()


def test_a_stage_that_is_ending_its_step_is_not_told_again():
    """SIGTERM went to all, and Snakemake was gone before the stage had saved."""
    followed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    code = FOLLOW + (
        "signals.follow(int(sys.argv[1])); signals.grant(60); print('on', flush=True)\n"
        "while not signals.asked(): time.sleep(0.01)\n"
        "time.sleep(2); print('saved', flush=True)"
    )
    command = [sys.executable, "-c", code, str(followed.pid)]
    stage = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert stage.stdout.readline() == "on\n"
    stage.terminate()
    followed.kill()
    followed.wait()
    assert stage.communicate(timeout=60)[0] == "saved\n" and stage.returncode == 0


@pytest.mark.parametrize("parent, followed", [("7", [7]), ("0", []), ("", [])])  # 0: outside of a container's processes
def test_a_stage_follows_the_process_that_the_rules_name(guarded, monkeypatch, parent, followed):
    found = []
    monkeypatch.setenv("STAGE_PARENT", parent)
    monkeypatch.setattr(signals, "follow", found.append)
    main_guard(lambda: None)
    assert found == followed
