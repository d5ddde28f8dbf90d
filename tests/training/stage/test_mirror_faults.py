"""A small sample of tests/faults: several writers at one store, and a server with faults."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from algos.training.stage.mirror import mirror_once
from algos.training.stage.store import open_store
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


def test_a_new_store_is_made_once_and_whole(tmp_path, monkeypatch):
    """Eight programs made the tables of one SQLite file at once, and left a file that nothing could open any more."""
    path, made = tmp_path / "mlflow.db", []
    (tmp_path / ".mlflow.db.making").write_bytes(b"half of a store that a kill left behind")
    (tmp_path / ".mlflow.db.making-journal").write_bytes(b"\x00")
    plain = SqlAlchemyStore.__init__

    def slow(store, uri, *rest):
        if "making" in uri:
            assert not path.exists()
            made.append(uri)
            time.sleep(0.1)  # the others come
        plain(store, uri, *rest)

    monkeypatch.setattr(SqlAlchemyStore, "__init__", slow)
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(open_store, [f"sqlite:///{path}"] * 4))
    assert len(made) == 1 and all(client.search_experiments() for client in clients)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
