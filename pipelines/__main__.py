"""The command line: `rlcompare`, or `python -m pipelines`. Each command is a front for a module that has the logic.

Nothing heavy is imported before a command needs it, so that help and completion answer at once.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from pipelines import completion


def examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"$ rlcompare {line}" for line in lines)])


app = typer.Typer(
    help="Compare RL post-training algorithms for language models.",
    epilog=examples("list", "tree pipelines/studies/r1.yaml", "memory --model qwen2.5-7b --algorithm ppo"),
    pretty_exceptions_enable=False,
)
algorithm = typer.Typer(help="Algorithms of your own.")
app.add_typer(algorithm, name="algorithm")

DEFAULT = "pipelines/config.yaml"
Study = Annotated[str, typer.Argument(metavar="[STUDY]", help="study file", autocompletion=completion.studies)]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME|STUDY", help="an algorithm, or a study file", autocompletion=completion.described),
]
Stage = Annotated[
    str | None, typer.Argument(metavar="STAGE", help="an RL stage of STUDY", autocompletion=completion.stages)
]
Words = Annotated[list[str] | None, typer.Argument(autocompletion=completion.study_and_stage)]
PASSED: dict[str, Any] = {  # all words go to a module, which has its own --help
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True},
}


@app.command(name="list", epilog=examples("list", "list | grep -A1 ppo"))
def list_() -> None:
    """All algorithms and presets, each with its idea and its source."""
    from algos.__main__ import list_algorithms

    print(list_algorithms())


@app.command(epilog=examples("describe grpo", "describe my/variant.py", "describe pipelines/config.yaml gspo"))
def describe(name: Name, stage: Stage = None) -> None:
    """Equation and resolved settings of an algorithm, or of an RL stage of a study."""
    if stage is None and not completion.is_study(name):
        from algos.__main__ import describe as page

        print(page(name))
    else:
        from pipelines.stage import describe as page_of_stage
        from pipelines.study import load

        print(page_of_stage(load(name), stage))


@app.command(epilog=examples("check", "check pipelines/studies/r1.yaml"))
def check(study: Study = DEFAULT) -> None:
    """Rehearse a study before anything trains: its data, models, rewards and memory."""
    from pipelines.check import main as rehearse

    rehearse([study])


@app.command(epilog=examples("tree", "tree pipelines/studies/r1.yaml"))
def tree(study: Study = DEFAULT) -> None:
    """Check a study file; show its stages as a tree, with their jobs and what is done."""
    from pipelines.study import main as show

    show([study])


@app.command(**PASSED)
def memory(words: Words = None) -> None:
    """Predict the peak memory of a stage (STUDY STAGE), or of a model (--model); by model, component and phase."""
    if words and completion.is_study(words[0]):
        from pipelines.stage import memory as of_stage
        from pipelines.study import load

        print(of_stage(load(words[0]), *_stage_and_rest(words)))
    else:
        from evaluation.memory.__main__ import main as predict

        predict(words or [], "rlcompare memory")


@app.command(epilog=examples("peaks pipelines/studies/gsm8k_0.5b.yaml=24 pipelines/studies/gsm8k_1.5b.yaml=80"))
def peaks(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY=GIGABYTES...", help="study and size of its GPU")],
    out: Annotated[Path, typer.Option(help="folder of studies.csv")] = Path("results/memory"),
) -> None:
    """Predict the peak memory of all RL stages of some studies, each on a GPU of its own size, as a table."""
    import pandas as pd

    from pipelines.stage import peaks as of_study
    from pipelines.study import load

    planned = [(load(path), size) for path, size in map(_planned, studies)]  # all before the first is predicted
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for study, size in planned:
        rows += of_study(study, size)
        pd.DataFrame(rows).to_csv(out / "studies.csv", index=False, float_format="%.4g")
    print(pd.DataFrame(rows).to_string(index=False))


def _planned(word: str) -> tuple[str, float]:
    from algos.pieces.settings import SettingsError

    path, _, size = word.rpartition("=")
    try:
        return path, float(size)
    except ValueError:
        raise SettingsError(f"write STUDY=GIGABYTES, such as {DEFAULT}=24, got {word}.") from None


@app.command(**PASSED)
def bench(words: Words = None) -> None:
    """Measure speed and memory, beside TRL: parts of the benchmark, alone or with a stage's settings (STUDY STAGE)."""
    if words and completion.is_study(words[0]):
        from pipelines.stage import bench as with_stage
        from pipelines.study import load

        with_stage(load(words[0]), *_stage_and_rest(words))
    else:
        from evaluation.bench.command import main as measure

        measure(words or [], "rlcompare bench")


