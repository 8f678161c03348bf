"""Parties and dealer as processes of this machine, linked by mutual TLS; client and model owner stay in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secure_eval import frames
from secure_eval.counting import collect
from secure_eval.emulation import Link, over
from secure_eval.launch import Launcher
from secure_eval.links import connect_all, issue, listen
from secure_eval.measurement import Ledger, Measurement
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol
from secure_eval.roles import Client, Owner, Plan, links, role_names
from secure_eval.transport import Tcp, Transport, TransportError

_HERE = ("client", "owner")


class _Child:
    """A started process and the frames to and from it."""

    def __init__(self, role: str):
        self.role = role
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        package_parent = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [package_parent, environment.get("PYTHONPATH")])
        )
        self.process = subprocess.Popen(
            # -P: a folder of the same name where the caller stands is not this package.
            [sys.executable, "-P", "-m", "secure_eval.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def ask(
        self, command: str, tensors: Mapping[str, Tensor] | None = None, **message: Any
    ) -> dict[str, Any]:
        """Sends a command and waits for its answer. Raises RuntimeError with the process's own error."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            frames.write(self.process.stdin, {"command": command, **message}, tensors)
            frame = frames.read(self.process.stdout)
        except (BrokenPipeError, EOFError):
            frame = None
        if frame is None:
            raise TransportError(f"{self.role} ended during {command} (exit status {self.process.wait()})")
        answer = frame[0]
        if "error" in answer:
            kind = TransportError if answer["error"].startswith("TransportError") else RuntimeError
            raise kind(
                f"{self.role} failed during {command}: {answer['error']}\n{answer.get('traceback', '')}"
            )
        return answer

    def end(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Processes(Launcher):
    """Starts one process a party and one for the dealer.

    Args:
        threads: compute threads of each process.
        network: what the links are emulated as; None leaves them as they are.
    """

    def __init__(
        self, protocol: type[Protocol], fraction_bits: int, threads: int = 1, network: Link | None = None
    ):
        self._protocol = protocol
        self._network = network
        self._children: dict[str, _Child] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._transports: dict[str, Transport] = {}
        names = role_names(protocol)
        self._pool = ThreadPoolExecutor(len(names), thread_name_prefix="sordino")
        self._lock = threading.Lock()
        try:
            self._start(names, protocol, fraction_bits, threads)
        except BaseException:
            self.close()
            raise

    def _start(self, names: list[str], protocol: type[Protocol], fraction_bits: int, threads: int) -> None:
        credentials = issue(names)
        listeners = {name: listen() for name in _HERE}
        self._children = {name: _Child(name) for name in names if name not in _HERE}
        settings = {
            "protocol": protocol.name,
            "fraction_bits": fraction_bits,
            "threads": threads,
            "network": None if self._network is None else asdict(self._network),
        }
        answers = self._together(
            {
                name: lambda c=c, name=name: c.ask(
                    "start", role=name, credentials=asdict(credentials[name]), **settings
                )  # type: ignore[misc]
                for name, c in self._children.items()
            }
        )
        addresses = {name: tuple(answer["address"]) for name, answer in answers.items()}
        addresses |= {name: listener.getsockname()[:2] for name, listener in listeners.items()}
        pairs = [pair for pair in links(protocol) if pair != ("owner", "client")]
        calls: dict[str, Callable[[], Any]] = {
            name: lambda c=c: c.ask("connect", addresses=addresses)  # type: ignore[misc]
            for name, c in self._children.items()
        }
        for name in _HERE:
            mine = [pair for pair in pairs if name in pair]
            calls[name] = lambda name=name, mine=mine: connect_all(
                name, listeners[name], mine, addresses, credentials[name]
            )  # type: ignore[misc]
        sockets = self._together(calls)
        for listener in listeners.values():
            listener.close()
        # Owner and client are one process here: what they tell each other does not leave it.
        ends = dict(zip(_HERE, socket.socketpair(), strict=True))
        for name, other in (("client", "owner"), ("owner", "client")):
            self._transports[name] = over(self._network, Tcp(name, {**sockets[name], other: ends[name]}))
        self._client = Client(protocol, self._transports["client"], fraction_bits)
        self._owner = Owner(protocol, self._transports["owner"], fraction_bits)

    def _together(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Runs the calls side by side; raises the first failure that is not merely another role's broken link."""

        def guarded(call: Callable[[], Any]) -> Any:
            with torch.inference_mode():
                try:
                    return call()
                except BaseException:
                    for transport in self._transports.values():  # whoever waits for this process learns of it
                        transport.close()
                    raise

        futures = {name: self._pool.submit(guarded, call) for name, call in calls.items()}
        errors = []
        for name, future in futures.items():
            error = future.exception()
            if error is not None:
                errors.append(error)
            elif isinstance(future.result(), dict) and "ledger" in future.result():
                self._ledgers.setdefault(name, Ledger()).take(future.result()["ledger"])
        if errors:
            raise next((e for e in errors if not isinstance(e, TransportError)), errors[0])
        return {name: future.result() for name, future in futures.items()}

    def setup(self, program: Program, plan: Plan) -> None:
        text, constants = program.to_json(), dict(program.constants)
        calls: dict[str, Callable[[], Any]] = {
            name: lambda c=c: c.ask("setup", constants, program=text)  # type: ignore[misc]
            for name, c in self._children.items()
        }
        calls["client"] = lambda: self._client.setup(program)
        calls["owner"] = lambda: self._owner.setup(program)
        self._together(calls)

    def offline(self) -> None:
        self._together({name: lambda c=c: c.ask("offline") for name, c in self._children.items()})  # type: ignore[misc]

    def online(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        calls: dict[str, Callable[[], Any]] = {
            name: lambda c=c: c.ask("online")  # type: ignore[misc]
            for name, c in self._children.items()
            if name != "dealer"
        }
        calls["client"] = lambda: self._client.online(inputs)
        outputs: list[Any] = self._together(calls)["client"]
        return outputs

    def measurement(self, program: Program) -> Measurement:
        result = Measurement()
        ledgers = {**self._ledgers, **{name: t.ledger for name, t in self._transports.items()}}
        collect(result, program, ledgers, with_seconds=True)
        return result

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        for child in self._children.values():
            child.end()
        self._children = {}
        self._pool.shutdown()
