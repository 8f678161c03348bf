"""Runs the roles of one computation: as threads of this process here, as processes in processes.py."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, ClassVar

import torch
from torch import Tensor

from secure_eval.counting import collect
from secure_eval.measurement import Measurement
from secure_eval.network.emulation import Link, over
from secure_eval.network.transport import Hub, InProcess
from secure_eval.parties.roles import (
    Client,
    Dealer,
    Inputs,
    Owner,
    Party,
    Plan,
    Prepared,
    Role,
    party_names,
    role_names,
)
from secure_eval.parties.watch import TIMEOUT_S, Sign, root_cause, wait_for
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol


class LauncherClosed(RuntimeError):
    """The roles were ended, in the middle of a phase or before it."""


class Launcher(ABC):
    """Starts the phases in all roles together and waits for them. A phase that fails ends all roles: nothing of it can be used again."""

    simulation: ClassVar[str]
    """Which roles share a process or a machine, and who made their keys: said by every measurement."""

    @abstractmethod
    def setup(self, program: Program, plan: Plan) -> None:
        """All roles agree on the program; then the weights are shared."""

    @abstractmethod
    def offline(self) -> None:
        """Correlated randomness for one more query."""

    @abstractmethod
    def prepare(self, inputs: Mapping[str, Tensor]) -> Prepared:
        """What the client makes of a query's inputs by itself. Raises for inputs that cannot be shared; nothing is spent or sent."""

    @abstractmethod
    def online(self, inputs: Inputs) -> list[Any]:
        """One query."""

    @abstractmethod
    def measurement(self, program: Program) -> Measurement:
        """Counts of the phases that were run last."""

    @abstractmethod
    def close(self) -> None:
        """Ends all roles, also while another thread runs a phase: that raises LauncherClosed there. Safe to call twice."""


class Threads(Launcher):
    """All roles in this process: for tests and simulations. Nothing is encrypted, and one process sees everything.

    `timeout`: seconds in which no message moves while all roles wait for one. A thread that computes cannot be told from one that hangs.
    """

    simulation = "threads: one process holds all roles"

    def __init__(
        self,
        protocol: type[Protocol],
        fraction_bits: int,
        device: torch.device | str = "cpu",
        network: Link | None = None,
        timeout: float = TIMEOUT_S,
    ):
        self._timeout = timeout
        self._hub = Hub(timeout=None)
        transports = {
            name: over(network, InProcess(name, self._hub, device)) for name in role_names(protocol)
        }
        self._transports = transports
        self._client = Client(protocol, transports["client"], fraction_bits)
        self._owner = Owner(protocol, transports["owner"], fraction_bits)
        self._parties = [Party(protocol, transports[n], fraction_bits) for n in party_names(protocol)]
        self._dealer = Dealer(protocol, transports["dealer"], fraction_bits) if protocol.has_dealer else None
        self._life = itertools.count()
        self._closed = False
        self._pool = ThreadPoolExecutor(len(transports), thread_name_prefix="sordino")

    @property
    def _roles(self) -> list[Role]:
        return [self._client, self._owner, *self._parties, *([self._dealer] if self._dealer else [])]

    def _together(self, phase: str, calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Runs the roles' calls side by side; raises what tells most of the failures."""
        if self._closed:
            raise LauncherClosed("the roles have ended")

        def guarded(call: Callable[[], Any]) -> Any:
            with torch.inference_mode():
                try:
                    return call()
                except BaseException:
                    self._hub.abort()
                    raise

        futures = {name: self._pool.submit(guarded, call) for name, call in calls.items()}
        looks = {name: lambda name=name: self._look(name) for name in calls}
        try:
            wait_for(futures, looks, phase, self._timeout)
        finally:
            closed = self._closed
            if any(not f.done() or f.exception() is not None for f in futures.values()):
                self._closed = True
                self._hub.abort()
                wait(futures.values())  # a thread cannot be ended: it ends by itself at its next message
        error = root_cause(futures)
        if error is not None and closed:
            raise LauncherClosed(f"closed during the {phase} phase") from error
        if error is not None:
            raise error
        return {name: future.result() for name, future in futures.items()}

    def _look(self, role: str) -> Sign:
        return Sign(next(self._life), self._transports[role].progress())

    def setup(self, program: Program, plan: Plan) -> None:
        self._together(
            "set-up",
            {role.transport.role: lambda r=role: r.agree(program) for role in self._roles},  # type: ignore[misc]
        )
        calls: dict[str, Callable[[], Any]] = {
            "owner": lambda: self._owner.setup(program),
            "client": lambda: self._client.setup(program),
        }
        calls |= {q.transport.role: lambda q=q: q.setup(program, plan) for q in self._parties}  # type: ignore[misc]
        if self._dealer:
            dealer = self._dealer
            calls["dealer"] = lambda: dealer.setup(plan)
        self._together("set-up", calls)

    def offline(self) -> None:
        calls = {q.transport.role: q.offline for q in self._parties}
        if self._dealer:
            calls["dealer"] = self._dealer.offline
        self._together("offline", calls)

    def prepare(self, inputs: Mapping[str, Tensor]) -> Prepared:
        with torch.inference_mode():
            return self._client.prepare(inputs)

    def online(self, inputs: Inputs) -> list[Any]:
        calls: dict[str, Callable[[], Any]] = {q.transport.role: q.online for q in self._parties}
        calls["client"] = lambda: self._client.online(inputs)
        outputs: list[Any] = self._together("online", calls)["client"]
        return outputs

    def measurement(self, program: Program) -> Measurement:
        result = Measurement(simulation=self.simulation)
        collect(result, program, {name: t.ledger for name, t in self._transports.items()}, with_seconds=True)
        return result

    def close(self) -> None:
        self._closed = True
        self._hub.abort()
        self._pool.shutdown()
