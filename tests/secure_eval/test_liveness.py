"""Queries that fail, stop, meet or are given nonsense: each ends in a named error, and the next one is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval.model import InputError, ModelClosed, RestartWarning
from secure_eval.network.transport import TransportError
from secure_eval.parties.processes import Processes
from secure_eval.parties.roles import Party
from secure_eval.parties.watch import NoProgress
from secure_eval.randomness import RandomnessReuse, Stream
from secure_eval.ring import EncodingError

pytestmark = pytest.mark.usefixtures("forked_roles")

TIMEOUT = 2.0
X = torch.linspace(-3, 3, 16).view(2, 8)


class Small(nn.Module):
    """A linear layer and a ReLU, with a table that the client looks up in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 6)
        self.table = nn.Embedding(5, 8)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.relu(self.linear(x + self.table(ids)))


IDS = torch.tensor([0, 4])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small().eval()


def is_right(secure: Any, model: nn.Module, x: Tensor = X) -> bool:
    return bool((secure(x, IDS) - model(x, IDS)).abs().max() < 2**-9)


def processes_of(secure: Any) -> dict[str, subprocess.Popen[bytes]]:
    launcher = secure._launcher
    assert isinstance(launcher, Processes)
    return {name: child.process for name, child in launcher._children.items()}


def test_a_bad_input_uses_nothing_up_and_leaves_the_model_as_it_was(model: nn.Module) -> None:
    with secure_eval.compile(model, (X, IDS)) as secure:
        secure.offline()
        launcher: Any = secure._launcher
        stream = launcher._client._splitter._streams[0]
        bad = [
            (torch.full((2, 8), float("nan")), IDS, EncodingError, "input 'x': a value of magnitude nan"),
            (torch.full((2, 8), 1e30), IDS, EncodingError, "input 'x': .* does not fit 16 fraction bits"),
            (torch.zeros(3, 8), IDS, InputError, "captured for"),
            (X, torch.tensor([0, 5]), InputError, "outside of its table"),
        ]
        for x, ids, error, message in bad:
            with pytest.raises(error, match=message):
                secure(x, ids)
        assert launcher is secure._launcher and secure._ready == 1 and secure.restarts == 0
        assert not stream.used and launcher._client._query == 0
        assert is_right(secure, model)


def test_a_public_input_that_is_no_number_is_refused_at_the_client() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return x * attention_mask

    mask = torch.ones(2, 8)
    with secure_eval.compile(Masked().eval(), (X, mask)) as secure:
        with pytest.raises(
            EncodingError, match="public input 'attention_mask' has a value that is no number"
        ):
            secure(X, mask * float("nan"))
        assert (secure(X, mask) - X).abs().max() < 2**-9 and secure.restarts == 0


@pytest.mark.parametrize("parties", ["threads", "processes"])
def test_calls_of_several_threads_are_answered_one_after_the_other(model: nn.Module, parties: str) -> None:
    inputs = [X * factor for factor in (1.0, -1.0, 0.5, 0.25, -0.5, 0.125, 2.0, -2.0)]
    with secure_eval.compile(model, (X, IDS), parties=parties) as secure:
        with ThreadPoolExecutor(len(inputs)) as pool:
            found = list(pool.map(lambda x: secure(x, IDS), inputs))
        assert secure.restarts == 0
    assert all((got - model(x, IDS)).abs().max() < 2**-9 for got, x in zip(found, inputs, strict=True))


