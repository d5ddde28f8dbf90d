"""A process that has imported what stages need, and forks one child for each: a stage starts in no time.

Snakemake starts it with the study (`start`), and it ends with Snakemake. The jobs' `python -m MODULE ...` is, by the
shell prefix in common.smk, `python pipelines/warm.py -m MODULE ...`: that asks the warm process for a child with this
command, working directory, environment and standard streams, passes signals on, and exits as the child does. Wherever
the child could differ from a new process (other Python, folder or environment, edited code, no warm process), it is a
new process. Nothing is shared but what importing gives: no CUDA, no threads, no random state that a stage uses.
`WARM=0 snakemake ...` does without.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

SOCKET = "WARM_SOCKET"  # the environment variable that tells jobs where the warm process listens
STAGES = (
    "algos.training.models.build",
    "algos.training.rewards.preferences",
    "algos.training.rewards.reward_model",
    "algos.training.supervised.sft",
    "algos.training.supervised.rejection_sampling",
    "algos.training.supervised.expert_iteration",
    "algos.training.supervised.distillation",
    "algos.training.train",
    "evaluation.evaluate",
)
FIXED = ("PYTHON", "LD_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "VLLM_")  # environment that imports look at
STARTED = b"started\n"
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL, for a stage whose job has died


def start() -> None:
    """Start the warm process, to end with this one; name its socket in the environment that jobs inherit."""
    if os.environ.get("WARM") == "0" or not hasattr(os, "pidfd_open"):  # Linux
        return
    folder = tempfile.mkdtemp(prefix="warm-")  # mode 0700: what it starts runs as this user
    if len(folder) > 90:  # a socket's path has 107 characters
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="warm-", dir="/tmp")
    os.environ[SOCKET] = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[SOCKET])  # here, so that the first job finds it; it waits for the imports
        listener.listen(128)
        files = [listener.fileno(), os.pidfd_open(os.getpid())]
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.warm", "--serve", *map(str, files)],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(files[1])


# The job's side: the standard library only, 20 ms


def job(words: list[str]) -> int:
    """Run `python *words`, in a child of the warm process if that can be; returns the exit status."""
    path = os.environ.get(SOCKET)
    if path and len(words) > 1 and words[0] == "-m" and words[1] in STAGES:
        with socket.socket(socket.AF_UNIX) as connection:
            status = ask(connection, path, words[1:])
        if status is not None:
            return status
    os.execv(sys.executable, [sys.executable, *words])


def ask(connection: socket.socket, path: str, words: list[str]) -> int | None:
    """The exit status of a child of the warm process; None if it started none."""
    request = {"words": words, "directory": os.getcwd(), "python": sys.executable, "environment": dict(os.environ)}
    payload = json.dumps(request).encode()
    passed_on = []

    def pass_on(number, frame):
        passed_on.append(number)
        with suppress(OSError):
            connection.send(bytes([number]))

    answers = connection.makefile("rb")
    try:
        connection.connect(path)
        socket.send_fds(connection, [len(payload).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(payload)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background
                signal.signal(number, pass_on)
        started = answers.readline() == STARTED
    except OSError:  # no one there, or gone before it started the stage
        started = False
    if not started:
        for number in passed_on:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return None
    try:
        return int(answers.readline())
    except (OSError, ValueError):
        print("error: the warm process ended before the stage did; WARM=0 does without it.", file=sys.stderr)
        return 1


# The warm process


class Warm:
    """Listens until the process of the handle `parent` has ended and no stage is left."""

    def __init__(self, listener: socket.socket, parent: int):
        self.listener, self.parent = listener, parent
        self.settings = fixed(os.environ)
        self.events = selectors.DefaultSelector()  # file -> what to do when it can be read
        self.children: dict[int, socket.socket] = {}  # a stage's handle -> its job
        self.kill_at: dict[int, float] = {}  # stages whose job has died
        self.code: dict[str, tuple[int, int]] = {}

    def serve(self) -> list[str] | None:
        """Fork a child for every job. Returns None at the end, and, in a child, what it has to run."""
        started = time.time_ns()
        warm_up()
        self.code = code()
        if (
            max(changed for changed, _ in self.code.values()) > started
        ):  # edited meanwhile: which of the two was imported?
            return self.close()
        self.events.register(self.listener, selectors.EVENT_READ, self.accept)
        self.events.register(self.parent, selectors.EVENT_READ, self.close)
        while self.events.get_map():
            for key, _ in self.events.select(1.0 if self.kill_at else None)[:1]:  # it may end what the others are of
                if (words := key.data()) is not None:
                    return words
            for handle, moment in self.kill_at.items():
                if time.monotonic() > moment:
                    send(handle, signal.SIGKILL)
        return None

    def close(self) -> None:
        """Nothing new from here on: Snakemake has ended. Stages that outlive it are waited for."""
        for file in (self.listener, self.parent):
            if self.events.get_map() and file in self.events.get_map():
                self.events.unregister(file)
        with suppress(OSError):
            os.unlink(self.listener.getsockname())
            os.rmdir(os.path.dirname(self.listener.getsockname()))
        self.listener.close()

    def accept(self) -> list[str] | None:
        """Start what a job asks for, or close the connection: then the job runs a process of its own."""
        connection, _ = self.listener.accept()
        streams: list[int] = []
        with suppress(OSError, ValueError):
            request, streams = receive(connection)
            ours = (interpreter(sys.executable), os.getcwd(), self.settings)
            asked = (interpreter(request["python"]), request["directory"], fixed(request["environment"]))
            if asked == ours and self.code == code() and can_fork():
                server, pid = os.getpid(), os.fork()
                if pid == 0:
                    for file in (self.events, self.listener, connection, *self.children.values()):
                        file.close()
                    for handle in (self.parent, *self.children):
                        os.close(handle)
                    sys.executable = request["python"]
                    become(request["environment"], streams, server)
                    return request["words"]
                with suppress(OSError):
                    os.setpgid(pid, pid)  # here and in the child, so that it is so whoever is first
                self.watch(pid, connection)
                connection = None
        for stream in streams:
            os.close(stream)
        if connection is not None:
            connection.close()
        return None

    def watch(self, pid: int, connection: socket.socket) -> None:
        handle = os.pidfd_open(pid)
        self.children[handle] = connection

        def heard() -> None:
            """Pass the job's signals on; a job that has gone takes its stage with it."""
            signals = b""
            with suppress(OSError):
                signals = connection.recv(16)
            for number in signals:
                if number == signal.SIGINT:  # like Ctrl-C in a terminal: to all that the stage has started, too
                    os.killpg(pid, number)
                else:
                    send(handle, number)
            if not signals:
                self.events.unregister(connection)
                self.kill_at[handle] = time.monotonic() + GRACE_SECONDS
                send(handle, signal.SIGTERM)

        def ended() -> None:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self.events.unregister(handle)
            if connection in self.events.get_map():
                self.events.unregister(connection)
            del self.children[handle]
            self.kill_at.pop(handle, None)
            with connection, suppress(OSError):
                connection.sendall(b"%d\n" % (status if status >= 0 else 128 - status))
            os.close(handle)

        self.events.register(handle, selectors.EVENT_READ, ended)
        self.events.register(connection, selectors.EVENT_READ, heard)
        with suppress(OSError):
            connection.sendall(STARTED)


