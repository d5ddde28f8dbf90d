"""The records of a study's results folder, and what MLflow is shown of one: names, tags, parameters, data sets."""

import fcntl
import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("data", "models", "stages")  # of a study's results
FILES = (
    "run.json",
    "metrics.jsonl",
    "samples.jsonl",
    "scores.json",
    "responses.jsonl",
    "other_responses.jsonl",
    "accepted.jsonl",
    "failed_batch.jsonl",
)
GROUPS = {  # a metric's group: the first whose pattern is that of its whole name; docs/metrics.md describes each metric
    "memory": r"memory\..*|peak_bytes|parameters|vocabulary",
    "time": r".*seconds(\..*)?|.*_per_second",
    "critic": r"value_.*|return_mean|td_error|explained_variance|critic_.*",
    "ratio": r"(sequence_)?ratio_.*|.*clip_fraction.*|approx_kl_.*|sampler_.*|canary_.*|router_.*|stale.*"
    r"|correction_weight|gate_.*|response_(weight.*|drift)|(off_policy|left_out)_fraction|covariance_.*",
    "length": r".*_tokens.*|truncation_rate|eos_rate|generated_responses|.*_problems",
    "reward": r"reward.*|(dev_)?accuracy|.*groups.*|advantage_.*|kept_responses|sampling_rounds|pair_accuracy.*"
    r"|held_out.*|margin_.*|score_.*|accept.*|unique_per_prompt|prompts_.*|hint.*|(flipped|pairs).*",
    "policy": r"(.*_)?entropy|kl_(to_ref|coef|after).*|penalty_coef|(forward|reverse)_kl|.*_logprob",
}
OTHER = "loss"
MEASURED = ("time", "memory")  # groups of figures that differ each time that a stage is made
ENDED = {"finished": "FINISHED", "interrupted": "KILLED"}  # how run.json says that a process has ended
PARAMETERS = {"settings": "", "estimator": "estimator.", "packages": "package.", "hardware": "hardware."}
DATA_OPTIONS = {
    **dict.fromkeys(("--prompts", "--data", "--pairs"), "training"),
    **{"--dev": "validation", "--problems": "evaluation"},
}


def find_records(results: Path, name: str = "run.json") -> list[Path]:
    """The directories of this study that hold a record; studies in folders below are left out."""
    return sorted({path.parent for folder in FOLDERS for path in (results / folder).rglob(name)})


def key_of(results: Path, directory: Path) -> str:
    return directory.relative_to(results).as_posix()


@dataclass(frozen=True)
class Kept:
    """A record as it lies in its directory."""

    directory: Path
    prefix: str  # of its files: "interrupted-" where the run was stopped and has set them aside
    facts: dict  # run.json

    @property
    def started(self) -> str:
        """Tells the record from one that was made in the same directory at another time."""
        return str(int(self.facts["started"] * 1000))

    @property
    def status(self) -> str:
        """FINISHED, RUNNING, KILLED (by a signal) or FAILED.

        A process holds a lock on its metrics, which ends with it, however it ends.
        """
        if self.facts["status"] in ENDED:
            return ENDED[self.facts["status"]]
        try:
            with self._metrics.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or on a file system without locks
            return "RUNNING"
        return "FAILED"

    @property
    def ended(self) -> float:
        return self.facts.get("finished") or self._metrics.stat().st_mtime

    @property
    def lines(self) -> list[dict]:
        """Of metrics.jsonl; a last line without its end is not fully written yet."""
        return [json.loads(line) for line in self._metrics.read_text(encoding="utf-8").split("\n")[:-1]]

    @property
    def files(self) -> list[Path]:
        return [path for name in FILES if (path := self.directory / f"{self.prefix}{name}").is_file()]

    @property
    def _metrics(self) -> Path:
        return self.directory / f"{self.prefix}metrics.jsonl"


def read_record(directory: Path) -> Kept:
    """The record of a directory. One that was set aside counts where there is none other."""
    prefix = "" if (directory / "run.json").is_file() else "interrupted-"
    return Kept(directory, prefix, json.loads((directory / f"{prefix}run.json").read_text(encoding="utf-8")))


def metric_name(name: str, group: str | None = None) -> str:
    """clip_fraction -> ratio/clip_fraction. MLflow draws a section for each group; it allows no @ in a name."""
    found = group or next((g for g, pattern in GROUPS.items() if re.fullmatch(pattern, name)), OTHER)
    return f"{found}/{name.replace('@', '_at_')}"


def same_again(line: dict) -> dict:
    """The figures of a line of metrics that are the same whenever the stage is made again: all but measured ones."""
    patterns = ("time", *(GROUPS[group] for group in MEASURED))
    return {key: value for key, value in line.items() if not any(re.fullmatch(p, key) for p in patterns)}


def flatten(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def numbers(values: dict, group: str | None = None) -> dict[str, float]:
    """The metrics among the values, by the name that MLflow has for them."""
    return {
        metric_name(name, group): value
        for name, value in values.items()
        if isinstance(value, int | float) and name not in ("step", "time")
    }


def totals(facts: dict) -> dict[str, float]:
    """Numbers of a whole run that no line of its metrics has; none before the run is finished."""
    parts = {name: facts.get(name, {}) for name in ("memory", "phase_seconds")}
    counts = {name: facts[name] for name in ("optimizer_steps", "generated_responses") if name in facts}
    return numbers({**flatten(parts), **facts.get("peak_memory", {}), **counts})


def parameters(facts: dict) -> dict[str, str]:
    """A record's settings, and what they ran on."""
    return _flat(facts, PARAMETERS)


def shared_parameters(facts: dict) -> dict[str, str]:
    """The parameters that all seeds of a stage have in common, wherever they run."""
    values = _flat(facts, {name: prefix for name, prefix in PARAMETERS.items() if name in ("settings", "estimator")})
    return {name: value for name, value in values.items() if not name.endswith("seed")}


def _flat(facts: dict, sections: dict[str, str]) -> dict[str, str]:
    flat = [flatten(facts.get(section, {}), prefix) for section, prefix in sections.items()]
    return {name: str(value) for part in flat for name, value in part.items()}


def tags(facts: dict) -> dict[str, str]:
    """What runs are grouped and filtered by, and where a run comes from."""
    command = facts["command"]
    named = {name: facts.get(name) for name in ("kind", "algorithm", "trainer", "seed", "device")}
    named["from"] = started_from(command)
    return {
        **{name: str(value) for name, value in named.items() if value is not None},
        "mlflow.source.name": command[2],
        "mlflow.source.git.commit": str(facts.get("commit")),
        "command": shlex.join(command),
    }


def started_from(command: list[str]) -> str | None:
    """The stage or model whose checkpoint a stage starts from, if it has one."""
    path = command[command.index("--from") + 1] if "--from" in command else ""
    found = re.search(r"(?:^|/)(?:stages|models)/([^/]+)(?:/seed\d+)?/checkpoint$", path)
    return found and found[1]


def data_sets(command: list[str]) -> list[tuple[str, str, str, str]]:
    """The files that a stage read: name, digest, source and context of each that is still there."""
    found = []
    for option, context in DATA_OPTIONS.items():
        path = Path(command[command.index(option) + 1]) if option in command else None
        files = sorted(path.glob("*.jsonl")) if path and path.is_dir() else [path]
        for file in filter(Path.is_file, filter(None, files)):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            found.append(("/".join(file.with_suffix("").parts[-3:]), digest, json.dumps({"uri": str(file)}), context))
    return found
