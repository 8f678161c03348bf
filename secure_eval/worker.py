"""The process of one party or dealer: `python -m secure_eval.worker`, told what to do by frames on its standard input.

It works on one command after the other (start, connect, setup, offline, online) and answers each with its ledger; it ends with its input.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import IO, Any

import torch
from torch import Tensor

from secure_eval import frames, protocols
from secure_eval.emulation import Link, over
from secure_eval.links import Credentials, connect_all, listen
from secure_eval.program import Program
from secure_eval.roles import Dealer, Party, Plan, links
from secure_eval.transport import Tcp, Transport


class Worker:
    """State of one role's process."""

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self.role: Party | Dealer | None = None

    def start(self, message: dict[str, Any], _: dict[str, Tensor]) -> dict[str, Any]:
        torch.set_num_threads(message["threads"])
        self._name = message["role"]
        self._protocol = protocols.get(message["protocol"])
        self._fraction_bits = message["fraction_bits"]
        self._network = None if message["network"] is None else Link(**message["network"])
        self._credentials = Credentials(**message["credentials"])
        self._listener = listen()
        return {"address": list(self._listener.getsockname()[:2])}

    def connect(self, message: dict[str, Any], _: dict[str, Tensor]) -> dict[str, Any]:
        addresses = {role: (host, port) for role, (host, port) in message["addresses"].items()}
        pairs = [(a, b) for a, b in links(self._protocol) if self._name in (a, b)]
        sockets = connect_all(self._name, self._listener, pairs, addresses, self._credentials)
        self._listener.close()
        self.transport = over(self._network, Tcp(self._name, sockets))
        role = Dealer if self._name == "dealer" else Party
        self.role = role(self._protocol, self.transport, self._fraction_bits)
        return {}

    def setup(self, message: dict[str, Any], constants: dict[str, Tensor]) -> dict[str, Any]:
        program = Program.from_json(message["program"], constants)
        plan = Plan(program, self._protocol, self._fraction_bits)
        if isinstance(self.role, Dealer):
            self.role.setup(plan)
        else:
            assert isinstance(self.role, Party)
            self.role.setup(program, plan)
        return self._ledger()

    def offline(self, message: dict[str, Any], _: dict[str, Tensor]) -> dict[str, Any]:
        assert self.role is not None
        self.role.offline()
        return self._ledger()

    def online(self, message: dict[str, Any], _: dict[str, Tensor]) -> dict[str, Any]:
        assert isinstance(self.role, Party)
        self.role.online()
        return self._ledger()

    def _ledger(self) -> dict[str, Any]:
        assert self.transport is not None
        return {"ledger": self.transport.ledger.newest()}


COMMANDS = ("start", "connect", "setup", "offline", "online")


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Works on frames from `source` until it ends; answers on `sink`."""
    worker = Worker()
    with torch.inference_mode():
        while (frame := frames.read(source)) is not None:
            message, tensors = frame
            command = message["command"]
            if command not in COMMANDS:
                frames.write(sink, {"error": f"unknown command {command!r}; allowed: {', '.join(COMMANDS)}"})
                continue
            try:
                answer = getattr(worker, command)(message, tensors)
            except Exception as error:
                frames.write(
                    sink, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
                )
                return
            frames.write(sink, answer)


def main() -> None:
    # Anything that a library prints must not get between the frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
