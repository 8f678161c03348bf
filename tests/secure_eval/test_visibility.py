"""What all parties see of a model: nothing by how it is registered, and what they see is listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval import model_tensors
from secure_eval.architecture import Architecture
from secure_eval.capture import UnsupportedOperations, capture
from secure_eval.disclosure import public_lines
from secure_eval.parties import processes
from secure_eval.parties.child import Child
from secure_eval.program import Program, PublicConstant
from secure_eval.testing.harness import observe

X = torch.linspace(-1, 1, 12).view(2, 6)


class Registered(nn.Module):
    """Trained numbers in every way that torch can hold them."""

    def __init__(self) -> None:
        super().__init__()

        def drawn() -> Tensor:
            return torch.rand(6) + 0.5

        self.parameter = nn.Parameter(drawn())
        self.register_buffer("kept", drawn())
        self.register_buffer("passing", drawn(), persistent=False)
        self.register_buffer("eight_bits", (drawn() * 50).to(torch.int8))
        self.attribute = drawn()
        self.temperature = 0.37 + float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.parameter + self.kept
        x = x * self.passing + self.attribute
        return x * self.eight_bits.float() * self.temperature


SECRET = {"p_parameter", "b_kept", "b_passing", "b_eight_bits", "c_attribute"}


def test_what_is_multiplied_or_added_is_the_owners_however_it_is_registered() -> None:
    model = Registered().eval()
    program = capture(model, (X,))
    assert set(program.parameters) == SECRET and not program.constants
    assert [c.path for c in program.public_constants] == ["temperature"]
    assert program.public_constants[0].why == model_tensors.ATTRIBUTE
    with secure_eval.compile(program) as secure:
        assert float((secure(X) - model(X)).detach().abs().max()) < 2.0**-8


def test_no_party_is_sent_a_number_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_eval.parties.launch import Threads

    record: list[Any] = []
    setup = Threads.setup

    def watched(launcher: Any, *args: Any) -> None:
        record.append(observe(launcher._transports))
        setup(launcher, *args)

    monkeypatch.setattr(Threads, "setup", watched)
    model = Registered().eval()
    with secure_eval.compile(model, (X,)) as secure:
        secure(X)
        assert secure.public_constants == secure.program.public_constants
        for role in (*secure._launcher._parties, secure._launcher._client):  # type: ignore[attr-defined]
            assert not role.program.constants
    arrived = torch.cat(
        [t.tensor.reshape(-1) for t in record[0] if not t.sent and t.tensor.dtype == torch.int64]
    )
    for number in (model.passing, model.attribute, model.kept):
        encoded = secure_eval.ring.encode(number, 16)
        assert not torch.isin(encoded, arrived).any()


class Needed(nn.Module):
    """An index, a condition and two masks, none of which class and configuration give."""

    def __init__(self, order: list[int], keep: list[bool]):
        super().__init__()
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("keep", torch.tensor(keep))
        self.added = torch.where(torch.tensor(keep), 0.0, torch.finfo(torch.float32).min)
        self.table = torch.tensor([[0.5, 1.5], [2.5, -0.5]])
        self.register_buffer("rows", torch.tensor([1, 0, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(self.keep, x[:, self.order], 0.25)
        return torch.softmax(x + self.added, -1) @ self.table[self.rows].repeat(2, 1)


def test_what_operations_need_in_the_clear_is_public_and_listed() -> None:
    model = Needed([3, 1, 2, 5, 4, 0], [True, True, False, True, True, True]).eval()
    program = capture(model, (X,))
    found = {c.path: (c.name, c.why) for c in program.public_constants}
    assert found == {
        "order": ("b_order", "an index of index"),
        "keep": ("b_keep", "a condition of where"),
        "added": ("c_added", model_tensors.MASK),
    }
    assert set(program.constants) == {"b_order", "b_keep", "c_added"}
    assert set(program.parameters) == {"c_table", "b_rows"}, "what the owner reads by itself stays with it"
    with secure_eval.compile(program) as secure:
        assert float((secure(X) - model(X)).abs().max()) < 2.0**-8


def test_a_table_of_numbers_beyond_the_ring_is_refused_by_its_path() -> None:
    model = nn.Module()
    model.bias = torch.tensor([0.5, -1e30, 1.0, 0.0, 0.0, 0.0])
    model.forward = lambda x: x + model.bias  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^bias: values to 1e\+30 .*public_tensors="):
        capture(model.eval(), (X,))


def test_public_tensors_are_named_by_path() -> None:
    program = capture(Registered().eval(), (X,), public_tensors=["pass*", "attribute"])
    assert {c.path: c.why for c in program.public_constants} == {
        "passing": model_tensors.NAMED,
        "attribute": model_tensors.NAMED,
        "temperature": model_tensors.ATTRIBUTE,
    }
    assert set(program.parameters) == SECRET - {"b_passing", "c_attribute"}
    with pytest.raises(ValueError, match="'pasing' name no tensor; there are attribute, eight_bits"):
        capture(Registered().eval(), (X,), public_tensors=["pasing", "attribute"])


class Rotary(nn.Module):
    """Frequencies from a whole number, which the module keeps; and a scale that is one at first."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(dim) / dim), persistent=False)
        self.register_buffer("drawn", torch.rand(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.frequencies + self.drawn) * self.scale


def test_architecture_is_what_class_and_configuration_give_each_time() -> None:
    model = nn.Sequential(Rotary(6)).eval()
    state = torch.get_rng_state()
    program = capture(model, (X,))
    assert torch.equal(torch.get_rng_state(), state)
    assert [(c.path, c.shape, c.why) for c in program.public_constants] == [
        ("0.frequencies", (6,), model_tensors.ARCHITECTURE)
    ]
    model[0].frequencies[2] += 2.0**-20  # type: ignore[index, operator]
    assert not capture(model, (X,)).public_constants


def test_rotary_frequencies_of_a_model_from_its_configuration_are_architecture_and_changed_ones_are_not() -> (
    None
):
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = LlamaModel(LlamaConfig(vocab_size=20, **sizes)).eval()
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    program = capture(model, inputs)
    assert [(c.path, c.why) for c in program.public_constants] == [
        ("rotary_emb.inv_freq", model_tensors.ARCHITECTURE)
    ]
    with torch.device("meta"):
        shapes = LlamaModel(LlamaConfig(vocab_size=20, **sizes)).eval()
    assert capture(shapes, inputs).public_constants == program.public_constants
    model.rotary_emb.inv_freq.mul_(1.01)
    assert not capture(model, inputs).public_constants


def test_attributes_that_the_configuration_gives_are_not_listed() -> None:
    class Scaled(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.width, self.scale = width, width**-0.5

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = Scaled(6).eval()
    assert not capture(model, (X,)).public_constants and Architecture(model).gives_number("scale", 6**-0.5)
    model.scale = 0.41
    assert [c.path for c in capture(model, (X,)).public_constants] == ["scale"]


def test_an_operation_without_a_rule_names_the_tensors_that_are_secret() -> None:
    class Angles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.speed = torch.rand(3)

        def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
            return x * torch.cos(position_ids * self.speed)

    inputs = (torch.ones(2, 3), torch.arange(3))
    with pytest.raises(
        UnsupportedOperations, match="aten.cos.*\n.*public_tensors= says which are not: speed"
    ):
        capture(Angles().eval(), inputs)
    program = capture(Angles().eval(), inputs, public_tensors=["speed"])
    assert [c.path for c in program.public_constants] == ["speed"]


def test_lines_group_layers_and_count_numbers() -> None:
    constants = tuple(
        PublicConstant(f"b{i}", f"h.{i}.bias", (4, 4), "a condition of where") for i in range(3)
    )
    node = secure_eval.program.Node(
        "x", "mul", (secure_eval.program.Ref("y"), 0.5), "secret", (2,), site="h.0"
    )
    lines = public_lines(Program((node,), (), (), public_constants=constants))
    assert lines[0] == "Visible to all parties: h.*.bias (3 of them) [4, 4]: a condition of where"
    assert lines[1].startswith("Visible to all parties and the dealer: 1 numbers in the program's text")
    assert len(lines) == 2


@pytest.mark.usefixtures("forked_roles")
def test_the_dealer_gets_no_tensor_of_the_model_and_parties_get_what_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, list[Any]] = {}
    ask = Child.ask

    def watched(child: Any, command: str, phase: str, tensors: Any = None, **message: Any) -> Any:
        asked.setdefault(child.role, []).append((command, dict(tensors or {}), message))
        return ask(child, command, phase, tensors, **message)

    monkeypatch.setattr(Child, "ask", watched)
    model = Registered().eval()
    with secure_eval.compile(model, (X,), parties="processes", public_tensors=["passing"]) as secure:
        assert float((secure(X) - model(X)).detach().abs().max()) < 2.0**-8
        assert secure.measurement.simulation == processes.Processes.simulation
    setups = {role: next(a for a in found if a[0] == "agree") for role, found in asked.items()}
    assert set(setups["party0"][1]) == set(setups["party1"][1]) == {"b_passing"}
    assert all(not tensors for _, tensors, _ in asked["dealer"])
    assert str(float(model.passing[0])) not in str(asked["dealer"])


@pytest.mark.parametrize("name", ["plain", "dealer2pc", "replicated3pc"])
def test_outputs_have_the_working_precision(name: str) -> None:
    """A product has twice the fraction bits; the client gets none of the low ones, in no share."""
    torch.manual_seed(0)
    model = nn.Linear(6, 30).eval()
    with secure_eval.compile(model, (X,), name) as secure:
        got = secure(X)
        record = observe(secure._launcher._transports)  # type: ignore[attr-defined]
        secure(X)
        assert torch.equal(got * 2**16, (got * 2**16).round())
        assert float((got - model(X)).detach().abs().max()) < 2.0**-12
        assert secure.measurement.communication() == secure.predicted().communication()
        assert secure.measurement.simulation == "threads: one process holds all roles"
        assert secure.measurement.to_dict()["simulation"] and secure.predicted().simulation is None
    bits = [t.tensor for t in record if t.sent and t.peer == "client" and tuple(t.tensor.shape) == (1,)]
    assert bits and all(int(b[0]) == 16 for b in bits)