def failing_once(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """Lets party 1 fail in its next run of a phase, after its messages have begun to move."""
    original = getattr(Party, phase)
    failed: list[bool] = []

    def fail(self: Party, *args: Any) -> Any:
        result = original(self, *args)
        if self.number == 1 and not failed:
            failed.append(True)
            raise ArithmeticError("planted")
        return result

    monkeypatch.setattr(Party, phase, fail)


@pytest.mark.parametrize("phase", ["offline", "online"])
def test_a_failed_query_is_followed_by_a_right_one_with_randomness_of_its_own(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Everything that was dealt is thrown away with the roles: the new ones share no key with the old."""
    served: list[tuple[bytes, int]] = []
    tensor = Stream.tensor

    def recorded(self: Stream, index: int, *args: Any, **kwargs: Any) -> Tensor:
        if type(self) is Stream:
            served.append((self._key + id(self).to_bytes(8, "big"), index))
        return tensor(self, index, *args, **kwargs)

    monkeypatch.setattr(Stream, "tensor", recorded)
    with secure_eval.compile(model, (X, IDS)) as secure:
        assert is_right(secure, model)
        failing_once(monkeypatch, phase)
        with pytest.raises(ArithmeticError, match="planted"):
            secure(X, IDS)
        before = len(served)
        with pytest.warns(RestartWarning, match="ArithmeticError: planted.*new roles are set up"):
            assert is_right(secure, model)
        assert secure.restarts == 1 and is_right(secure, model)
        assert secure.measurement.communication() == secure.predicted().communication()
    old, new = {key[:16] for key, _ in served[:before]}, {key[:16] for key, _ in served[before:]}
    assert len(old) == len(new) == 4 and not old & new  # of weights, inputs, and the dealer and each party
    assert len(set(served)) == len(served)


def test_closing_ends_a_query_that_runs_with_a_clear_error(model: nn.Module) -> None:
    for parties in ("threads", "processes"):
        secure = secure_eval.compile(
            model, (X, IDS), parties=parties, network=secure_eval.Link(0.5, 1e9), timeout=30
        )
        secure.offline()
        with ThreadPoolExecutor(2) as pool:
            running, waiting = pool.submit(secure, X, IDS), pool.submit(secure, X, IDS)
            time.sleep(0.3)
            secure.close()
            messages = sorted(str(f.exception(20)) for f in (running, waiting))
            assert all(isinstance(f.exception(), ModelClosed) for f in (running, waiting))
        assert messages == [
            "the model is closed: compile it again",
            "the model was closed during the online phase",
        ]
        with pytest.raises(ModelClosed, match="compile it again"):
            secure(X, IDS)
        with pytest.raises(ModelClosed):
            secure.offline()
        secure.close()


@pytest.mark.parametrize(
    ("protocol", "role", "phase"),
    [
        ("dealer2pc", "party1", "online"),
        ("dealer2pc", "dealer", "offline"),
        ("replicated3pc", "party2", "online"),
    ],
)
def test_a_stopped_role_is_named_and_the_next_query_is_right(
    model: nn.Module, protocol: str, role: str, phase: str
) -> None:
    with secure_eval.compile(model, (X, IDS), protocol, "processes", timeout=TIMEOUT) as secure:
        if phase == "online":
            secure.offline()
        old = processes_of(secure)
        os.kill(old[role].pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(NoProgress, match=f"^{role} made no progress for 2 s in the {phase} phase$"):
            secure(X, IDS)
        assert time.monotonic() - started < 10 * TIMEOUT
        assert all(process.poll() is not None for process in old.values()), "a process was left"
        with pytest.warns(RestartWarning, match=f"{role} made no progress"):
            assert is_right(secure, model)


def test_a_killed_role_is_named_at_once(model: nn.Module) -> None:
    with secure_eval.compile(model, (X, IDS), "dealer2pc", "processes") as secure:
        secure.offline()
        os.kill(processes_of(secure)["party0"].pid, signal.SIGKILL)
        with pytest.raises(TransportError, match=r"^party0 ended in the online phase \(killed by SIGKILL\)"):
            secure(X, IDS)


def test_a_role_that_computes_for_longer_than_the_timeout_is_not_given_up(model: nn.Module) -> None:
    """A link so slow that the query takes many times the timeout: the roles work, or their messages are on their way."""
    with secure_eval.compile(
        model, (X, IDS), "dealer2pc", "processes", network=secure_eval.Link(1.0, 1e9), timeout=0.6
    ) as secure:
        started = time.monotonic()
        assert is_right(secure, model)
        assert time.monotonic() - started > 2.0


CALLER = """
import os, sys, time, torch, secure_eval
secure = secure_eval.compile(torch.nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), parties="processes", timeout=1.5)
children = {name: child.process.pid for name, child in secure._launcher._children.items()}
print(*children.values(), flush=True)
sys.stdin.readline()
secure(torch.zeros(1, 3))
print("answered", flush=True)
time.sleep(600)
"""


def caller() -> tuple[subprocess.Popen[str], list[int]]:
    root = str(Path(secure_eval.__file__).resolve().parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_roles_end_with_a_killed_caller_stopped_ones_too() -> None:
    process, children = caller()
    assert len(children) == 3 and all(map(running, children))
    os.kill(children[0], signal.SIGSTOP)
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while any(map(running, children)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in children if running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_a_caller_that_was_stopped_for_longer_than_the_timeout_goes_on() -> None:
    process, children = caller()
    assert len(children) == 3 and process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "answered\n"
    finally:
        process.kill()
        process.communicate()


def test_a_thousand_queries_leave_no_record_behind() -> None:
    """What streams remember is bounded by one query, and what belongs to an earlier one is still refused."""
    x = torch.tensor([1.5, -2.0])
    with secure_eval.compile(_Square().eval(), (x,)) as secure:
        launcher: Any = secure._launcher
        streams: dict[str, Stream] = {
            "client": launcher._client._splitter._streams[0],
            "party0's inputs": launcher._parties[0]._inputs._streams[0],
            "party0's randomness": launcher._parties[0]._dealer,
            "dealer": launcher._dealer._streams[1],
        }
        most = dict.fromkeys(streams, 0)
        first: dict[str, int] = {}
        for _ in range(1000):
            assert (secure(x) - x * x).abs().max() < 2**-10
            for name, stream in streams.items():
                most[name] = max(most[name], len(stream.used))
                first.setdefault(name, min(stream.used))
        assert all(0 < count <= len(secure._plan.query) * 64 for count in most.values()), most
        assert max(most.values()) < 50
        for name, stream in streams.items():
            assert stream.query >= 999
            with pytest.raises(RandomnessReuse, match="belongs to query"):
                stream.tensor(first[name], (2,))


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_threads_have_the_timeout_that_compile_was_given(model: nn.Module) -> None:
    with secure_eval.compile(model, (X, IDS), timeout=7.5) as secure:
        launcher: Any = secure._launcher
        assert launcher._timeout == 7.5


def test_threads_that_all_wait_are_an_error(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with secure_eval.compile(model, (X, IDS), timeout=0.5) as secure:
        secure.offline()
        monkeypatch.setattr(Party, "online", lambda self: self.transport.exchange({}, {"owner": []}))
        with pytest.raises(NoProgress, match="in the online phase: .*client waits for party0"):
            secure(X, IDS)
