"""Parties and dealer as processes: the same results and counts as threads, and failures that end in an error, not in waiting."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval.parties.child import Child
from secure_eval.parties.processes import Processes
from secure_eval.program import Node
from secure_eval.ring import EncodingError


class Small(nn.Module):
    """A linear layer, an exact GELU and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(nn.functional.gelu(self.linear(x)), -1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small().eval()


@pytest.mark.usefixtures("forked_roles")
@pytest.mark.parametrize("protocol", ["plain", "dealer2pc"])
def test_processes_compute_and_count_what_was_predicted(model: nn.Module, protocol: str) -> None:
    x = torch.linspace(-4, 4, 40).view(5, 8)
    with secure_eval.compile(model, (x,), protocol=protocol, parties="processes") as secure:
        for factor in (1.0, -0.5):
            error = (secure(x * factor) - model(x * factor)).abs().max().item()
            assert error < 2**-10
            assert secure.measurement.communication() == secure.predicted().communication()
        assert secure.measurement.online.seconds and secure.measurement.online.seconds > 0


def test_each_party_and_the_dealer_are_processes_of_their_own(model: nn.Module) -> None:
    """Started as a user's program starts them, not as copies of this process."""
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        processes = {name: child.process.pid for name, child in launcher._children.items()}
        assert set(processes) == {"party0", "party1", "dealer"}
        assert len({*processes.values(), os.getpid()}) == 4
        x = torch.linspace(-4, 4, 8).view(1, 8)
        assert (secure(x) - model(x)).abs().max() < 2**-10
    children = launcher._children.values()
    assert len(children) == 3 and all(child.process.poll() is not None for child in children)


@pytest.mark.usefixtures("forked_roles")
def test_ending_kills_a_stopped_process_too(model: nn.Module) -> None:
    """At once, not with the threads that started them."""
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        processes = [child.process for child in launcher._children.values()]
        os.kill(processes[0].pid, signal.SIGSTOP)
        launcher._end()
        assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 3


@pytest.mark.usefixtures("forked_roles")
def test_a_value_that_does_not_fit_is_refused_and_the_processes_go_on(model: nn.Module) -> None:
    x = torch.linspace(-1, 1, 8).view(1, 8)
    with secure_eval.compile(model, (x,), parties="processes") as secure:
        launcher = secure._launcher
        for value in (1e30, float("nan")):
            with pytest.raises(EncodingError, match="input 'x': .* does not fit 16 fraction bits"):
                secure(torch.full((1, 8), value))
        assert (secure(x) - model(x)).abs().max() < 2**-10
        assert secure._launcher is launcher and secure.restarts == 0


@pytest.mark.usefixtures("forked_roles")
def test_the_operations_of_a_program_that_was_sent_are_not_run_unless_they_are_on_the_list(
    model: nn.Module, tmp_path: Path
) -> None:
    """A party that is sent `aten.from_file` in a program's JSON refuses the program, and the file is not there afterwards."""
    file = tmp_path / "written"
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        node = Node("f", "aten::aten.from_file.default", (str(file), True, 64), "constant", (64,))
        program = replace(secure.program, nodes=(node, *secure.program.nodes))
        launcher = secure._launcher
        with pytest.raises(
            RuntimeError, match="InvalidProgram: .*aten.from_file.default is not among the operations"
        ):
            launcher.setup(program, secure._plan)
    assert not file.exists()


@pytest.mark.usefixtures("forked_roles")
def test_a_program_that_breaks_a_rule_is_refused_by_the_process_that_is_sent_it(model: nn.Module) -> None:
    """A size that no role takes, and that nothing else would notice before the memory is asked for."""
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        node = Node("huge", "aten::aten.zeros.default", ([1 << 38],), "constant", (1 << 38,))
        program = replace(secure.program, nodes=(node, *secure.program.nodes))
        with pytest.raises(
            RuntimeError, match="InvalidProgram: .* elements in all; allowed: .*The largest is huge"
        ):
            secure._launcher.setup(program, secure._plan)


@pytest.mark.usefixtures("forked_roles")
def test_roles_that_were_given_different_programs_share_nothing(model: nn.Module) -> None:
    """Each role sees for itself that another is about to compute something else."""
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        sent = {role: t.ledger.counts.bytes for role, t in launcher._transports.items()}
        node = secure.program.nodes[-1]
        other = secure.program.with_nodes([*secure.program.nodes[:-1], replace(node, site="elsewhere")])
        ask = Child.ask

        def changed(self: Child, command: str, *args: Any, **kwargs: Any) -> Any:
            if self.role == "party1" and command == "agree":
                kwargs["program"] = other.to_json()
            return ask(self, command, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Child, "ask", changed)
            with pytest.raises(
                RuntimeError, match="is about to compute with another program; nothing was shared"
            ):
                launcher.setup(secure.program, secure._plan)
        assert {role: t.ledger.counts.bytes for role, t in launcher._transports.items()} == sent
