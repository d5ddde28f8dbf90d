"""A small sample of tests/faults: several writers at one store, and a server with faults."""

import threading
from types import SimpleNamespace

from algos.training.stage.mirror import mirror_once
from tests.faults.loggers import log, points, trial
from tests.faults.server import FaultyServer

THREADS = SimpleNamespace(Process=threading.Thread, Event=threading.Event)


def test_no_point_is_lost_and_none_comes_twice_with_several_loggers_and_writers(tmp_path, uri):
    for results in trial(tmp_path, uri, 6, 2, 20, 0.01, THREADS):
        assert points(results, uri) == ({}, {})


def test_a_server_that_loses_answers_or_is_away_costs_no_point_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    results, server = tmp_path / "study", FaultyServer(tmp_path)
    log(results / "stages" / "grpo" / "seed0", 3)
    server.turn("away")
    (error,) = mirror_once(results, server.uri, "study")["errors"]
    assert "Connection refused" in error or "Max retries" in error
    server.turn("errors")
    mirror_once(results, server.uri, "study")
    server.turn("well")
    assert mirror_once(results, server.uri, "study")["errors"] == []
    assert points(results, server.uri) == ({}, {})
    server.turn("away")
