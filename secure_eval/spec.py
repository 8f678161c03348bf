"""What a program may look like, written as data and checked after capture and after every pass."""

from __future__ import annotations

from secure_eval.clear_operations import JOINS, VIEWS, ForbiddenOperation, operation
from secure_eval.operations import OPERATIONS
from secure_eval.program import LEVELS, Node, Program, Ref

_GIVEN = {
    "input": ("client", "public"),
    "parameter": ("owner",),
    "constant": ("constant",),
    "table": ("client",),
    "getitem": ("constant", "public", "client", "owner"),
}
"""Clear nodes that are no torch operation, and the levels that they may have."""


class InvalidProgram(AssertionError):
    """Something that no engine may run. Where this package's capture or a pass built it, that is a bug of this package."""


def check(program: Program) -> Program:
    """Raises InvalidProgram with the first node that breaks a rule; returns the program otherwise."""
    seen: dict[str, Node] = {}
    for node in program.nodes:
        if node.name in seen:
            raise InvalidProgram(f"{node.name} is defined twice")
        if node.level not in LEVELS:
            raise InvalidProgram(f"unknown level in {node!r}")
        for reference in node.references():
            if reference not in seen:
                raise InvalidProgram(f"{node!r} uses {reference}, which is not defined before it")
        levels = {seen[r].level for r in node.references()}
        if node.level == "secret":
            _check_secret(node, seen)
        elif "secret" in levels:
            raise InvalidProgram(f"{node!r} would compute in the clear with a secret")
        elif (
            node.level == "owner"
            and levels & {"client", "public"}
            or node.level == "client"
            and "owner" in levels
        ):
            raise InvalidProgram(f"{node!r} needs a value that its level does not know")
        elif node.level in ("constant", "public") and levels & {"client", "owner"}:
            raise InvalidProgram(f"{node!r} would make a private value public")
        if node.level != "secret":
            _check_clear(node)
        seen[node.name] = node
    for output in program.outputs:
        if isinstance(output, Ref) and output.name not in seen:
            raise InvalidProgram(f"output {output.name} is not defined")
    return program


def _check_clear(node: Node) -> None:
    """A clear node is given, or one of the torch operations that a program may name."""
    if node.op.startswith("aten::"):
        _check_operation(node, node.op.removeprefix("aten::"))
    elif node.level not in _GIVEN.get(node.op, ()):
        raise InvalidProgram(f"{node!r} is no clear operation")
    elif node.op == "getitem" and len(node.args) != 2 or node.op == "table" and len(node.args) != 1:
        raise InvalidProgram(f"{node!r} has {len(node.args)} arguments")


def _check_operation(node: Node, target: object, views: bool = False) -> None:
    try:
        operation(str(target), VIEWS) if views else operation(str(target))
    except ForbiddenOperation as error:
        raise InvalidProgram(f"{node!r}: {error}") from None


def _check_targets(node: Node) -> None:
    """The torch operations that a secret operation names."""
    if node.op == "view":
        _check_operation(node, node.args[0], views=True)
    elif node.op == "cat" and node.args[0] not in JOINS:
        raise InvalidProgram(f"{node!r} joins by {node.args[0]}; allowed: {', '.join(JOINS)}")
    elif node.op == "conv":
        steps = node.args[3]
        if not isinstance(steps, (list, tuple)) or not all(isinstance(s, (list, tuple)) and s for s in steps):
            raise InvalidProgram(f"{node!r}: its windows are no list of views")
        for step in steps:
            _check_operation(node, step[0], views=True)


def _check_secret(node: Node, seen: dict[str, Node]) -> None:
    if node.op not in OPERATIONS:
        raise InvalidProgram(f"{node!r} is not a secure operation")
    if node.op in ("share_input", "share_weight"):
        expected = "client" if node.op == "share_input" else "owner"
        levels = [seen[r].level for r in node.references()]
        if levels != [expected]:
            raise InvalidProgram(f"{node!r} takes one {expected} value, not {levels}")
        return
    kinds = OPERATIONS[node.op].arguments
    if len(node.args) < len(kinds):
        raise InvalidProgram(f"{node!r} has {len(node.args)} arguments; {node.op} takes {len(kinds)}")
    _check_targets(node)
    for kind, argument in zip((*kinds, *"c" * (len(node.args) - len(kinds))), node.args, strict=False):
        if argument is None and kind.endswith("?"):
            continue
        for reference in Node("", "", (argument,), "secret", ()).references():
            level = seen[reference].level
            if (
                level
                not in {
                    "s": ("secret",),
                    "c": ("constant", "public"),
                    "v": ("secret", "constant", "public"),
                    "-": (),
                }[kind.rstrip("?")]
            ):
                raise InvalidProgram(f"{node!r}: argument {reference} is {level}")
