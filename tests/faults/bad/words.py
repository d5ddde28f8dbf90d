"""Malformed command lines of every module of docs/command-line.md, each with what its one sentence must say."""

from tests.faults.bad.cases import Case

STUDY = "pipelines/studies/smoke.yaml"
STAGES = {  # the stages' commands, and the options that they require
    "algos.training.train": ["--from", "x", "--prompts", "x"],
    "algos.training.supervised.sft": ["--from", "x", "--data", "x"],
    "algos.training.supervised.distillation": ["--from", "x", "--teacher", "x", "--prompts", "x"],
    "algos.training.supervised.expert_iteration": ["--from", "x", "--prompts", "x"],
    "algos.training.supervised.rejection_sampling": ["--from", "x", "--prompts", "x"],
    "algos.training.rewards.reward_model": ["--from", "x", "--data", "x"],
    "algos.training.rewards.preferences": ["--pairs", "x"],
}


def words(what: str, line: list[str], says: str) -> Case:
    return Case(f"words: {what}", lambda folder: [part.replace("{out}", str(folder)) for part in line], says)


CASES = [
    words("a command that is none", ["pipelines", "lst"], "error: No such command 'lst'. Did you mean 'list'"),
    words("no name", ["pipelines", "describe"], "error: Missing argument 'NAME|STUDY'"),
    words(
        "a name that is none", ["algos", "describe", "gprpo"], "error: NAME: 'gprpo' is unknown. Did you mean 'grpo'"
    ),
    words("a file that is none", ["algos", "check", "/no/such.py"], "error: NAME: there is no file '/no/such.py'"),
    words("a stage that is none", ["pipelines", "describe", STUDY, "grop"], "error: STAGE: 'grop' is unknown. Did you"),
    words("a port of text", ["pipelines", "mlflow", STUDY, "--port", "x"], "error: Invalid value for '--port'"),
    words("a study that is a folder", ["pipelines", "tree", "/tmp"], "error: /tmp: Is a directory"),
    words("a study that is not there", ["pipelines.check", "/no/x.yaml"], "error: /no/x.yaml: No such file"),
    words("a model that is none", ["evaluation.memory", "--model", "/no/such"], "error: .*/no/such"),
    words(
        "no tokens",
        ["evaluation.memory", "--model", "7B", "--prompt-tokens", "0"],
        "error: --prompt-tokens must be at least 1",
    ),
    words("an option without effect", ["evaluation.memory", "--epochs", "2"], "error: --epochs would have no effect"),
    words("a part that is none", ["evaluation.bench", "grp"], "error: PART: 'grp' is unknown. Did you mean 'grpo'"),
    words("no steps", ["evaluation.bench", "grpo", "--steps", "0"], "error: --steps must be at least 1, got 0"),
    words(
        "settings that are no JSON", ["evaluation.bench", "grpo", "--settings", "{"], "error: --settings is not JSON"
    ),
    words(
        "a number of text", ["evaluation.bias.exact", "--samples", "x"], "argument --samples: invalid int value: 'x'"
    ),
    words("fewer than no samples", ["evaluation.bias.exact", "--samples", "-1"], "error: --samples must be at least 0"),
    words(
        "a report of nothing",
        ["evaluation.report", "--study", "{}", "--results", "x", "--out", "{out}"],
        "error: --study",
    ),
    words(
        "a study of text",
        ["evaluation.report", "--study", "x", "--results", "x", "--out", "{out}"],
        "error: --study is",
    ),
    words("nothing to publish", ["evaluation.publish", "/no/such"], "error: /no/such/report/report.html is missing"),
    words(
        "a task of text", ["evaluation.data", "--task", "x", "--out", "{out}"], "error: --task is neither JSON nor a"
    ),
    words(
        "a task that is none",
        ["evaluation.data", "--task", '{"name": "x"}', "--out", "{out}"],
        "error: task: name: 'x'",
    ),
    *(
        words(f"{module} {what}", [module, "--settings", given, "--out", "{out}", *required], says)
        for module, required in STAGES.items()
        for what, given, says in (
            ("with settings that are no JSON", "{", "error: --settings is not JSON"),
            (
                "with an unknown setting",
                '{"seed": 0, "algorithm": "grpo", "x": 1}',
                "error: .*'(seed|x|algorithm)' is unknown",
            ),
        )
    ),
    words("an abbreviated option", ["algos.training.train", "--setting", "{}"], "error: the following arguments are"),
    words(
        "settings that are a list",
        ["algos.training.supervised.sft", "--settings", "[]", "--out", "{out}", "--from", "x", "--data", "x"],
        "error: settings: expected a mapping of settings, got",
    ),
    words(
        "no threads",
        [
            "algos.training.supervised.sft",
            "--settings",
            '{"seed": 0}',
            "--out",
            "{out}",
            "--from",
            "x",
            "--data",
            "x",
            "--threads",
            "0",
        ],
        "error: --threads must be at least 1, got 0",
    ),
]
