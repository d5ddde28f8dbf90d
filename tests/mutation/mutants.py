"""The mutants of the files in algos/ and algos/pieces/, and the mutants that no test can tell from the original."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mistakes import KINDS, PLANNED, refuses

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"__init__", "__main__", "describe", "settings"}  # tables, words, and the reading of settings


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

    def holds(self, file: str, before: str, after: str) -> bool:
        """Whether it is in this file, with these parts of its line before and after."""
        return file == self.file and before in self.before and after in self.after


def silent(node: ast.AST) -> bool:
    """Text, types and messages: a change there is no mistake in the mathematics."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.FunctionDef) and node.name in ("warnings", "term", "describe_clipped", "changed")


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
    """All mutants. SystemExit if a planned mistake finds no line, or an excuse finds no mutant."""
    found: dict[tuple, Mutant] = {}
    for path in sorted([*(root / "algos").glob("*.py"), *(root / "algos" / "pieces").glob("*.py")]):
        if path.stem in SKIPPED:
            continue
        tree = ast.parse(path.read_text(), str(path))
        file = path.relative_to(root).as_posix()
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
    made = [mutant for mutant in found.values() if mutant.before != mutant.after]
    idle = sorted(PLANNED - {mutant.kind for mutant in made})
    idle += [
        f"{file}: {before}"
        for file, before, after, _ in EQUIVALENT
        if not any(m.holds(file, before, after) for m in made)
    ]
    if idle:
        raise SystemExit(f"nothing to mutate for: {'; '.join(idle)}")
    return made


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
        "masked_sum(token_log_ratio, mask,",
        "token_log_ratio, mask == mask,",
        ZERO,
    ),
)


def equivalent(mutant: Mutant) -> str:
    """The reason why no test can tell this mutant from the original, or nothing."""
    for file, before, after, reason in EQUIVALENT:
        if mutant.holds(file, before, after):
            return reason
    return ""
