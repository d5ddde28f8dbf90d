"""A machine's GPUs are granted without being asked for, and each job sees the one that the fewest others have taken."""

import subprocess
from functools import partial

import pytest
from project import STUDY, dry_run, snakemake_here
from snakemake.api import Workflow
from studies import PIPELINES

from pipelines.workflow import resources, visible_gpus
from pipelines.workflow.visible_gpus import take_one

SMOKE = str(PIPELINES.parent / STUDY)


@pytest.fixture
def devices(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "named, visible",
    [(None, ["0", "1", "2"]), ("2,0", ["2", "0"]), ("GPU-1a, MIG-2b", ["GPU-1a", "MIG-2b"]), ("", []), ("-1", [])],
)
def test_those_are_visible_that_cuda_would_see(named, visible, devices, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus.visible_gpus(devices) == visible


def test_a_machine_without_gpus_has_none_whatever_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert visible_gpus.visible_gpus(tmp_path) == []
    assert take_one([]) == take_one(["0"]) == ""


def test_jobs_spread_over_the_gpus_and_a_killed_one_frees_its_own(tmp_path):
    lines = take_one(["0", "GPU-a/b"], tmp_path / "it's held") + 'echo "$CUDA_VISIBLE_DEVICES"; exec cat'

    def start() -> subprocess.Popen:
        return subprocess.Popen(["bash", "-c", lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    jobs: list[subprocess.Popen] = []

    def taken() -> str:
        jobs.append(start())
        assert jobs[-1].stdout is not None
        return jobs[-1].stdout.readline().strip()

    try:
        assert [taken(), taken(), taken()] == ["0", "GPU-a/b", "0"]
        for ended in jobs[:2]:
            ended.kill()
            ended.wait()
        assert [taken(), taken()] == ["GPU-a/b", "0"]  # the third job is still on 0
    finally:
        for job in jobs:
            job.kill()
            job.wait()


@pytest.mark.parametrize(
    "gpus, arguments, registered, granted",
    [
        (["0", "1"], [], {"gpu": 2}, 2),
        (["0", "1"], ["--resources", "gpu=1"], {}, 1),
        (["0", "1"], ["--jobs", "8"], {}, 0),  # of a cluster
        ([], [], {}, 0),
    ],
)
def test_a_study_is_granted_the_gpus_of_its_machine_or_what_the_command_says(
    gpus, arguments, registered, granted, tmp_path, monkeypatch
):
    found, asked = {}, set()
    monkeypatch.setattr(visible_gpus, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(Workflow, "register_resource", lambda _, name, value: found.update({name: value}))
    monkeypatch.setattr(resources, "gpus", lambda device, number: asked.add(number))
    dry_run(tmp_path, *arguments, study=SMOKE)
    assert found == registered and asked == {granted}


def test_the_lines_stand_in_the_commands_that_snakemake_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(visible_gpus, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(visible_gpus, "take_one", partial(take_one, held=tmp_path / "held"))
    (tmp_path / "pipelines").symlink_to(PIPELINES)
    status, said = snakemake_here(tmp_path, "results/smoke/data/test.jsonl", study=SMOKE)
    assert status == 0, said
    assert (tmp_path / "held" / "0.1").is_file()
