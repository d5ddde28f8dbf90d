"""The GPUs of this machine, and how each job takes one of them. Nothing of CUDA is started for that."""

import os
import re
import shlex
import tempfile
from pathlib import Path

HELD = Path(tempfile.gettempdir()) / f"rlcompare-gpus-{os.getuid()}"  # lock files, those of all studies on the machine
MOST = 16  # jobs on one GPU


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them or, where it is not set, by number."""
    found = [str(number) for number, _ in enumerate(devices.glob("nvidia[0-9]*"))]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or named is None:
        return found
    return [name for name in re.split(r"[,\s]+", named) if name not in ("", "-1", "NoDevFiles")]


def take_one(gpus: list[str], held: Path = HELD) -> str:
    """Lines of bash: the shell and what it runs see only the one of these GPUs that the fewest other jobs have taken.

    A GPU is taken by a lock on a file, which ends with the last process of the job, however that ends. With one GPU or
    none there is nothing to choose, and no line.
    """
    if len(gpus) < 2:
        return ""
    names, folder = " ".join(map(shlex.quote, gpus)), shlex.quote(str(held))
    return (
        f"mkdir -p -m 700 {folder}; exec 8> {folder}/choosing; flock 8; fewest={MOST}; lock=; "
        f"for gpu in {names}; do taken=0; free=; for turn in {{1..{MOST}}}; do"
        f' file={folder}/"${{gpu//\\//_}}.$turn"; if flock -n "$file" true; then free="${{free:-$file}}";'
        " else taken=$((taken + 1)); fi; done;"
        ' if [ $taken -lt $fewest ]; then fewest=$taken; lock="$free"; export CUDA_VISIBLE_DEVICES="$gpu"; fi; done; '
        'if [ -n "$lock" ]; then exec 9> "$lock"; flock -n 9; fi; exec 8>&-; '
    )
