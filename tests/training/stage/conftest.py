"""An MLflow store for each test, and a stage's main in the process of other tests."""

import shutil
import sys

import pytest

from algos.training.stage import record, signals


@pytest.fixture
def guarded(monkeypatch):
    """main_guard without what it changes in its process: handlers and hooks."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(signals, "listen", lambda: None)
    monkeypatch.setattr(record.Record, "unfinished", [])


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its tables, which take seconds to make."""
    from mlflow import MlflowClient

    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{store}").search_experiments()
    return store


@pytest.fixture
def uri(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
