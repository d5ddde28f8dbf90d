"""docs/http-reward.md, word for word, against a server that scores, fails or hangs."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from studies import PIPELINES, rl, small

from algos.pieces.settings import SettingsError
from algos.training.rewards.own import own_reward
from algos.training.rewards.rules import Response
from pipelines.study import Study

PAGE = (PIPELINES.parent / "docs" / "http-reward.md").read_text(encoding="utf-8")
RESPONSES = [
    Response("a" * i, 5, 20, False, {"id": f"train/{i}", "prompt": f"{i}?", "answer": f"#### {i}"}, "")
    for i in range(20)
]


def block(language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)[1]


class Server(ThreadingHTTPServer):
    """Scores a response by its length and its answer; `failures` of the requests are answered with 500."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.hangs = [], 0, threading.Event()
        self.hangs.set()  # cleared: requests wait


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        failed = len(self.server.requests) <= self.server.failures
        self.server.hangs.wait()
        scores = [len(text) + int(answer) for text, answer in zip(asked["responses"], asked["answers"], strict=True)]
        self.send_response(500 if failed else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": scores}).encode())

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.hangs.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def asked(server, tmp_path, monkeypatch):
    """Asks for the reward of RESPONSES, with the settings of the page and changes to them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "judge.py").write_text(block("python").replace(":8000/", f":{server.server_port}/"))
    stage = yaml.safe_load(block("yaml"))["judged"]
    (name,) = set(stage["rewards"]) - {"correctness"}

    def ask(**changes) -> list[float]:
        stages = {"grpo": rl(), "judged": {**stage, "reward_settings": {**stage["reward_settings"], **changes}}}
        return own_reward(name, RESPONSES, Study(small(**stages), "x").parsed("judged", 0).reward_settings)

    return ask


def test_the_scores_of_a_server_come_in_the_order_of_the_responses(server, asked):
    assert asked() == [2.0 * i for i in range(20)] and len(server.requests) == 7  # of 3 responses, the last of 2


def test_a_server_that_fails_twice_is_asked_again(server, asked):
    server.failures = 2
    assert asked(own_threads=1) == [2.0 * i for i in range(20)] and len(server.requests) == 3


def test_a_server_that_keeps_failing_stops_the_stage_and_the_row_is_named(server, asked):
    server.failures = 10_000
    with pytest.raises(SettingsError, match=r"judge.py:judge fails on row 'train/0', response '': HTTPError: .* 500"):
        asked(own_threads=1)
    assert len(server.requests) == 6  # the batch, then its first response alone


def test_a_server_that_hangs_stops_the_stage_after_own_seconds(server, asked):
    server.hangs.clear()
    started = time.monotonic()
    with pytest.raises(SettingsError, match=r"more than reward_settings.own_seconds = 0.2 for the 20 responses"):
        asked(own_seconds=0.2)
    assert time.monotonic() - started < 10


def test_without_a_server_the_reason_is_given(server, asked):
    server.shutdown()
    server.server_close()
    with pytest.raises(SettingsError, match=r"fails on row 'train/0', response '': URLError: .*refused"):
        asked(own_threads=1)
