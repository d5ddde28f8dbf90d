"""Rewards in files of the user's own: `rewards: {my_rewards.py:politeness: 0.2}`.

The function takes four lists of equal length, (prompts, responses, answers, rows), and returns a list of numbers, one a
response. A prompt is text or chat messages, a response is text, an answer is the gold answer as text, and a row is the
row of the data file. It may be slow: own_threads calls it on parts of a batch side by side, own_seconds bounds a batch.
"""

import copy
import math
import re
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from threading import Thread
from types import FunctionType

from algos.own_code import from_file
from algos.pieces.settings import SettingsError
from algos.training.rewards.rules import RULES, Response, RewardSettings

HANGS = 3600.0  # seconds for a batch, where the settings name no limit
OWN = re.compile(r".+\.py:\w+")


class RewardFailure(SettingsError):
    """A reward of the user's own raises, hangs or returns what is no number; text: the response that it fails on."""

    def __init__(self, message: str, text: str | None = None):
        super().__init__(message)
        self.text = text


def is_own(name: str) -> bool:
    return OWN.fullmatch(name) is not None


def check_labels(names: Collection[str]) -> None:
    """Raise ValueError if two rewards would be logged as one: an own reward is logged by its function's name."""
    by_label: dict[str, str] = {}
    for name in names:
        label = name.rpartition(":")[2]
        if is_own(name) and label in (*RULES, "reward_model"):
            raise ValueError(f"rewards: {name} has the name of a built-in reward; give the function another one")
        if (other := by_label.setdefault(label, name)) != name:
            raise ValueError(
                f"rewards: {other} and {name} would both be logged as reward_{label}; give a function another name"
            )


def file_of(name: str) -> Path:
    return Path(name.rpartition(":")[0])


def function_of(name: str) -> Callable:
    """The function. Raises SettingsError if its file is not there or defines none of that name."""
    path, _, function = name.rpartition(":")
    return from_file(f"{path}:{function}", "", FunctionType, "rewards")


def own_reward(name: str, responses: list[Response], settings: RewardSettings) -> list[float]:
    """The rewards (B,) of B responses. Raises RewardFailure that names the first row on which the function fails."""
    function = function_of(name)
    size = -(-len(responses) // settings.own_threads)
    parts = [responses[start : start + size] for start in range(0, len(responses), size)]
    seconds, started = settings.own_seconds or HANGS, time.monotonic()
    futures = [_started(name, function, part) for part in parts]
    try:
        results = [future.result(max(seconds - (time.monotonic() - started), 0.0)) for future in futures]
    except TooLate:
        raise RewardFailure(
            f"rewards: {name} took more than reward_settings.own_seconds = {seconds:g} for the "
            f"{len(responses)} responses of a batch."
        ) from None
    return [score for scores in results for score in scores]


def _started(name: str, function: Callable, responses: list[Response]) -> Future:
    """A call in a thread of its own. A call that never returns does not keep the process from ending."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(_scores(name, function, responses))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def _scores(name: str, function: Callable, responses: list[Response]) -> list[float]:
    try:
        scores = _call(function, responses)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        if len(responses) == 1:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            text = responses[0].text
            raise RewardFailure(f"rewards: {name} fails on {_row(responses[0])}: {reason}.", text) from error
        for response in responses:
            _scores(name, function, [response])
        raise RewardFailure(f"rewards: {name} fails on a batch, but on no row alone: {error}.") from error
    if not isinstance(scores, list | tuple) or len(scores) != len(responses):
        raise RewardFailure(
            f"rewards: {name} must return a list of {len(responses)} numbers, one a response, got {str(scores)[:80]!r}."
        )
    numbers = [_number(score) for score in scores]
    for response, score, number in zip(responses, scores, numbers, strict=True):
        if not math.isfinite(number):
            wanted = f"rewards: {name} must return finite numbers"
            raise RewardFailure(f"{wanted}, got {repr(score)[:80]} for {_row(response)}.", response.text)
    return numbers


def _number(score) -> float:
    """What the user's code returned for one response as a number; NaN for what is none."""
    try:
        return math.nan if isinstance(score, str | bytes) else float(score)
    except Exception:  # a list, a tensor of several numbers, an integer beyond the range, ...
        return math.nan


def _call(function: Callable, responses: list[Response]):
    rows = [copy.deepcopy(response.problem) for response in responses]  # what it changes in them changes nothing else
    answers = [next(iter(response.grader.gold(response.problem)), "") for response in responses]
    return function([row["prompt"] for row in rows], [response.text for response in responses], answers, rows)


def _row(response: Response) -> str:
    return f"row {response.problem.get('id', response.problem.get('question', ''))!r}, response {response.text[:60]!r}"
