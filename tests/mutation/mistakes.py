"""The mistakes: functions from a node of the syntax tree to mutated nodes, each with its kind."""

import ast
import copy
from collections.abc import Callable, Iterator

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
UNLIMITED = {
    "PositiveInt": "int",
    "NonNegativeInt": "int",
    "PositiveFloat": "float",
    "NonNegativeFloat": "float",
    "Share": "float",
}


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


def refuses(node: ast.AST) -> bool:
    """Whether this is a check of the settings or of the inputs: if ...: raise."""
    return isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)


def checks(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if refuses(node):
        yield "check dropped", ast.If(ast.Constant(False), node.body, node.orelse)


def defaults(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Numbers and switches: a setting's default, one that a subclass or a variant changes, a constant."""
    if isinstance(node, ast.AnnAssign):
        for value in _others(node.value):
            yield "default", ast.AnnAssign(node.target, node.annotation, value, node.simple)
    if isinstance(node, ast.Assign):
        for value in _others(node.value):
            yield "assigned", ast.Assign(node.targets, value)
    if called(node).endswith("Config") or called(node) == "_variant":
        for i, keyword in enumerate(node.keywords):
            for value in _others(keyword.value):
                other = ast.keyword(keyword.arg, value)
                yield "given", ast.Call(node.func, node.args, [*node.keywords[:i], other, *node.keywords[i + 1 :]])


def _others(node: ast.expr | None) -> list[ast.expr]:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    return [ast.Constant(value * 2 if value else 1)] if isinstance(value, int | float) else []


def limits(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Limits that a setting's type states: PositiveInt | None, Annotated[float, Field(ge=1)], Literal["a", "b"]."""
    if isinstance(node, ast.AnnAssign):
        free = _Unlimited().visit(copy.deepcopy(node.annotation))
        if ast.dump(free) != ast.dump(node.annotation):
            yield "limit dropped", ast.AnnAssign(node.target, free, node.value, node.simple)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
        yield "limit dropped", ast.Assign(node.targets, _Unlimited().visit(copy.deepcopy(node.value)))


class _Unlimited(ast.NodeTransformer):
    """A type without its limits."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(UNLIMITED.get(node.id, node.id), node.ctx)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if ast.unparse(node.value) == "Annotated":
            return self.visit(parts[0])
        if ast.unparse(node.value) == "Literal":
            return ast.Name(type(ast.literal_eval(parts[0])).__name__, ast.Load())
        return self.generic_visit(node)


KINDS: tuple[Callable, ...] = (arithmetic, off_by_one, comparison, masks, swaps, gradients, checks, defaults, limits)
PLANNED = {  # the mistakes by name: each must find a line in algos/, or its function has lost what it looks for
    *("sign", "term dropped", "factor dropped", "divisor dropped", "power", "not dropped"),
    *("constant", "range", "order", "comparison", "and for or", "mask dropped", "condition dropped"),
    *("clamp's side", "clamp dropped", "detach dropped", "root", "no_grad dropped", "check dropped"),
    *("default", "assigned", "given", "limit dropped"),
    *(f"{other} for {name}" for name, other in SWAPS.items()),
}
