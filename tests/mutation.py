"""Mutation testing of the mathematics in algos/*.py: python tests/mutation.py [--list] [--only PATTERN] [--jobs N]

Each mutant is one small mistake: a sign, a bound, a mask, a divisor, a comparison, a default. It is killed if a test
fails with it; a survivor is a mistake that no test would notice. Torch is imported once; every mutant is a forked
process that hands out the mutated module in place of the file and runs pytest until the first failure, on a copy of
the tree taken at the start. This is a command and not a test: pytest does not collect it.
"""

import argparse
import ast
import contextlib
import copy
import fnmatch
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"__init__", "__main__", "describe", "exact"}  # tables, words, and the checking itself
TESTS = (  # the mathematics alone; run fastest first, the mutated file's own before all others
    *("masked", "kl", "ratios", "clipping", "aggregation", "advantages", "critic", "correction", "limits"),
    *("ppo", "grpo", "grpo_variants", "gspo", "gmpo", "cispo", "sapo", "reinforce", "trpo"),
    *("conformance", "defaults", "bad_settings", "exact"),
)
SLOW = (  # left out: half a minute of combinations, other processes, sampling
    "not every_combination and not test_warnings_are_printed and not test_sampled and not test_the_tables"
)
OWN_TESTS = {"distillation": ["distillation"]}  # modules whose tests are too slow to run for every other mutant


# What a mistake looks like: (node) -> mutated nodes, each with its kind


@dataclass(frozen=True)
class Mutant:
    file: str  # algos/pieces/kl.py
    line: int
    kind: str
    before: str  # the innermost statement, one line
    after: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {self.kind}"

    @property
    def diff(self) -> str:
        return f"- {self.before}\n+ {self.after}"


SWAPS = {  # names and attributes that stand for each other
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "amax": "amin",
    "clip_low": "clip_high",
    "clip_high": "clip_low",
    "responses": "response_tokens",
    "response_tokens": "responses",
    "exp": "expm1",
    "expm1": "exp",
    "correction_low": "correction_high",
    "correction_high": "correction_low",
    "any": "all",
    "all": "any",
}
COMPARISONS = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
MASKED = ("masked_sum", "masked_mean", "masked_var", "masked_whiten")


def called(node: ast.AST) -> str:
    """The last name of what is called: masked_sum, torch.where -> where."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", None) or getattr(function, "id", "")


def is_text(node: ast.AST) -> bool:
    return any(
        isinstance(x, ast.JoinedStr | ast.Tuple) or isinstance(getattr(x, "value", 0), str) for x in ast.walk(node)
    )


def arithmetic(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.BinOp) and not is_text(node.left) and not is_text(node.right):
        if isinstance(node.op, ast.Add | ast.Sub):
            flipped = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield "sign", ast.BinOp(node.left, flipped, node.right)
            yield "term dropped", node.left
        if isinstance(node.op, ast.Add):
            yield "term dropped", node.right
        if isinstance(node.op, ast.Mult):
            yield "factor dropped", node.right
        if isinstance(node.op, ast.Div):
            yield "divisor dropped", node.left
        if isinstance(node.op, ast.Pow):
            yield "power", node.left
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", node.operand


def off_by_one(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Numbers in arithmetic and comparisons, ends of ranges, the order of a recursion."""
    if isinstance(node, ast.BinOp | ast.Compare):
        name = "right" if isinstance(node, ast.BinOp) else "comparators"
        side = getattr(node, name)
        constant = side if name == "right" else side[0]
        if isinstance(constant, ast.Constant) and type(constant.value) in (int, float) and not is_text(node):
            off = ast.Constant(constant.value + 1)
            changed = copy.copy(node)
            setattr(changed, name, off if name == "right" else [off])
            yield "constant", changed
    if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant) and type(node.left.value) in (int, float):
        yield "constant", ast.BinOp(ast.Constant(node.left.value + 1), node.op, node.right)
    if called(node) == "range":
        yield "range", ast.Call(node.func, [*node.args[:-1], ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))], [])
    if called(node) == "reversed":
        yield "order", node.args[0]


