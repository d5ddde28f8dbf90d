"""A mypy plugin for @settings: a default that stands without a type has the type of the field that it overrides.

`scale = "group_std"` in a subclass keeps `scale: Scale`, as it does in algos/pieces/settings.py when the program runs.
Without the plugin mypy infers Literal["group_std"] and refuses every comparison with another value.
"""

from mypy.nodes import AssignmentStmt, NameExpr, TypeInfo, Var
from mypy.plugin import ClassDefContext, Plugin
from mypy.plugins.dataclasses import dataclass_class_maker_callback, dataclass_tag_callback

DECORATOR = "algos.pieces.settings.settings"


class Settings(Plugin):
    def get_class_decorator_hook(self, fullname: str):
        return dataclass_tag_callback if fullname == DECORATOR else None

    def get_class_decorator_hook_2(self, fullname: str):
        return with_inherited_types if fullname == DECORATOR else None


def with_inherited_types(context: ClassDefContext) -> bool:
    """Give each default without a type its field's type; then make the class a dataclass. False: call again later."""
    for statement in context.cls.defs.body:
        if isinstance(statement, AssignmentStmt) and statement.type is None and len(statement.lvalues) == 1:
            name = statement.lvalues[0]
            if isinstance(name, NameExpr) and isinstance(name.node, Var):
                field = inherited(context.cls.info, name.name)
                if field is not None:
                    if field.type is None:
                        return False
                    annotate(statement, name, name.node, field)
    return dataclass_class_maker_callback(context)


def inherited(info: TypeInfo, name: str) -> Var | None:
    """The field of this name in the nearest base class that has one."""
    for base in info.mro[1:]:
        if name in base.names and isinstance(base.names[name].node, Var):
            return base.names[name].node
    return None


def annotate(statement: AssignmentStmt, name: NameExpr, variable: Var, field: Var) -> None:
    statement.type, statement.new_syntax = field.type, True
    variable.type, variable.is_inferred = field.type, False
    name.is_inferred_def = False


def plugin(version: str):
    return Settings
