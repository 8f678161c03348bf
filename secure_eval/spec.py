"""What a program may look like, written as data and checked after capture and after every pass."""

from __future__ import annotations

from secure_eval.program import LEVELS, SECRET_OPERATIONS, Node, Program, Ref

# Kinds of argument: s secret, c clear and known to all parties (constant or public), v either of the two, - not a value.
# A trailing ? allows None. Arguments after those listed (sizes and public indices of a view) are clear. Operations that are absent take
# any mixture of s and c with at least one s.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "view": ("-", "s"),
    "cat": ("-", "v", "-"),
    "take": ("s", "c"),
    "add": ("v", "v"),
    "sub": ("v", "v"),
    "mul": ("v", "v"),
    "matmul": ("v", "v"),
    "neg": ("s",),
    "square": ("s",),
    "power": ("s", "-"),
    "linear": ("s", "v", "v?"),
    "conv": ("v", "v", "v?", "-"),
    "one_hot": ("s", "-"),
    "relu": ("s",),
    "gelu": ("s", "-"),
    "clamp": ("s", "-", "-"),
    "tanh": ("s",),
    "sigmoid": ("s",),
    "silu": ("s",),
    "erf": ("s",),
    "softplus": ("s",),
    "elu": ("s", "-"),
    "mish": ("s",),
    "reciprocal": ("s", "-", "-"),
    "signed_reciprocal": ("s", "-", "-"),
    "rsqrt": ("s", "-", "-"),
    "sqrt": ("s", "-", "-"),
    "exp": ("s", "-", "-"),
    "log": ("s", "-", "-"),
    "softmax_numerator": ("s", "c?", "-"),
    "layer_norm": ("s", "-", "v?", "v?", "-", "-", "-"),
    "rms_norm": ("s", "-", "v?", "-", "-", "-"),
    "amax": ("s", "-", "-"),
    "max_with_index": ("s", "-", "-"),
    "less": ("v", "v"),
    "equal": ("v", "v"),
    "where": ("v", "v", "v"),
}


class InvalidProgram(AssertionError):
    """A pass or the capture built something that no engine may run: a bug of this package."""


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
        seen[node.name] = node
    for output in program.outputs:
        if isinstance(output, Ref) and output.name not in seen:
            raise InvalidProgram(f"output {output.name} is not defined")
    return program


def _check_secret(node: Node, seen: dict[str, Node]) -> None:
    if node.op not in SECRET_OPERATIONS:
        raise InvalidProgram(f"{node!r} is not a secure operation")
    if node.op in ("share_input", "share_weight"):
        expected = "client" if node.op == "share_input" else "owner"
        levels = [seen[r].level for r in node.references()]
        if levels != [expected]:
            raise InvalidProgram(f"{node!r} takes one {expected} value, not {levels}")
        return
    kinds = _ARGUMENTS[node.op]
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
