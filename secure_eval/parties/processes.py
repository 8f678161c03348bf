"""Parties and dealer as processes of this machine, linked by mutual TLS; client and model owner stay in this process."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from secure_eval.counting import collect
from secure_eval.measurement import Ledger, Measurement
from secure_eval.network.emulation import Link, over
from secure_eval.network.links import connect_all, issue, listen
from secure_eval.network.transport import Progress, Tcp, Transport
from secure_eval.parties.child import Child
from secure_eval.parties.launch import Launcher, LauncherClosed
from secure_eval.parties.roles import Client, Inputs, Owner, Plan, Prepared, links, party_names, role_names
from secure_eval.parties.watch import TIMEOUT_S, Sign, root_cause, wait_for
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol

_HERE = ("client", "owner")

_LINKS_S = 60.0
"""Seconds in which all connections have to stand, at least: who is not there by then is named."""

_ANSWERS_S = 5.0
"""Seconds in which threads of this process notice that their peers are gone."""


class Processes(Launcher):
    """Starts one process a party and one for the dealer.

    Args:
        threads: compute threads of each process.
        network: what the links are emulated as; None leaves them as they are.
        timeout: seconds without progress of a role (see watch.py) after which a phase is given up and all processes are killed.

    Raises NoProgress, from here and from every phase, with the roles and the phase.
    """

    simulation = "processes on one machine, keys made by the launcher, which is client and model owner"

    def __init__(
        self,
        protocol: type[Protocol],
        fraction_bits: int,
        threads: int = 1,
        network: Link | None = None,
        timeout: float = TIMEOUT_S,
    ):
        self._protocol = protocol
        self._network = network
        self._timeout = timeout
        self._children: dict[str, Child] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._transports: dict[str, Transport] = {}
        self._life = itertools.count()
        self._phase = ""
        self._closed = False
        self._ending = threading.Lock()
        names = role_names(protocol)
        # Its threads start the processes, and live until these have ended (see Child).
        self._pool = ThreadPoolExecutor(len(names), thread_name_prefix="sordino")
        try:
            self._start(names, protocol, fraction_bits, threads)
        except BaseException:
            self.close()
            raise

    def _start(self, names: list[str], protocol: type[Protocol], fraction_bits: int, threads: int) -> None:
        credentials = issue(names)
        listeners = {name: listen() for name in _HERE}
        for name in names:
            if name not in _HERE:
                self._children[name] = self._pool.submit(Child, name).result()
        settings = {
            "protocol": protocol.name,
            "fraction_bits": fraction_bits,
            "threads": threads,
            "network": None if self._network is None else asdict(self._network),
            "timeout": self._timeout,
        }
        answers = self._together(
            "start-up",
            {
                name: lambda c=c, name=name: c.ask(
                    "start", "start-up", role=name, credentials=asdict(credentials[name]), **settings
                )  # type: ignore[misc]
                for name, c in self._children.items()
            },
        )
        addresses = {name: tuple(answer["address"]) for name, answer in answers.items()}
        addresses |= {name: listener.getsockname()[:2] for name, listener in listeners.items()}
        pairs = [pair for pair in links(protocol) if pair != ("owner", "client")]
        within = max(2 * self._timeout, _LINKS_S)
        calls = self._asking("connect", "set-up", addresses=addresses, within=within)
        for name in _HERE:
            mine = [pair for pair in pairs if name in pair]
            calls[name] = lambda name=name, mine=mine: connect_all(
                name, listeners[name], mine, addresses, credentials[name], within
            )  # type: ignore[misc]
        try:
            sockets = self._together("set-up", calls)
        finally:
            for listener in listeners.values():
                listener.close()
        # Owner and client are one process here: what they tell each other does not leave it.
        ends = dict(zip(_HERE, socket.socketpair(), strict=True))
        for name, other in (("client", "owner"), ("owner", "client")):
            mine_and_other = {**sockets[name], other: ends[name]}
            self._transports[name] = over(self._network, Tcp(name, mine_and_other, timeout=None))
        self._client = Client(protocol, self._transports["client"], fraction_bits)
        self._owner = Owner(protocol, self._transports["owner"], fraction_bits)

    def _asking(self, command: str, phase: str, *of: str, **message: Any) -> dict[str, Callable[[], Any]]:
        """Calls that give a command to the processes named, all of them by default."""
        return {
            name: lambda c=c: c.ask(command, phase, **message)  # type: ignore[misc]
            for name, c in self._children.items()
            if not of or name in of
        }

    def _look(self, role: str) -> Sign:
        """What is known of a role now. Those of this process live as long as whoever asks."""
        if role in self._children:
            return self._children[role].sign()
        transport = self._transports.get(role)
        return Sign(next(self._life), transport.progress() if transport else Progress())

    def _together(self, phase: str, calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Runs the calls side by side. When one fails, or nothing gets on, all roles are ended; raises what tells most."""
        if self._closed:
            raise LauncherClosed("the roles have ended")
        self._phase = phase

        def inferring(call: Callable[[], Any]) -> Any:
            with torch.inference_mode():
                return call()

        futures = {name: self._pool.submit(inferring, call) for name, call in calls.items()}
        looks = {name: lambda name=name: self._look(name) for name in calls}
        try:
            wait_for(futures, looks, phase, self._timeout)
            closed, error = self._closed, root_cause(futures)
        except BaseException:
            self._end()
            wait(futures.values(), _ANSWERS_S)
            raise
        if error is not None:
            self._end()
            wait(futures.values(), _ANSWERS_S)
            if closed:
                raise LauncherClosed(f"closed during the {phase} phase") from error
            raise error
        results = {name: future.result() for name, future in futures.items()}
        for name, result in results.items():
            if isinstance(result, dict) and "ledger" in result:
                self._ledgers.setdefault(name, Ledger()).take(result["ledger"])
        return results

    def setup(self, program: Program, plan: Plan) -> None:
        text = program.to_json()
        calls = self._asking(
            "agree", "set-up", *party_names(self._protocol), tensors=dict(program.constants), program=text
        )
        if self._protocol.has_dealer:  # it makes its plan from shapes, and gets no tensor of the model
            calls |= self._asking("agree", "set-up", "dealer", program=text)
        self._together(
            "set-up",
            calls
            | {"client": lambda: self._client.agree(program), "owner": lambda: self._owner.agree(program)},
        )
        calls = self._asking("setup", "set-up")
        self._together(
            "set-up",
            calls
            | {"client": lambda: self._client.setup(program), "owner": lambda: self._owner.setup(program)},
        )

    def offline(self) -> None:
        self._together("offline", self._asking("offline", "offline"))

    def prepare(self, inputs: Mapping[str, Tensor]) -> Prepared:
        with torch.inference_mode():
            return self._client.prepare(inputs)

    def online(self, inputs: Inputs) -> list[Any]:
        parties = [name for name in self._children if name != "dealer"]
        calls = self._asking("online", "online", *parties)
        calls["client"] = lambda: self._client.online(inputs)
        outputs: list[Any] = self._together("online", calls)["client"]
        return outputs

    def measurement(self, program: Program) -> Measurement:
        result = Measurement(simulation=self.simulation)
        ledgers = {**self._ledgers, **{name: t.ledger for name, t in self._transports.items()}}
        collect(result, program, ledgers, with_seconds=True)
        return result

    def _end(self) -> None:
        """Kills the processes, and lets go whoever waits for them here."""
        with self._ending:
            self._closed = True
            for child in self._children.values():
                child.kill()
            for transport in self._transports.values():
                transport.abort()

    def close(self) -> None:
        self._end()
        self._pool.shutdown()  # only then: nobody asks a child any more
        for child in self._children.values():
            child.close()
        for transport in self._transports.values():
            transport.close()
