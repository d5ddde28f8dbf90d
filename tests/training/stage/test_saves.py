"""Saved states on the disk: whole or absent, of this very stage, and only as often as their cost allows."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from algos.training.stage import saves as module
from algos.training.stage.config import Saving
from algos.training.stage.record import Record
from algos.training.stage.saves import Saves, verified, write
from tests.faults.torn import FAULTS

TENSORS = {"a": torch.arange(6.0), "b": torch.zeros(2, 3, dtype=torch.uint8)}


@dataclass
class State:
    step: int = 0


def stage(out: Path, inputs=(), saving=None, **settings) -> tuple[Saves, State, Record]:
    """A stage that has begun, or goes on."""
    saves, state = Saves(out, saving or Saving(minutes=None, steps=1), inputs), State()
    record = Record(out, "sft", settings, 1, saves)
    saves.hold(state)
    return saves, state, record


def advance(saves: Saves, state: State, record: Record, steps: int) -> None:
    for _ in range(steps):
        record.log(state.step, {"loss": 1.0 / (state.step + 1)})
        record.sample(step=state.step)
        state.step += 1
        saves.after_step()


def killed(record: Record) -> None:
    Record.unfinished.remove(record)
    record.metrics.close()
    record.samples.close()


def numbers(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "resume").iterdir())


def test_the_last_two_states_are_kept_and_the_record_goes_on(tmp_path):
    saves, state, record = stage(tmp_path)
    advance(saves, state, record, 4)
    assert numbers(tmp_path) == ["000002", "000003"]
    record.log(4, {"loss": 0.2})  # of a step that was not saved
    killed(record)
    saves, state, record = stage(tmp_path)
    assert state.step == 4 and (tmp_path / "metrics.jsonl").read_text().count("\n") == 4
    advance(saves, state, record, 1)
    record.finish()
    assert not (tmp_path / "resume").exists()
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["resumed"][0]["lines"] == 4 and facts["resumed"][0]["lost_seconds"] >= 0
    assert facts["seconds"] < facts["finished"] - facts["started"] + 1e-3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(tmp_path, fault, capsys):
    for seed in range(4):  # which file, and where
        out = tmp_path / str(seed)
        saves, state, record = stage(out)
        advance(saves, state, record, 3)
        killed(record)
        fault(out / "resume" / "000002", random.Random(seed))
        saves, state, record = stage(out)
        assert state.step == 2 and ("is damaged" in capsys.readouterr().err) == (fault.__name__ != "half")
        advance(saves, state, record, 1)
        killed(record)
        assert stage(out)[1].step == 3


def test_a_stage_whose_states_are_all_damaged_starts_at_its_first_step(tmp_path, capsys):
    saves, state, record = stage(tmp_path)
    advance(saves, state, record, 2)
    killed(record)
    for name in ("000000", "000001"):
        (tmp_path / "resume" / name / "state.json").write_text("{")
    saves, state, record = stage(tmp_path)
    assert state.step == 0 and capsys.readouterr().err.count("is damaged") == 2
    assert "resumed" not in record.facts and (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("change", ["settings", "inputs", "code", "packages"])
def test_a_state_of_another_stage_is_not_used(tmp_path, change, capsys, monkeypatch):
    given, own = tmp_path / "data.jsonl", tmp_path / "own.py"
    given.write_text("1")
    own.write_text("1")
    out, settings = tmp_path / "out", {"rewards": {f"{own}:reward": 1.0}}
    saves, state, record = stage(out, [given], **settings)
    advance(saves, state, record, 2)
    killed(record)
    if change == "settings":
        settings["seed"] = 1
    elif change == "inputs":
        os.utime(given, ns=(0, 0))
    elif change == "code":
        own.write_text("2")
    else:
        monkeypatch.setattr("algos.training.stage.environment.version", lambda name: "0")
    assert stage(out, [given], **settings)[1].step == 0
    assert f"is of a stage with other {change};" in capsys.readouterr().err


def test_a_state_is_absent_until_it_is_whole(tmp_path, monkeypatch):
    write(tmp_path, {"n": 1}, TENSORS, {})
    monkeypatch.setattr(module.Path, "rename", lambda *_: 1 / 0)  # killed before it has its name
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, {"n": 2}, TENSORS, {})
    monkeypatch.undo()
    assert verified(tmp_path / "000000")["n"] == 1 and not (tmp_path / "000001").exists()
    write(tmp_path, {"n": 3}, TENSORS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "000001"]
    suffixes = {path.suffix for path in (tmp_path / "000001").iterdir()}
    assert suffixes == {".safetensors", ".json", ".sha256"}


def test_tensors_that_share_memory_and_files_of_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BYTES_A_FILE", 24)
    shared = torch.arange(6.0)
    write(tmp_path, {}, {"a": shared, "b": shared[:3], "c": shared.view(2, 3).t()}, {})
    loaded = {
        key: t for path in (tmp_path / "000000").glob("*.safetensors") for key, t in module.load_file(path).items()
    }
    assert torch.equal(loaded["b"], shared[:3]) and torch.equal(loaded["c"], shared.view(2, 3).t())
    assert len([*(tmp_path / "000000").glob("*.safetensors")]) > 1


def test_short_stages_save_nothing_and_costly_states_are_saved_less_often(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    saves, state, record = stage(tmp_path, saving=Saving())
    now[0] = 599.0
    advance(saves, state, record, 1)
    assert not (tmp_path / "resume").exists()
    now[0] = 601.0
    advance(saves, state, record, 1)
    assert numbers(tmp_path) == ["000000"] and saves.last == 601.0
    saves.seconds = 12.0  # of the one save: 1 % is 20 minutes
    now[0] = 601.0 + 1199.0
    advance(saves, state, record, 1)
    assert saves.count == 1
    now[0] = 601.0 + 1201.0
    advance(saves, state, record, 1)
    assert saves.count == 2
    killed(record)
