"""An MLflow server that is slow, answers 500, goes away, comes back, or never does: training does not notice.

    python -m tests.faults.server

A logger writes lines all the time, a program mirrors them again and again, and the server takes one fault after the
other. At last the server is well, the study is mirrored once more, and MLflow's points are compared with the files.
Then the server goes away for good: mirroring says so in time, and the files are whole.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

from algos.training.stage.mirror import PATIENCE, mirror_once
from tests.faults.loggers import log, mirror, report

MODES = ("well", "slow", "errors", "away", "well")


class FaultyServer:
    """MLflow's own server in a thread of this process; `mode` says how it fails."""

    def __init__(self, folder: Path, mode: str = "well"):
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/server.db"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "artifacts")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self.port, self.numbers, self.running = 0, count(), None
        self.mode = mode
        self.turn(mode)
        self.uri = f"http://127.0.0.1:{self.port}"

    def turn(self, mode: str) -> None:
        from werkzeug.serving import make_server

        self.mode = mode
        if mode == "away" and self.running is not None:
            self.running.shutdown()
            self.running.server_close()
            self.running = None
        elif mode != "away" and self.running is None:
            self.running = make_server("127.0.0.1", self.port, self.answer, threaded=True)
            self.port = self.running.server_port
            threading.Thread(target=self.running.serve_forever, daemon=True).start()

    def answer(self, environ, start_response):
        """Every request is done. In the mode `errors` every other answer is 500, so that the client does it again."""
        from mlflow.server import app

        if self.mode == "slow":
            time.sleep(1.0)
        if self.mode != "errors" or next(self.numbers) % 2:
            return app(environ, start_response)
        for _ in app(environ, lambda *_: None):
            pass
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"broken"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each fault")
    args = parser.parse_args()
    os.environ.update(PATIENCE)
    with tempfile.TemporaryDirectory() as scratch:
        start, results = multiprocessing.get_context("fork"), Path(scratch) / "study"
        lines = int(len(MODES) * args.seconds / 0.1)
        logger = start.Process(target=log, args=(results / "stages" / "stage" / "seed0", lines, 0.1))
        logger.start()  # before the threads of the server
        server, done = FaultyServer(Path(scratch)), threading.Event()
        mirrors = threading.Thread(target=mirror, args=(results, server.uri, done))
        mirrors.start()
        for mode in MODES:
            server.turn(mode)
            time.sleep(args.seconds)
        logger.join()
        done.set()
        mirrors.join()
        assert mirror_once(results, server.uri, "study")["errors"] == []
        server.turn("away")
        begin = time.monotonic()
        errors = mirror_once(results, server.uri, "study")["errors"]
        print(f"with the server away for good, mirroring ended after {time.monotonic() - begin:.0f} s: {errors}")
        server.turn("well")
        report([results], server.uri)


if __name__ == "__main__":
    main()
