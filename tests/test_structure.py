"""The floor plan: imports go down only, never in a circle; files and folders stay small enough to be read."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PROJECT = Path(__file__).parents[1]
FILES = [path for room in ("algos", "evaluation", "pipelines", "tests") for path in (PROJECT / room).rglob("*.py")]
MODULES = {".".join(p.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
FLOORS = ("algos.pieces", "evaluation.tasks", "algos", "algos.training", "evaluation", "pipelines")  # from below
MOST_LINES, MOST_FILES = 400, 14


def imported(module: str) -> set[str]:
    """The project's modules that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(MODULES)) - {module}


def floor(module: str) -> int:
    return FLOORS.index(max((f for f in FLOORS if module == f or module.startswith(f + ".")), key=len))


def test_no_circle_of_files_and_every_arrow_goes_down():
    graph = {module: imported(module) for module in MODULES if not module.startswith("tests")}
    TopologicalSorter(graph).prepare()  # raises CycleError with the files of a circle
    assert [(a, b) for a in graph for b in graph[a] if floor(b) > floor(a)] == []


def test_no_command_takes_abbreviated_options():  # an abbreviation becomes another option when one is added
    calls = [node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func) == "argparse.ArgumentParser"]
    assert made and all("allow_abbrev=False" in ast.unparse(call) for call in made)


def test_files_and_folders_are_small():
    texts = FILES + [p for p in PROJECT.rglob("pipelines/**/*") if p.suffix in (".smk", ".yaml", ".j2")]
    assert [path for path in texts if path.read_text(encoding="utf-8").count("\n") > MOST_LINES] == []
    folders = {path.parent for path in FILES} - {PROJECT / "algos"}
    assert {folder for folder in folders if len([*folder.glob("*.py")]) > MOST_FILES} == set()
