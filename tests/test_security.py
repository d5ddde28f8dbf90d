"""What SECURITY.md promises: no call that runs data as code, no way out of results, no secret in a file."""

import ast
import json
import re
from pathlib import Path

import jinja2
import pytest
from test_structure import MODULES

from algos.pieces.settings import SettingsError
from evaluation.report.page import environment
from pipelines.study import Study

PROJECT = Path(__file__).parents[1]
CODE = {name: path for name, path in MODULES.items() if not name.startswith("tests")}
FORBIDDEN = {  # a call -> why; the modules that may make it all the same, and why these may
    "eval": ("runs text as code", {}),
    "exec": ("runs text as code", {}),
    "compile": ("makes code of text", {}),
    "__import__": ("imports what a text names", {}),
    "os.system": ("a shell", {}),
    "os.popen": ("a shell", {}),
    "pickle.load": ("runs what is pickled", {}),
    "pickle.loads": ("runs what is pickled", {}),
    "torch.load": ("runs what is pickled", {}),
    "joblib.load": ("runs what is pickled", {}),
    "numpy.load": ("may run what is pickled", {}),
    "np.load": ("may run what is pickled", {}),
    "pd.read_pickle": ("runs what is pickled", {}),
    "yaml.load": ("makes any object", {}),
    "yaml.unsafe_load": ("makes any object", {}),
    "yaml.full_load": ("makes some objects", {}),
    "jinja2.Template": ("escapes nothing", {}),
    "Markup": (
        "escapes nothing",
        {
            "evaluation.report.page": "its own scripts and styles",
            "evaluation.report.responses": "JSON in which every bracket and ampersand is escaped",
        },
    ),
    "spec.loader.exec_module": ("runs a file", {"algos.own_code": "files of the user's own, named by the study"}),
    "os.execv": ("another program", {"pipelines.__main__": "MLflow's pages, on 127.0.0.1"}),
    "subprocess.run": (
        "another program",
        {
            "algos.training.stage.environment": "git, with fixed words",
            "algos.__main__": "the conformance tests, with fixed words",
            "evaluation.bench.overhead": "this Python, with fixed words",
            "evaluation.claims.__main__": "the unit tests that the ledger names",
        },
    ),
    "subprocess.Popen": ("another program", {}),
}


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def forbidden(module: str, call: ast.Call) -> str | None:
    """What is wrong with a call; None if nothing is."""
    name = ast.unparse(call.func)
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    if name in FORBIDDEN and module not in FORBIDDEN[name][1]:
        return f"{module}, line {call.lineno}: {name} {FORBIDDEN[name][0]}"
    if options.get("shell", "False") != "False":
        return f"{module}, line {call.lineno}: a shell"
    if options.get("trust_remote_code", "False") != "False":
        return f"{module}, line {call.lineno}: runs a model's own code"
    if "Environment" in name and options.get("autoescape") != "True":
        return f"{module}, line {call.lineno}: escapes nothing"
    if name.startswith("Auto") and name.endswith(("from_pretrained", "from_config")) and not is_safe(options, call):
        return f"{module}, line {call.lineno}: says nothing of trust_remote_code"
    return None


def is_safe(options: dict, call: ast.Call) -> bool:
    """Whether a model's own code is refused; `**where` holds it in gguf.py."""
    return options.get("trust_remote_code") == "False" or any(o.arg is None for o in call.keywords)


@pytest.mark.parametrize("module", CODE)
def test_no_call_runs_data_as_code(module):
    assert [fault for call in calls(CODE[module]) if (fault := forbidden(module, call))] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "torch.load(path)",
        "subprocess.run(words, shell=True)",
        "subprocess.run(words)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
        "jinja2.Environment()",
        "Markup(text)",
    ],
)
def test_the_rule_notices_such_a_call(code):
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert forbidden("algos.x", call)


def test_every_exception_is_made():  # one that nobody needs any more goes
    made = {(ast.unparse(call.func), module) for module, path in CODE.items() for call in calls(path)}
    assert [(n, m) for n, (_, exceptions) in FORBIDDEN.items() for m in exceptions if (n, m) not in made] == []