def send(handle: int, number: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A job's request, and its standard streams."""
    connection.settimeout(10.0)
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    payload = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    connection.settimeout(None)
    return json.loads(payload), streams


def warm_up() -> None:
    """Import what stages import before their work. Not TRL's trainers: their libraries start threads."""
    import gc
    from importlib import import_module

    from algos.training.stage import record

    record._start_quickly()
    for name in STAGES:
        import_module(name)
    import numpy  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM  # noqa: F401

    AutoModelForCausalLM._model_mapping  # noqa: B018  # looked up when first used
    gc.freeze()  # no child's collections look at these again
    if os.fork() == 0:  # OpenBLAS ends its threads at the first fork, and makes new ones where it computes
        os._exit(0)
    os.wait()


def code() -> dict[str, tuple[int, int]]:
    """Time and size of the project's imported files: a stage runs the code that is there when it starts."""
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    found = {}
    for file in files:
        if file.startswith(os.getcwd() + os.sep) and "site-packages" not in file:
            status = os.stat(file)
            found[file] = (status.st_mtime_ns, status.st_size)
    return found


def interpreter(executable: str) -> tuple[str, str]:
    """Its environment's folder and its file: python and python3 of one environment are one interpreter."""
    return os.path.dirname(executable), os.path.realpath(executable)


def fixed(environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(FIXED)}


def can_fork() -> bool:
    """Whether a child would be whole: threads and CUDA do not survive a fork."""
    import torch

    return len(os.listdir("/proc/self/task")) == 1 and not torch.cuda.is_initialized()


def become(environment: dict[str, str], streams: list[int], server: int) -> None:
    """Make this child what a new process of the job would be."""
    import ctypes
    import warnings

    import numpy

    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no stage outlives the one who knows of it
    if os.getppid() != server:
        os._exit(1)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.environ.clear()
    os.environ.update(environment)
    numpy.random.seed()  # Python's own does so by itself; torch's always begins at the same seed
    warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)


def main() -> None:
    if sys.argv[1:2] != ["--serve"]:
        raise SystemExit(job(sys.argv[1:]))
    words = Warm(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])).serve()
    if words is not None:
        import runpy

        sys.argv[1:] = words[1:]
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)  # as `python -m` does


if __name__ == "__main__":
    main()
