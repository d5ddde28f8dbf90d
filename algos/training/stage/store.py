"""MLflow's store, opened; a SQLite file is made whole or not at all."""

import fcntl
import logging
import os
from pathlib import Path

SQLITE = "sqlite:///"


def open_store(uri: str):
    """MLflow's client of a tracking URI."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE).partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of the one program that may make it; a kill opens it, too
            if not path.exists():
                _make(path)
    return MlflowClient(tracking_uri=uri)


def _make(path: Path) -> None:
    """A new store, made beside its place and moved there when it is whole.

    MLflow makes its tables in some fifty steps. A program that ends amid them, or a second one that makes them too,
    leaves a file that nothing can open any more.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    making = path.with_name(f".{path.name}.making")
    for left in path.parent.glob(f"{making.name}*"):  # by one that was killed, with its journal
        left.unlink()
    store = SqlAlchemyStore(f"{SQLITE}{making}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    os.replace(making, path)