def _stage_and_rest(words: list[str]) -> tuple[str | None, list[str]]:
    return (words[1] if len(words) > 1 else None), words[2:]


@app.command(**PASSED)
def exact(words: Words = None) -> None:
    """Bias and variance of every estimator, on a policy small enough to enumerate."""
    from evaluation.bias.exact import main as enumerate_all

    enumerate_all(words or [], "rlcompare exact")


@app.command(epilog=examples("report", "report pipelines/studies/smoke.yaml"))
def report(study: Study = DEFAULT) -> None:
    """Write the report of a finished study again, from its records."""
    from evaluation.report import write
    from pipelines.study import load

    made = load(study)
    out = Path(made.results) / "report"
    write(Path(made.results), made.report(), out)
    print(out / "report.html")


@app.command(epilog=examples("publish", "publish pipelines/studies/r1.yaml"))
def publish(study: Study = DEFAULT) -> None:
    """Copy a finished study's tables and figures into results/published/."""
    from evaluation.publish import main as copy
    from pipelines.study import load

    copy([load(study).results])


@app.command(epilog=examples("merge results/mine /mnt/other/results/mine --out results/both"))
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="results folders of one study")],
    out: Annotated[Path, typer.Option(help="a new results folder", show_default=False)],
) -> None:
    """Join the results of one study from several machines, and write their report."""
    from evaluation.report.merge import main as join

    join([*map(str, folders), "--out", str(out)])


@app.command(epilog=examples("compare-published results/default"))
def compare_published(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="the results folder of a study")],
    published: Annotated[Path | None, typer.Option(help="folder of published tables", show_default=False)] = None,
) -> None:
    """Hold a finished study against the published tables of that name; status 1 if a stage lies outside."""
    from evaluation.report.published import main as hold

    words = [] if published is None else ["--published", str(published)]
    raise typer.Exit(hold([str(results), *words]))


@app.command(epilog=examples("mlflow", "mlflow pipelines/studies/smoke.yaml --port 5001", "mlflow --print"))
def mlflow(
    study: Study = DEFAULT,
    port: Annotated[int, typer.Option(help="of 127.0.0.1; no other machine reaches it")] = 5000,
    only_print: Annotated[bool, typer.Option("--print", help="print the command and start nothing")] = False,
) -> None:
    """Start MLflow's pages with a study's runs, on 127.0.0.1."""
    from algos.pieces.settings import SettingsError
    from pipelines.study import load

    uri = load(study).tracking_uri
    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("http"):
        raise SettingsError(f"the study writes to a server, which has the pages: {uri}.")
    if uri.startswith("sqlite:///") and not store.is_file():
        raise SettingsError(f"{store} is missing: the study has not begun to run.")
    words = ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    if only_print:
        print(shlex.join(words))
    else:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.execv(sys.executable, [sys.executable, "-m", *words])


@app.command(hidden=True, epilog=examples("schema"))
def schema() -> None:
    """Write the JSON schema of study files, with which editors complete and check them, after a setting has changed."""
    from pipelines.schema import write

    print(write())


@algorithm.command(name="check", epilog=examples("algorithm check my/variant.py", "algorithm check gspo"))
def check_algorithm(
    name: Annotated[str, typer.Argument(metavar="FILE|NAME", autocompletion=completion.algorithms)],
) -> None:
    """Run the conformance tests on one algorithm: a file that defines ALGORITHM, or a name."""
    from algos.__main__ import check as conform

    raise typer.Exit(conform(name))


def main() -> None:
    status = 0
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0  # None: the command has come to its end
        sys.stdout.flush()
    except Exception as error:
        from algos.pieces.settings import SettingsError, refusals

        wrong = SettingsError(error.format_message()) if isinstance(error, TyperException) else error
        with refusals():
            raise wrong from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
