"""The command line, rlcompare: it starts without torch, its help shows examples, and a shell can complete its words."""

import os
import subprocess
import sys

import pytest
import typer
from project import PROJECT
from test_cli import DEFAULT, ask

from pipelines.__main__ import app

LIGHT = """#!{python}
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "numpy"])  # importing one of them is an error
from pipelines.__main__ import main
main()
"""
COMMANDS = typer.main.get_command(app).commands
GROUPS = {name: command.commands for name, command in COMMANDS.items() if hasattr(command, "commands")}
WORDS = [[name] for name in COMMANDS if name not in GROUPS]
WORDS += [[group, name] for group, commands in GROUPS.items() for name in commands]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of a shell that finds an rlcompare for which torch, transformers and numpy are not to be had."""
    script = tmp_path_factory.mktemp("bin") / "rlcompare"
    script.write_text(LIGHT.format(python=sys.executable))
    script.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PATH": f"{script.parent}:{os.environ['PATH']}", "NO_COLOR": "1"}


def shell(environment: dict[str, str], script: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=environment | variables, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == "" and done.returncode == 0
    return done.stdout


def test_help_imports_no_torch_and_names_every_command(environment):
    page = shell(environment, "rlcompare --help")
    assert [name for name in COMMANDS if f" {name} " not in page] == ["schema"]  # for the project's own use
    assert "Usage: rlcompare " in page and "\x1b" not in page


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_commands_help_shows_examples_of_it(words, monkeypatch, capsys):
    assert ask(monkeypatch, *words, "--help") == 0
    page = capsys.readouterr().out
    assert f"rlcompare {' '.join(words)}" in page[page.index("Examples:") :]


COMPLETED = {
    "rlcompare de": {"describe"},
    "rlcompare algorithm check ppo_sh": {"ppo_shared", "ppo_shared_mlp"},
    "rlcompare describe gs": {"gspo", "gspo_token", "gspo_as_paper", "gspo_unclipped"},
    "rlcompare tree pipelines/studies/sm": {
        f"pipelines/studies/{name}.yaml" for name in ("smoke", "smollm2", "smollm2_words")
    },
    "rlcompare check pipelines/c": {"pipelines/config.yaml"},
    "rlcompare describe pipelines/config.yaml gspo": {"gspo", "gspo_paper_clip"},  # the second is `like` the first
    "rlcompare memory pipelines/config.yaml ppo": {"ppo", "ppo_rm"},
    "rlcompare memory --algorithm dr_": {"dr_grpo"},
    "rlcompare bench pipelines/config.yaml co": set(),  # cold_start is not an RL stage
}


def test_bash_completes_commands_study_files_stages_and_algorithms(environment):
    """By the function that the command gives to bash."""
    script = """eval "$(_RLCOMPARE_COMPLETE=source_bash rlcompare)"
function=$(complete -p rlcompare | sed "s/.*-F //; s/ .*//")
"""
    for line in COMPLETED:
        script += f"COMP_WORDS=({line}); COMP_CWORD={line.count(' ')}; $function rlcompare; echo ${{COMPREPLY[*]}}\n"
    answers = [set(line.split()) for line in shell(environment, script).splitlines()]
    assert dict(zip(COMPLETED, answers, strict=True)) == COMPLETED


def test_zsh_completes_them_too(environment):
    answer = shell(
        environment,
        "rlcompare",
        _RLCOMPARE_COMPLETE="complete_zsh",
        _TYPER_COMPLETE_ARGS="rlcompare describe pipelines/config.yaml gspo",
    )
    assert answer.startswith("_arguments ") and '"gspo"\n"gspo_paper_clip"' in answer


def test_stages_that_vary_are_completed_and_a_file_that_is_being_written_completes_nothing(tmp_path):
    from pipelines.completion import _rl_stages, studies

    stages = ["zero: {kind: rl}", "kl: {like: zero, vary: {kl_coef: [0, 0.1]}}", "wide: {like: kl-kl_coef=0}"]
    (tmp_path / "mine.yaml").write_text("\n  ".join(["study: mine\nstages:", *stages]))
    assert _rl_stages(str(tmp_path / "mine.yaml"), "") == ["zero", "kl-kl_coef=0", "kl-kl_coef=0.1", "wide"]
    for text in (
        "study: mine\nstages: {zero: {kind: rl}",
        "study: mine\nstages:\n",
        "study: mine\nstages: {a: {like: a}}\n",
    ):
        (tmp_path / "half.yaml").write_text(text)
        assert _rl_stages(str(tmp_path / "half.yaml"), "") == []
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    assert studies(f"{tmp_path}/") == [f"{tmp_path}/half.yaml", f"{tmp_path}/mine.yaml"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["lst"], "error: No such command 'lst'. Did you mean 'list'?\n"),
        (["describe"], "error: Missing argument 'NAME|STUDY'.\n"),
        (["describe", "gprpo"], "error: NAME: 'gprpo' is unknown. Did you mean 'grpo'?"),
        (["describe", DEFAULT], f"error: STAGE is missing. RL stages of {DEFAULT}: ppo, grpo, "),
        (["tree", "/no/study.yaml"], "error: /no/study.yaml: No such file"),
        (["tree", DEFAULT, "--all"], "error: No such option: --all\n"),
        (["memory", DEFAULT, "ppo", "--epochs", "2"], "error: --epochs would have no effect: settings and model are"),
        (["memory", "--epochs", "2"], "error: --epochs would have no effect without --model.\n"),
        (["mlflow", DEFAULT, "--port", "x"], "error: Invalid value for '--port': "),
        (["algorithm", "check", "no/such.py"], "error: NAME: there is no file 'no/such.py'.\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ask(monkeypatch, *words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.err.count("\n") == 1 and printed.out == ""


def test_mlflows_pages_are_asked_for_on_this_machine_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert ask(monkeypatch, "mlflow", DEFAULT) == 2
    assert capsys.readouterr().err == "error: results/default/mlflow.db is missing: the study has not begun to run.\n"
    store = tmp_path / "results" / "default" / "mlflow.db"
    store.parent.mkdir(parents=True)
    store.touch()
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    assert ask(monkeypatch, "mlflow", DEFAULT, "--port", "5001") == 0
    uri = "sqlite:///results/default/mlflow.db"
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", "5001"]
    assert started == [[sys.executable, "-m", "mlflow", "ui", *options]]
    server = tmp_path / "server.yaml"
    text = (PROJECT / "pipelines" / "config.yaml").read_text()
    server.write_text(text + "\nmlflow: {tracking_uri: 'http://127.0.0.1:5000'}\n")
    assert ask(monkeypatch, "mlflow", str(server)) == 2
    assert "writes to a server, which has the pages: http://127.0.0.1:5000." in capsys.readouterr().err


def test_errors_are_red_on_a_terminal_alone(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ask(monkeypatch, "lst")
    assert capsys.readouterr().err.startswith("\x1b[31merror:\x1b[0m No such command")
    monkeypatch.setenv("NO_COLOR", "1")
    ask(monkeypatch, "lst")
    assert capsys.readouterr().err.startswith("error: No such command")
