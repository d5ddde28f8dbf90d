"""What a run of Snakemake shows: lines for its jobs, on a terminal and in a log."""

import io
import logging
import os
from contextlib import redirect_stderr

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter, logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from algos.training.stage.record import Progress
from pipelines.workflow import progress
from pipelines.workflow.progress import Job, Jobs, JobsOnTerminal, Screen, duration

BAR = "[###.................] 12/30  34 s  reward 0.8"


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch):
    monkeypatch.setattr(progress, "duration", lambda seconds: "0 s")


def event(name: LogEvent, **facts) -> logging.LogRecord:
    record = logging.makeLogRecord(facts)
    record.event = name
    return record


def begin(jobs: Jobs, number: int, name: str, log: str = "") -> None:
    jobs.handle(event(LogEvent.JOB_INFO, jobid=number, rule_msg=name, log=[log] if log else []))


def end(jobs: Jobs, number: int, done: int) -> None:
    jobs.handle(event(LogEvent.JOB_FINISHED, job_id=number))
    jobs.handle(event(LogEvent.PROGRESS, done=done, total=9))


def test_a_job_is_where_the_last_progress_line_of_its_log_says(tmp_path):
    path = tmp_path / "log.txt"
    job = Job("Train ppo, seed 0", [str(path)])
    assert job.state() == "0 s"
    with path.open("w") as log, redirect_stderr(log):
        shown = Progress(30, "ppo/seed0")
        shown.update(12, reward=0.8)
        print("a warning" * 100, file=log)
    assert job.state() == "[########............] 12/30  0 s  reward 0.8"
    os.utime(path, (0, job.started - 60))  # of an earlier run, while the job waits in a queue
    assert job.state() == "0 s"


def test_in_a_log_each_job_has_a_line_at_its_beginning_where_it_moves_on_and_at_its_end(tmp_path):
    said: list[str] = []
    jobs, log = Jobs(said.append), tmp_path / "log.txt"
    begin(jobs, 4, "Train ppo, seed 0", str(log))
    log.write_text(f"  ppo/seed0 {BAR}\n")
    jobs.look()
    jobs.look()
    end(jobs, 4, done=3)
    jobs.handle(event(LogEvent.JOB_INFO, jobid=0, rule_msg=None, log=[]))  # the rule all
    assert said == ["begins: Train ppo, seed 0", f"Train ppo, seed 0 {BAR}", "3/9 Train ppo, seed 0: 0 s"]
    assert not jobs.running


def test_a_failed_job_runs_no_longer():
    jobs = Jobs(lambda line: None)
    begin(jobs, 4, "Train ppo, seed 0")
    jobs.handle(event(LogEvent.JOB_ERROR, jobid=4))
    assert not jobs.running


def test_on_a_terminal_running_jobs_are_drawn_again_below_what_is_said():
    terminal = io.StringIO()
    screen = Screen(terminal)
    jobs = JobsOnTerminal(screen)
    begin(jobs, 1, "Train ppo, seed 0")
    begin(jobs, 2, "Evaluate base")
    assert terminal.getvalue().endswith("Train ppo, seed 0  0 s\nEvaluate base      0 s\n")
    end(jobs, 1, done=5)
    jobs.look()
    again = "5/9 Train ppo, seed 0: 0 s\nEvaluate base  0 s\n5 of 9 jobs done\n"
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K" * 2 + again) and terminal.getvalue().count("5/9") == 1
    written = len(terminal.getvalue())
    jobs.look()
    assert len(terminal.getvalue()) == written  # nothing has changed
    screen.write("half a ")
    screen.flush()
    screen.write("line\n")
    screen.flush()
    assert "\x1b[2Khalf a line\nEvaluate base  0 s\n" in terminal.getvalue()


@pytest.mark.parametrize("asked", [{}, {"quiet": {Quietness.ALL}}, {"verbose": True}, {"printshellcmds": True}])
def test_snakemake_says_it_itself_where_it_is_asked_for_more_or_less(asked):
    settings = {"quiet": set(), "debug_dag": False, "verbose": False, "dryrun": False, "printshellcmds": False} | asked
    stream = io.StringIO()
    own = ColorizingTextHandler(stream=stream, formatter=DefaultFormatter(), filter=DefaultFilter(**settings))
    before = list(logger.handlers)
    logger.handlers[:] = [own]
    try:
        progress.follow()
        assert len(logger.handlers) == (1 if asked else 2)
        begins = event(LogEvent.JOB_INFO, jobid=1, rule_msg="Train", log=[], reason="", indent=False)
        for handler in logger.handlers:
            handler.handle(begins)
        assert ("begins: Train" in stream.getvalue()) == (not asked) and ("Job 1" in stream.getvalue()) == (
            bool(asked) and "quiet" not in asked
        )
    finally:
        logger.handlers[:] = before


@pytest.mark.parametrize("seconds, text", [(61, "61 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
