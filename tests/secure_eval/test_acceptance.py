"""Programs that come from elsewhere: what is malformed, forbidden, untrue or absurd is refused by name, and none of it is run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secure_eval
from secure_eval import protocols
from secure_eval.clear_operations import CLEAR, VIEWS, ForbiddenOperation, operation
from secure_eval.engine import evaluate_clear
from secure_eval.network.transport import Transport
from secure_eval.parties.acceptance import MAX_ELEMENTS, accept
from secure_eval.parties.agreement import Agreement, Disagreement
from secure_eval.parties.launch import Threads
from secure_eval.parties.roles import Plan
from secure_eval.program import MalformedProgram, Node, Program, Ref
from secure_eval.spec import InvalidProgram, check
from secure_eval.testing.operations import CASES


class Model(nn.Module):
    """Clear and secret operations, a mask, a view, a join and a comparison."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1.0 - attention_mask[:, None, :].to(torch.float32)) * -1e4
        y = self.linear(x)
        scores = torch.softmax(y @ x.transpose(-1, -2) + mask, -1)
        return torch.cat([torch.relu(scores @ y), x[:, :1]], 1)


def program() -> Program:
    return secure_eval.capture(
        Model().eval(), {"x": torch.zeros(2, 3, 4), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    )


@pytest.fixture(scope="module")
def sent() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON of a program, and its constants."""
    captured = program()
    return json.loads(captured.to_json()), dict(captured.constants)


def test_what_is_captured_is_accepted_as_it_was_sent(sent: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    data, constants = sent
    again = accept(Program.from_json(json.dumps(data), constants))
    assert json.loads(again.to_json()) == data


@pytest.mark.parametrize("case", CASES)
def test_every_operation_is_accepted(case: str) -> None:
    captured = secure_eval.capture(CASES[case].model(), CASES[case].inputs())
    accept(Program.from_json(captured.to_json(), captured.constants))


# -- the list --------------------------------------------------------------------------------------


FORBIDDEN = {
    "aten.from_file.default": "is not among",
    "aten.randn.default": "is not among",
    "aten.bernoulli.default": "is not among",
    "aten.dropout.default": "is not among",
    "aten.nonzero.default": "is not among",
    "aten.add_.Tensor": "is not among",
    "aten.add.out": "changes its operands",
    "aten.copy_.default": "is not among",
    "aten.set_.source_Storage": "is not among",
    "aten.item.default": "is not among",
    "aten.add.nonesuch": "no such operation",
    "aten.add": "no such operation",
    "prims.add.default": "is not among",
    "os.system": "is not among",
    "": "is not among",
}


@pytest.mark.parametrize("target", FORBIDDEN)
def test_an_operation_that_is_not_on_the_list_is_refused_everywhere(target: str) -> None:
    """By the check of a program, and by whoever would run it."""
    node = Node("f", f"aten::{target}", (), "constant", ())
    with pytest.raises(InvalidProgram, match=FORBIDDEN[target]):
        check(Program((node,), (), ()))
    with pytest.raises(ForbiddenOperation, match=FORBIDDEN[target]):
        evaluate_clear(node, {}, {}, torch.device("cpu"))


def test_the_list_has_pure_functions_only() -> None:
    """No overload that a program may name writes to an operand, or takes a generator; and each name is one of torch's."""
    for name in CLEAR:
        packet = getattr(torch.ops.aten, name)
        allowed = []
        for overload in packet.overloads():
            try:
                allowed.append(operation(f"aten.{name}.{overload}"))
            except ForbiddenOperation:
                continue
        assert allowed, name
        for function in allowed:
            schema: Any = function._schema  # type: ignore[attr-defined]
            assert not schema.is_mutable and "Generator" not in str(schema), schema
    assert (
        VIEWS < CLEAR and not {"from_file", "rand", "randn", "empty_strided_cpu", "set_", "resize_"} & CLEAR
    )


def test_capture_refuses_by_name_what_no_role_would_run() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(3)

    with pytest.raises(secure_eval.UnsupportedOperations, match="randn.*is not among the operations"):
        secure_eval.capture(Drawing().eval(), (torch.zeros(2, 3),))


def test_memory_as_it_was_found_is_never_a_value() -> None:
    """What an unfilled tensor holds would differ between roles."""
    for _ in range(3):
        node = Node("e", "aten::aten.empty.memory_format", ([1000],), "constant", (1000,))
        assert not evaluate_clear(node, {}, {}, torch.device("cpu")).any()
        torch.full((1000,), 7.0)


# -- rules -------------------------------------------------------------------------------------------


def shared(*more: Node) -> Program:
    """A program of one shared input and other nodes."""
    x = Node("x", "input", ("x",), "client", (2, 3))
    return Program((x, Node("s", "share_input", (Ref("x"),), "secret", (2, 3)), *more), ("x",), ())


BROKEN: dict[str, Node] = {
    "a view by any operation": Node("v", "view", ("aten.from_file.default", Ref("s")), "secret", (2, 3)),
    "a view that is no rearrangement": Node("v", "view", ("aten.exp.default", Ref("s")), "secret", (2, 3)),
    "a join by any operation": Node("v", "cat", ("aten.add.Tensor", [Ref("s")], 0), "secret", (2, 3)),
    "windows by any operation": Node(
        "v", "conv", (Ref("s"), Ref("s"), None, [["aten.from_file.default", "f"]]), "secret", (2, 3)
    ),
    "windows that are none": Node("v", "conv", (Ref("s"), Ref("s"), None, 7), "secret", (2, 3)),
    "too few arguments": Node("v", "mul", (Ref("s"),), "secret", (2, 3)),
    "a clear operation of no kind": Node("v", "system", ("rm",), "constant", ()),
    "an input that is a constant": Node("v", "input", ("v",), "constant", ()),
    "a parameter that is public": Node("v", "parameter", (), "public", ()),
}


@pytest.mark.parametrize("what", BROKEN)
def test_nodes_that_break_a_rule_are_refused(what: str) -> None:
    check(shared())
    with pytest.raises(InvalidProgram, match="v: "):
        check(shared(BROKEN[what]))


def test_a_role_takes_no_view_by_any_operation() -> None:
    """The check of rules is part of what a role does with a program that it was sent."""
    accept(shared())
    for node in BROKEN.values():
        if node.level == "secret":
            with pytest.raises(InvalidProgram, match="v: "):
                accept(shared(node))


def clear(target: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> Node:
    return Node("v", f"aten::{target}", args, "constant", shape)


UNTRUE: dict[str, tuple[Node, str]] = {
    "another shape": (clear("aten.zeros.default", ([4],), (2,)), r"would be torch.float32 \(4,\)"),
    "far more than stated": (clear("aten.zeros.default", ([1 << 50],), (2,)), "would be"),
    "far more in parts": (
        Node("v", "aten::aten.broadcast_tensors.default", ([Ref("e"), Ref("e")],), "constant", ()),
        "has more than 10 elements",
    ),
    "another type": (
        Node("v", "aten::aten.ones.default", ([2],), "constant", (2,), kwargs=(("dtype", torch.int64),)),
        "would be torch.int64",
    ),
    "no such arguments": (clear("aten.zeros.default", ("a", "b"), (2,)), "cannot be computed"),
    "a constant that was not sent": (Node("v", "constant", (), "constant", (2,)), "was not sent"),
}


@pytest.mark.parametrize("what", UNTRUE)
def test_shapes_that_are_untrue_are_refused_before_anything_is_allocated(what: str) -> None:
    node, message = UNTRUE[what]
    wide = Node("e", "aten::aten.zeros.default", ([6],), "constant", (6,))
    program = Program((wide, node), (), ())
    with pytest.raises(InvalidProgram, match=message):
        accept(program, max_elements=10 if "parts" in what else MAX_ELEMENTS)


def test_a_secret_value_of_another_shape_than_stated_is_refused_in_the_plan() -> None:
    """An expanded share costs nothing until it is computed with: the plan finds it on meta tensors."""
    wide = Node("v", "view", ("aten.expand.default", Ref("s"), [1 << 40, 2, 3]), "secret", (2, 3))
    program = accept(shared(wide, Node("w", "square", (Ref("v"),), "secret", (2, 3))))
    for name in ("plain", "dealer2pc", "replicated3pc"):
        with pytest.raises(InvalidProgram, match="has the shape"):
            Plan(program, protocols.get(name), 16)


def test_a_program_of_absurd_size_is_refused_by_its_limit() -> None:
    huge = Node("v", "square", (Ref("s"),), "secret", (1 << 20, 1 << 20))
    with pytest.raises(InvalidProgram, match=f"allowed: {MAX_ELEMENTS}. The largest is v"):
        accept(shared(huge))
    with pytest.raises(InvalidProgram, match="12 elements in all; allowed: 11"):
        accept(shared(), max_elements=11)
    accept(shared(), max_elements=12)
    nodes = tuple(Node(str(i), "aten::aten.zeros.default", ([0],), "constant", (0,)) for i in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secure_eval.parties.acceptance.MAX_NODES", 2)
        with pytest.raises(InvalidProgram, match="3 nodes; allowed: 2"):
            accept(Program(nodes, (), ()))


# -- texts from anybody --------------------------------------------------------------------------------

MALFORMED = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "7",
    "other keys": '{"nodes": [], "inputs": [], "outputs": [], "code": "x"}',
    "nodes that are none": '{"nodes": 3, "inputs": [], "outputs": []}',
    "a node of other length": '{"nodes": [["x"]], "inputs": [], "outputs": []}',
    "an input that is no name": '{"nodes": [], "inputs": [3], "outputs": []}',
    "an attribute of torch": '{"nodes": [], "inputs": [], "outputs": [{"dtype": "save"}]}',
    "an unknown object": '{"nodes": [], "inputs": [], "outputs": [{"call": "x"}]}',
    "nested too deeply": '{"nodes": [], "inputs": [], "outputs": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a number too long": '{"nodes": [], "inputs": [], "outputs": [' + "9" * 10_000 + "]}",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_program_is_malformed(what: str) -> None:
    with pytest.raises(MalformedProgram):
        Program.from_json(MALFORMED[what], {})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (0, 3),
        (1, None),
        (2, "x"),
        (3, []),
        (4, [-1]),
        (4, [1.5]),
        (4, [True]),
        (5, "no such dtype"),
        (5, "save"),
        (6, 1),
        (7, 1),
        (8, [["a"]]),
        (8, [[1, 2]]),
        (9, 1.5),
        (9, 1 << 40),
    ],
)
def test_a_node_with_a_wrong_part_is_malformed(
    sent: tuple[dict[str, Any], dict[str, Tensor]], part: int, value: Any
) -> None:
    data = copy.deepcopy(sent[0])
    data["nodes"][2][part] = value
    with pytest.raises(MalformedProgram, match="node 2"):
        Program.from_json(json.dumps(data), sent[1])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 62)
    | st.floats()
    | st.sampled_from(
        ["", "x", "view", "aten.exp.default", "aten::aten.full.default", "secret", "constant", "float32"]
    )
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["ref", "dtype", "nodes", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, part in inner for p in places(part, (*path, key)))]


def changed(data: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of a JSON value with one part of it changed."""
    if not path:
        return change(data)
    copied = copy.copy(data)
    copied[path[0]] = changed(data[path[0]], path[1:], change)
    return copied


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_program_is_accepted_or_refused_by_name(
    sent: tuple[dict[str, Any], dict[str, Tensor]], data: st.DataObject
) -> None:
    """Parts replaced, dropped and exchanged: nothing but the three named errors comes out, and nothing is run but on meta tensors."""
    damaged, constants = sent
    paths = places(damaged)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths))
        new = data.draw(JSON | st.sampled_from(paths).map(lambda other: part_of(sent[0], other)))
        try:
            damaged = changed(damaged, path, lambda _: new)  # noqa: B023 (called at once)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    try:
        text = json.dumps(damaged)
        accept(Program.from_json(text, constants), max_elements=1 << 30)
    except (MalformedProgram, InvalidProgram):
        pass


def part_of(value: Any, path: tuple[Any, ...]) -> Any:
    """What lies there in a JSON value."""
    for key in path:
        value = value[key]
    return value


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | JSON.map(json.dumps))
def test_any_text_is_refused_by_name(text: str) -> None:
    try:
        accept(Program.from_json(text, {}))
    except (MalformedProgram, InvalidProgram):
        pass


# -- agreement -------------------------------------------------------------------------------------------


def test_roles_agree_on_program_constants_protocol_bits_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    given = replace(program(), constants={"table": torch.ones(3)})
    mine = Agreement.of(given, "dealer2pc", 16)
    again = replace(program(), constants={"table": torch.ones(3)})
    mine.compare("party0", "party1", Agreement.of(again, "dealer2pc", 16).tensor())
    others = {
        "another program": Agreement.of(
            given.with_nodes([*given.nodes[:-1], replace(given.nodes[-1], site="elsewhere")]), "dealer2pc", 16
        ),
        "other constants": Agreement.of(replace(given, constants={"table": torch.zeros(3)}), "dealer2pc", 16),
        "another protocol": Agreement.of(given, "replicated3pc", 16),
        "another number of fraction bits": Agreement.of(given, "dealer2pc", 14),
    }
    monkeypatch.setattr("secure_eval.parties.agreement._version", lambda: "0.0.0")
    others["another version of Sordino"] = Agreement.of(given, "dealer2pc", 16)
    for what, other in others.items():
        with pytest.raises(
            Disagreement, match=f"^party0: party1 is about to compute with {what}[^,]*; nothing was shared$"
        ):
            mine.compare("party0", "party1", other.tensor())


def test_roles_in_threads_refuse_another_program() -> None:
    square = shared(Node("v", "square", (Ref("s"),), "secret", (2, 3)))
    given = replace(square, outputs=(Ref("v"),))
    launcher = Threads(protocols.get("dealer2pc"), 16)
    dealer: Any = launcher._dealer
    agree = dealer.agree
    dealer.agree = lambda program: agree(shared())
    try:
        with pytest.raises(
            Disagreement, match="is about to compute with another program; nothing was shared"
        ):
            launcher.setup(given, Plan(given, protocols.get("dealer2pc"), 16))
        assert not any(t.ledger.phases["setup"].bytes for t in launcher._transports.values())
    finally:
        launcher.close()


def test_all_roles_tell_and_hear_and_the_dealer_only_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    between: dict[str, tuple[set[str], set[str]]] = {}
    unite = Transport.unite

    def watched(self: Transport, sends: Any, receives: Any) -> Any:
        between[self.role] = set(sends), set(receives)
        return unite(self, sends, receives)

    monkeypatch.setattr(Transport, "unite", watched)
    with secure_eval.compile(CASES["mul"].model(), CASES["mul"].inputs()):
        pass
    parties = {"party0", "party1"}
    assert between == {
        "client": (parties | {"owner"}, parties | {"owner"}),
        "owner": (parties | {"client"}, parties | {"client"}),
        "party0": ({"client", "owner", "party1"}, {"client", "owner", "party1", "dealer"}),
        "party1": ({"client", "owner", "party0"}, {"client", "owner", "party0", "dealer"}),
        "dealer": (parties, set()),
    }


def test_a_role_that_has_only_the_constants_shapes_agrees_on_the_rest() -> None:
    given = replace(program(), constants={"table": torch.ones(3)})
    shapes = replace(given, constants={k: v.to("meta") for k, v in given.constants.items()})
    Agreement.of(given, "dealer2pc", 16).compare(
        "party0", "dealer", Agreement.of(shapes, "dealer2pc", 16).tensor()
    )
    with pytest.raises(Disagreement):
        Agreement.of(given, "dealer2pc", 16).compare(
            "party0", "dealer", Agreement.of(shapes, "dealer2pc", 15).tensor()
        )


def test_a_text_that_names_a_file_writes_none(tmp_path: Path) -> None:
    """The file that a program's JSON once wrote at a party."""
    file = tmp_path / "written"
    text = json.dumps(
        {
            "nodes": [
                [
                    "f",
                    "aten::aten.from_file.default",
                    [str(file), True, 64],
                    "constant",
                    [64],
                    "float32",
                    "",
                    False,
                    [],
                    None,
                ]
            ],
            "inputs": [],
            "outputs": [],
        }
    )
    with pytest.raises(InvalidProgram, match="aten.from_file.default"):
        accept(Program.from_json(text, {}))
    assert not file.exists()
