"""PostgreSQL as the store of an MLflow server with users and an artifact store: many loggers, no point lost or doubled.

    python -m tests.faults.postgres --loggers 32 --studies 8 --lines 300

Needs Debian's postgresql and, in the environment of the server, `pip install psycopg2-binary flask-wtf`. The database
lies in a temporary folder, takes a password, and listens on 127.0.0.1 alone. It does not run as root: started by root,
it is handed to the user `postgres`.
"""

import multiprocessing
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tests.faults.loggers import parser, report, trial

ADMIN = "admin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def database(folder: Path):
    """A PostgreSQL of its own; yields the URI of its database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    password, port, data = secrets.token_hex(8), free_port(), folder / "postgres"
    data.mkdir()
    (folder / "password").write_text(password)
    as_user = []
    if os.getuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (folder, data, folder / "password"):
            shutil.chown(path, "postgres")

    def run(program: str, *words: str) -> None:
        subprocess.run([*as_user, str(programs / program), *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("initdb", "-D", str(data), "-U", "suite", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
    listen = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    run("pg_ctl", "-D", str(data), "-w", "-o", listen, "-l", str(data / "log"), "start")
    try:
        yield f"postgresql://suite:{password}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "fast", "stop")


@contextmanager
def server(folder: Path, store: str):
    """MLflow's server on the database, with its artifacts in a folder and a password for users; yields its URI."""
    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = ADMIN, secrets.token_hex(8)
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\nadmin_username = {ADMIN}\n"
        f"admin_password = {os.environ['MLFLOW_TRACKING_PASSWORD']}\n"
    )
    secret = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
    port = free_port()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--app-name", "basic-auth", "--workers", "2"]
    words += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("w") as said:
        running = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], env={**os.environ, **secret}, stdout=said, stderr=said
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", running, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def wait_for(url: str, running: subprocess.Popen, said: Path, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and running.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"MLflow's server did not start:\n{said.read_text()[-3000:]}")


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    start = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory() as scratch,
        database(Path(scratch)) as store,
        server(Path(scratch), store) as uri,
    ):
        report(trial(Path(scratch), uri, args.loggers, args.studies, args.lines, args.pause, start), uri)


if __name__ == "__main__":
    main()
