"""Parties and dealer as processes: the same results and counts as threads, and failures that end in an error, not in waiting."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval.processes import Processes
from secure_eval.ring import EncodingError
from secure_eval.transport import TransportError


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
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        processes = {name: child.process.pid for name, child in launcher._children.items()}
        assert set(processes) == {"party0", "party1", "dealer"}
        assert len({*processes.values(), os.getpid()}) == 4
    assert all(child.process.poll() is not None for child in launcher._children.values())


def test_a_value_that_does_not_fit_ends_the_query_with_its_error(model: nn.Module) -> None:
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        with pytest.raises(EncodingError, match="does not fit 16 fraction bits"):
            secure(torch.full((1, 8), 1e30))
        with pytest.raises(RuntimeError, match="compile the model again"):
            secure(torch.zeros(1, 8))


def test_a_killed_party_is_an_error_at_once(model: nn.Module) -> None:
    with secure_eval.compile(model, (torch.zeros(1, 8),), parties="processes") as secure:
        secure.offline()
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        os.kill(launcher._children["party1"].process.pid, signal.SIGKILL)
        with pytest.raises(TransportError):
            secure(torch.zeros(1, 8))
