"""A stage that runs out of memory or disk says so in one sentence. The errors are those that the libraries raise."""

import errno
import re

import pytest
import torch
from safetensors import SafetensorError

from algos.training.stage.record import Record, main_guard

SETTINGS = {"micro_batch_tokens": 4096, "micro_batch_size": 32, "max_response_tokens": 48, "lora": None}
LARGEST = 1 << 50  # bytes, more than a machine has


def full_text():
    with open("/dev/full", "w") as file:
        file.write("x")


def of_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")  # no GPU here


def wrapped():
    try:
        full_text()
    except OSError as error:
        raise ValueError("the checkpoint could not be written") from error


def weights():
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")  # as it words it


pytestmark = pytest.mark.usefixtures("guarded")


def said_by(capsys, tmp_path, act, settings: dict | None = None) -> str:
    """What a stage with this end says, and that its record was set aside."""

    def main():
        if settings is not None:
            Record(tmp_path / "seed0", "rl", settings, threads=1)
        act()

    with pytest.raises(SystemExit) as stop:
        main_guard(main)
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert said.out == said.err  # the log, and the user
    if settings is not None:
        assert (tmp_path / "seed0" / "interrupted-run.json").exists() and not (tmp_path / "seed0" / "run.json").exists()
    return said.err


def of_torch():
    torch.empty(LARGEST, dtype=torch.uint8)


def of_python():
    bytearray(LARGEST)


@pytest.mark.parametrize("act", [of_cuda, of_torch, of_python])
def test_out_of_memory_names_what_to_lower_and_what_predicts_it(act, tmp_path, capsys):
    found = said_by(capsys, tmp_path, act, SETTINGS | {"gradient_checkpointing": False})
    assert re.fullmatch(
        r"error: out of memory: the process had [\d.]+ GB of [\d.]+ GB\. Lower micro_batch_tokens \(now 4096\), "
        r"max_response_tokens \(now 48\), or set gradient_checkpointing: true; `rlcompare memory STUDY STAGE` predicts "
        r"the peak of an RL stage\.\n",
        found,
    )


def test_out_of_memory_before_the_record_exists(tmp_path, capsys):
    assert "Lower the size of the model;" in said_by(capsys, tmp_path, of_python)


@pytest.mark.parametrize("act", [full_text, weights, wrapped])
def test_a_full_disk_is_named(act, tmp_path, capsys):
    assert said_by(capsys, tmp_path, act, SETTINGS) == (
        f"error: the disk of {tmp_path / 'seed0'} is full: free some space, then give the same command again.\n"
    )


def test_a_run_that_is_recorded_as_failed_keeps_its_status():
    def main():
        try:
            raise RuntimeError("the judge ran out of memory")
        except RuntimeError:
            raise SystemExit(3)  # noqa: B904  # as algos.training.failure.fail ends it

    with pytest.raises(SystemExit) as stop:
        main_guard(main)
    assert stop.value.code == 3


def test_expert_iteration_has_settings_in_two_parts(tmp_path, capsys):
    parts = {"sampling": {"rows_at_once": 512}, "training": {"batch_size": 64}}
    assert "Lower rows_at_once (now 512), batch_size (now 64);" in said_by(capsys, tmp_path, of_python, parts)


def test_the_disk_that_is_full_is_that_of_the_file(tmp_path, capsys):
    def elsewhere():
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/psm_1")

    assert said_by(capsys, tmp_path, elsewhere, SETTINGS).startswith("error: the disk of /dev/shm/psm_1 is full:")


def test_another_error_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="of another kind"):
        main_guard(lambda: (_ for _ in ()).throw(RuntimeError("of another kind")))