def comparison(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", ast.Compare(node.left, [other()], node.comparators)
    if isinstance(node, ast.BoolOp):
        yield "and for or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def masks(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if called(node) == "where" and len(node.args) == 3:
        yield "mask dropped", node.args[1]
        yield "mask dropped", node.args[2]
    if called(node) == "where" and len(node.args) == 2:
        yield "mask dropped", node.func.value
    if called(node) in MASKED and len(node.args) >= 2:
        everything = ast.Compare(node.args[1], [ast.Eq()], [node.args[1]])
        yield "mask dropped", ast.Call(node.func, [node.args[0], everything, *node.args[2:]], node.keywords)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield "condition dropped", node.left
        yield "condition dropped", node.right


def swaps(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Attribute) and node.attr in SWAPS and isinstance(node.ctx, ast.Load):
        if node.attr in ("responses", "response_tokens") and getattr(node.value, "id", "") != "totals":
            return
        yield f"{SWAPS[node.attr]} for {node.attr}", ast.Attribute(node.value, SWAPS[node.attr], node.ctx)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        yield (
            f"{SWAPS[node.func.id]} for {node.func.id}",
            ast.Call(ast.Name(SWAPS[node.func.id], ast.Load()), *_rest(node)),
        )
    if called(node) == "clamp":
        for i, keyword in enumerate(node.keywords):
            other = ast.keyword(SWAPS[keyword.arg], keyword.value)
            yield "clamp's side", ast.Call(node.func, node.args, [*node.keywords[:i], other, *node.keywords[i + 1 :]])
        yield "clamp dropped", node.func.value


def _rest(node: ast.Call) -> tuple[list, list]:
    return node.args, node.keywords


def gradients(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if called(node) == "detach":
        yield "detach dropped", node.func.value
    if called(node) in ("rsqrt", "sqrt"):
        yield (
            "root",
            ast.Call(
                ast.Attribute(node.func.value, {"rsqrt": "sqrt", "sqrt": "rsqrt"}[called(node)], ast.Load()),
                *_rest(node),
            ),
        )
    if isinstance(node, ast.With) and called(node.items[0].context_expr) == "no_grad":
        yield "no_grad dropped", ast.If(ast.Constant(True), node.body, [])
    if isinstance(node, ast.FunctionDef) and any("no_grad" in ast.unparse(d) for d in node.decorator_list):
        changed = copy.copy(node)
        changed.decorator_list = []
        yield "no_grad dropped", changed


def checks(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if refuses(node):
        yield "check dropped", ast.If(ast.Constant(False), node.body, node.orelse)


def defaults(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Numbers and switches among the settings' defaults."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant):
        for value in _others(node.value.value):
            yield "default", ast.AnnAssign(node.target, node.annotation, ast.Constant(value), node.simple)


def _others(value) -> list:
    if isinstance(value, bool):
        return [not value]
    return [value * 2 if value else 1] if isinstance(value, int | float) else []


KINDS: tuple[Callable, ...] = (arithmetic, off_by_one, comparison, masks, swaps, gradients, checks, defaults)


# From files to mutants


def silent(node: ast.AST) -> bool:
    """Text, types and messages: a change there is no mistake in the mathematics."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.FunctionDef) and node.name in ("warnings", "term", "describe_clipped", "changed")


def refuses(node: ast.AST) -> bool:
    """Whether this is a check of the settings or of the inputs: if ...: raise."""
    return isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, tuple, ast.stmt]]:
    """Every node that may be mutated, the path to it and the innermost statement around it."""

    def walk(node, path, statement):
        if silent(node):
            return
        statement = node if isinstance(node, ast.stmt) else statement
        yield node, path, statement
        if refuses(node):
            return  # dropped as a whole or not at all
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            children = value if isinstance(value, list) else [value]
            for i, child in enumerate(children):
                if isinstance(child, ast.AST):
                    yield from walk(child, (*path, (name, i if isinstance(value, list) else None)), statement)

    yield from walk(tree, (), tree)


def at(tree: ast.AST, path: tuple) -> ast.AST:
    for name, i in path:
        tree = getattr(tree, name) if i is None else getattr(tree, name)[i]
    return tree


def replaced(tree: ast.Module, path: tuple, new: ast.AST) -> ast.Module:
    """A copy of the tree with another node at the path."""
    tree = copy.deepcopy(tree)
    parent, (name, i) = at(tree, path[:-1]), path[-1]
    old = at(tree, path)
    new = ast.copy_location(copy.deepcopy(new), old)
    if i is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[i] = new
    return ast.fix_missing_locations(tree)


def heading(statement: ast.AST) -> str:
    """A statement on one line; of a compound one its first."""
    shown = copy.copy(statement)
    if isinstance(shown, ast.FunctionDef):
        shown.body = [ast.Pass()]
    text = ast.unparse(ast.fix_missing_locations(shown)).splitlines()
    return " ".join(
        line.strip() for line in text[: 2 if isinstance(shown, ast.If | ast.With | ast.FunctionDef) else None]
    )


def mutants(root: Path = ROOT) -> list[Mutant]:
    found: dict[tuple, Mutant] = {}
    for path in sorted((root / "algos").glob("*.py")):
        if path.stem in SKIPPED:
            continue
        tree = ast.parse(path.read_text(), str(path))
        file = f"algos/{path.name}"
        for node, place, statement in places(tree):
            if not place:
                continue
            for kind in KINDS:
                for name, new in kind(node):
                    mutated = replaced(tree, place, new)
                    depth = len(place)
                    while depth and at(tree, place[:depth]) is not statement:
                        depth -= 1
                    before, after = heading(statement), heading(at(mutated, place[:depth]))
                    found.setdefault(
                        (file, node.lineno, before, after), Mutant(file, node.lineno, name, before, after, mutated)
                    )
    return [mutant for mutant in found.values() if mutant.before != mutant.after]


ZERO = "the summands are 0 on padding already"
AGAIN = "what is made of it selects again"
FLAT = "at A = 0 both sides of the maximum are 0"
EMPTY = "the log-ratio of an empty response is 0, its ratio 1, which no clip counts"
EQUIVALENT = (  # file, part of the line before, part of the line after, reason
    ("algos/pieces/advantages.py", "masked_sum(penalties, mask, dim=1)", "masked_sum(penalties, mask == mask", ZERO),
    ("algos/pieces/clipping.py", "bounded = torch.where(advantages < 0", "torch.where(advantages <= 0", FLAT),
    ("algos/pieces/correction.py", "masked_sum(difference, mask, dim=1", "masked_sum(difference, mask == mask", ZERO),
    (
        "algos/pieces/critic.py",
        "masked_sum(error, response_mask)",
        "masked_sum(error, response_mask == response_mask)",
        ZERO,
    ),
    ("algos/pieces/diagnostics.py", "masked_sum(-log_ratio, response_mask)", "(-log_ratio, response_mask == ", ZERO),
    (
        "algos/pieces/diagnostics.py",
        "- log_ratio, response_mask)",
        "- log_ratio, response_mask == response_mask)",
        ZERO,
    ),
    ("algos/pieces/critic.py", "def explained_variance(", "def explained_variance(", "a float carries no gradient"),
    (
        "algos/pieces/diagnostics.py",
        "torch.where(response_mask, ratio,",
        "inside = ratio",
        "on padding the ratio is 1 already",
    ),
    ("algos/distillation.py", "masked_sum(values, mask)", "masked_sum(values, mask == mask)", ZERO),
    ("algos/pieces/estimator.py", "masked_sum(weights, mask)", "masked_sum(weights, mask == mask)", ZERO),
    ("algos/pieces/estimator.py", "masked_sum(kl.detach(), mask)", "masked_sum(kl.detach(), mask == mask)", ZERO),
    ("algos/pieces/estimator.py", "masked_sum(entropies.detach(), mask)", "(entropies.detach(), mask == mask)", ZERO),
    ("algos/pieces/estimator.py", "entropies = torch.where(mask, entropies, zeros)", "entropies = entropies", AGAIN),
    ("algos/pieces/estimator.py", "masked_sum(x.float(), mask.any(", "keepdim=True) == mask.any(", EMPTY),
    ("algos/pieces/estimator.py", "inside = torch.where(not_empty, first, 1.0)", "inside = first", EMPTY),
    (
        "algos/pieces/ratios.py",
        "masked_sum(log_ratio(logprobs, old_logprobs, mask), mask,",
        "mask), mask == mask,",
        ZERO,
    ),
)


def equivalent(mutant: Mutant) -> str:
    """The reason why no test can tell this mutant from the original, or nothing."""
    for file, before, after, reason in EQUIVALENT:
        if file == mutant.file and before in mutant.before and after in mutant.after:
            return reason
    return ""


# Running


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out a mutated module in place of its file."""

    def __init__(self, mutant: Mutant):
        self.mutant, self.module = mutant, mutant.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            return importlib.util.spec_from_loader(name, self, origin=self.mutant.file)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.mutant.tree, self.mutant.file, "exec"), module.__dict__)


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (import)"


@dataclass(frozen=True)
class Outcome:
    passed: bool
    by: str  # the first failing test, or the signal that ended it: 24 is the time limit
    seconds: float  # of processor time
    modules: tuple[str, ...] = ()  # that the process imported besides ours


def child(mutant: Mutant | None, runs: list[list[str]], pipe: int, limit: float) -> None:
    """In the forked process: pytest on one list of files after another until one fails; the report goes to the pipe."""
    import pytest

    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    if mutant is not None:
        sys.meta_path.insert(0, Mutated(mutant))
    failure, code = FirstFailure(), 0
    for files in runs:
        code = code or pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-k", SLOW, *files], plugins=[failure]
        )
    ours = {"algos", "evaluation", "pipelines", "conftest", "tiny", "__main__", "mutation"}
    modules = [m for m in sys.modules if m.split(".")[0] not in ours and not m.startswith("test_")]
    with os.fdopen(pipe, "w") as report:
        json.dump(
            {
                "passed": int(code) == 0,
                "by": failure.name or f"import, pytest exit code {int(code)}",
                "modules": modules,
            },
            report,
        )
    os._exit(0)


class Process:
    """A forked run with a limit on its processor time; on the clock it may take five times as long."""

    def __init__(self, mutant: Mutant | None, runs: list[list[str]], limit: float):
        self.mutant, self.limit, self.start, self.text = mutant, limit, time.monotonic(), b""
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                child(mutant, runs, theirs, limit)
            finally:
                os._exit(70)
        os.close(theirs)
        os.set_blocking(self.pipe, False)

    def poll(self) -> Outcome | None:
        """The outcome, or None as long as it runs."""
        self._read()
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0 and time.monotonic() - self.start < 5 * self.limit:
            return None
        if pid == 0:
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        self._read()
        os.close(self.pipe)
        seconds = usage.ru_utime + usage.ru_stime
        if not self.text:
            return Outcome(False, f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "crash", seconds)
        found = json.loads(self.text)
        return Outcome(found["passed"], "" if found["passed"] else found["by"], seconds, tuple(found["modules"]))

    def _read(self) -> None:  # from time to time, or a long report would block the child
        try:
            while part := os.read(self.pipe, 65536):
                self.text += part
        except BlockingIOError:
            pass

    def wait(self) -> Outcome:
        while (outcome := self.poll()) is None:
            time.sleep(0.02)
        return outcome


def test_file(name: str) -> str:
    return f"tests/test_{name}.py"


def baseline(names: list[str]) -> dict[str, float]:
    """Seconds of each test file without a mutant; what fails or is missing is left out, and said."""
    seconds = {}
    for name in names:
        if not Path(test_file(name)).exists():
            print(f"left out: {test_file(name)} does not exist")
            continue
        outcome = Process(None, [[test_file(name)]], 600).wait()
        for module in outcome.modules:  # from now on every fork has them
            if module.split(".")[0] in ("torch", "numpy", "transformers", "tokenizers", "yaml", "pandas", "scipy"):
                with contextlib.suppress(ImportError):  # a submodule that only its package can import
                    importlib.import_module(module)
        if outcome.passed:
            seconds[name] = outcome.seconds
        else:
            print(f"left out: {test_file(name)} fails without a mutant: {outcome.by}")
    return seconds


def schedule(mutant: Mutant, seconds: dict[str, float]) -> list[list[str]]:
    """The mutated file's own tests, then the others, fastest first."""
    stem = Path(mutant.file).stem
    own = [name for name in OWN_TESTS.get(stem, [stem]) if name in seconds]
    if stem in OWN_TESTS:
        return [[test_file(name) for name in own]]
    rest = sorted((name for name in seconds if name in TESTS and name not in own), key=seconds.__getitem__)
    return [[test_file(name) for name in names] for names in (own, rest) if names]


def run(chosen: list[Mutant], seconds: dict[str, float], jobs: int) -> list[tuple[Mutant, Outcome]]:
    limit = 20 + 2 * sum(seconds.values())
    waiting, running, done = list(reversed(chosen)), [], []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running.append(Process(mutant, schedule(mutant, seconds), limit))
        for process in list(running):
            if (outcome := process.poll()) is not None:
                running.remove(process)
                done.append((process.mutant, outcome))
                if outcome.passed:
                    print(f"survived  {process.mutant.name}\n{process.mutant.diff}", flush=True)
                elif len(done) % 25 == 0:
                    print(f"{len(done)} of {len(chosen)}", flush=True)
        time.sleep(0.02)
    order = {id(mutant): i for i, mutant in enumerate(chosen)}
    return sorted(done, key=lambda pair: order[id(pair[0])])


def summary(done: list[tuple[Mutant, Outcome]], excused: list[Mutant], seconds: dict[str, float], took: float) -> str:
    """The result as markdown."""
    survivors = [mutant for mutant, outcome in done if outcome.passed]
    killed = len(done) - len(survivors)
    kinds = Counter(mutant.kind for mutant, _ in done)
    alive = Counter(mutant.kind for mutant in survivors)
    lines = [
        f"{killed} of {len(done)} mutants killed ({killed / max(len(done), 1):.1%}), {len(survivors)} survived, "
        f"{len(excused)} equivalent and not run; {took:.0f} s.",
        f"Tests: {', '.join(test_file(name) for name in seconds)}.",
        "",
        "| kind | mutants | survived |",
        "|---|---|---|",
        *(f"| {kind} | {count} | {alive[kind]} |" for kind, count in sorted(kinds.items())),
        "",
    ]
    for mutant in survivors:
        lines += [f"{mutant.name}", "```diff", mutant.diff, "```"]
    if excused:
        lines += ["", "Equivalent:", *(f"- {m.name}: `{m.before}` -> `{m.after}`: {equivalent(m)}" for m in excused)]
    return "\n".join(lines)


def written(path: Path, done: list[tuple[Mutant, Outcome]], excused: list[Mutant], text: str) -> None:
    if path.suffix != ".json":
        path.write_text(text + "\n")
        return
    rows = [(mutant, "survived" if o.passed else "killed", o.by, o.seconds) for mutant, o in done]
    rows += [(mutant, "equivalent", equivalent(mutant), 0.0) for mutant in excused]
    names = ("file", "line", "kind", "before", "after")
    path.write_text(
        json.dumps(
            [{n: getattr(m, n) for n in names} | {"result": r, "by": by, "seconds": s} for m, r, by, s in rows],
            indent=1,
        )
    )


def tested(args) -> tuple[list[tuple[Mutant, Outcome]], list[Mutant], str]:
    """In a copy of the tree: what became of the chosen mutants, those that are equivalent, and the summary."""
    import pytest  # noqa: F401  before any fork, like torch
    import torch

    torch.set_num_threads(1)
    start = time.monotonic()
    chosen, excused = selected(args, Path("."))
    own = {name for mutant in chosen for name in OWN_TESTS.get(Path(mutant.file).stem, [])}
    seconds = baseline([*TESTS, *sorted(own)])
    print(f"tests without a mutant: {sum(seconds.values()):.0f} s; {len(chosen)} mutants", flush=True)
    done = run(chosen, seconds, args.jobs)
    return done, excused, summary(done, excused, seconds, time.monotonic() - start)


def selected(args, root: Path) -> tuple[list[Mutant], list[Mutant]]:
    """Mutants to run, and equivalent ones."""
    chosen = [mutant for mutant in mutants(root) if fnmatch.fnmatch(mutant.name, args.only)]
    return [m for m in chosen if not equivalent(m)][:: args.every], [m for m in chosen if equivalent(m)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of the mathematics in algos/*.py.")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument(
        "--only", default="*", help="glob on 'algos/pieces/kl.py:30 sign', such as '*kl.py*' or '*sign'"
    )
    parser.add_argument("--every", type=int, default=1, help="only every Nth mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, nargs="*", default=[], help="result files, .json or .md")
    args = parser.parse_args()
    if args.list:
        chosen, excused = selected(args, ROOT)
        for mutant in chosen:
            print(f"{mutant.name}\n{mutant.diff}")
        print(f"{len(chosen)} mutants, {len(excused)} equivalent")
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    outputs = [path.resolve() for path in args.out]
    with tempfile.TemporaryDirectory() as copied:
        for name in ("algos", "tests", "evaluation", "pipelines"):
            shutil.copytree(ROOT / name, Path(copied) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copied)
        os.chdir(copied)
        sys.path[:] = [copied] + [
            path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")
        ]
        done, excused, text = tested(args)
        os.chdir(ROOT)
    print(text)
    for path in outputs:
        written(path, done, excused, text)
    raise SystemExit(any(outcome.passed for _, outcome in done))


if __name__ == "__main__":
    main()