def test_weights_are_read_as_safetensors_alone():
    loads = [
        ast.unparse(call)
        for path in CODE.values()
        for call in calls(path)
        if re.fullmatch(r"AutoModel\w*\.from_pretrained", ast.unparse(call.func))
    ]
    assert len(loads) == 3 and all("use_safetensors=True" in load or "**where" in load for load in loads)  # where: GGUF


@pytest.mark.parametrize("command", ["mlflow ui", "mlflow server"])
def test_every_command_for_mlflow_binds_to_this_machine(command):
    pages = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if f"{command} " in line]
    assert lines and all("--host 127.0.0.1" in line for line in lines)
    assert not any("0.0.0.0" in path.read_text(encoding="utf-8") for path in CODE.values())


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</pre><b>", "&lt;", "'--"]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_reports_template_shows_text_as_text(text):
    page = environment().from_string("<pre>{{ text }}</pre>").render(text=text)
    inside = page.removeprefix("<pre>").removesuffix("</pre>")
    assert not set("<>\"'") & set(inside) and "49" not in page
    assert isinstance(environment(), jinja2.Environment) and environment().autoescape is True


SMALL = {
    "study": "x",
    "seeds": [0],
    "task": {"name": "word_problems", "train": 4, "dev": 4, "test": 4, "demonstrations": 4},
    "models": {"base": {}},
    "stages": {"one": {"kind": "sft", "from": "base", "data": "demonstrations"}},
}


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "/etc/x", ".", "~", "$(id)", "x'; drop table", "é", "a b", "-rf"]
)
@pytest.mark.parametrize("place", ["study", "models", "stages"])
def test_no_name_in_a_study_leads_out_of_results(name, place):
    if place == "study":
        config = {**SMALL, "study": name}
    else:
        config = {**SMALL, place: {**SMALL[place], name: next(iter(SMALL[place].values()))}}
    if place == "study" and re.fullmatch(r"\w+", name):  # letters of any script are a folder's name
        assert Study(config, "mine.yaml").results == f"results/{name}"
        return
    with pytest.raises(SettingsError):
        Study(config, "mine.yaml")


@pytest.mark.parametrize("value", ["../x", "a/b", "/x", "..", "a b"])
def test_no_varied_value_leads_out_of_results(value):
    vary = {"kind": "rl", "from": "one", "algorithm": "grpo", "vary": {"reward_settings.language_script": [value]}}
    with pytest.raises(SettingsError, match=r"a varied value is a number|is unknown"):
        made = Study({**SMALL, "stages": {**SMALL["stages"], "two": vary}}, "mine.yaml")
        assert all(".." not in made.folder(name, 0) for name in made.stages)


@pytest.mark.parametrize("folder", ["..", "../x", "a/../../x", ".", "", "/"])
def test_the_results_stay_below_the_folder_that_they_are_made_in(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if folder == "":
        assert Study({**SMALL, "results": folder}, "x").results == "results/x"
        return
    with pytest.raises(SettingsError, match=r"leads out of this folder|holds this folder"):
        Study({**SMALL, "results": folder}, "x")


def test_ids_in_data_name_no_file(tmp_path):
    """A row's id is text in JSON files, and is never a part of a path."""
    from evaluation.config import PromptSettings
    from evaluation.data import write_splits
    from evaluation.tasks import TaskSettings

    rows = [
        {"id": "../../x", "question": f"{i}?", "answer": f"#### {i}", "extract": "y", "compare": 3} for i in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "t", "answer": "#### 1"}) + "\n")
    task = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    before = {path for path in tmp_path.parent.rglob("*") if "out" not in path.parts}
    write_splits(TaskSettings("rows", settings=task), PromptSettings(), tmp_path / "out")
    made = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["id"] for row in made} == {f"train/{i}" for i in range(3)}
    assert not any({"extract", "compare"} & row.keys() for row in made)  # no file chooses its grader
    assert {path for path in tmp_path.parent.rglob("*") if "out" not in path.parts} == before
