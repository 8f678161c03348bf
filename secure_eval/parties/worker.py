"""The process of one party or dealer: `secure_eval.parties.worker.main()`, told what to do by frames on its standard input.

It works on one command after the other (start, connect, agree, setup, offline, online) and answers each with its ledger. While it works, a
thread of its own gives signs of life. It ends with its input, at once, whatever it is working on.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from typing import IO, Any

import torch
from torch import Tensor

from secure_eval import protocols
from secure_eval.network.emulation import Link, over
from secure_eval.network.links import Credentials, connect_all, listen
from secure_eval.network.transport import Progress, Tcp, Transport
from secure_eval.parties import frames
from secure_eval.parties.acceptance import accept
from secure_eval.parties.roles import Dealer, Party, Plan, links
from secure_eval.program import Program


class Worker:
    """State of one role's process."""

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self.role: Party | Dealer | None = None
        self.program: Program | None = None

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
        sockets = connect_all(
            self._name, self._listener, pairs, addresses, self._credentials, message["within"]
        )
        self._listener.close()
        # Whoever started this process watches all roles: only there a slow peer can be told from a stopped one.
        self.transport = over(self._network, Tcp(self._name, sockets, timeout=None))
        role = Dealer if self._name == "dealer" else Party
        self.role = role(self._protocol, self.transport, self._fraction_bits)
        return {}

    def agree(self, message: dict[str, Any], constants: dict[str, Tensor]) -> dict[str, Any]:
        assert self.role is not None
        known = None if isinstance(self.role, Dealer) else constants
        program = accept(Program.from_json(message["program"], known))
        self.role.agree(program)
        self.program = program
        return {}

    def setup(self, message: dict[str, Any], _: dict[str, Tensor]) -> dict[str, Any]:
        assert self.program is not None, "the roles have to agree on a program first"
        plan = Plan(self.program, self._protocol, self._fraction_bits)
        if isinstance(self.role, Dealer):
            self.role.setup(plan)
        else:
            assert isinstance(self.role, Party)
            self.role.setup(self.program, plan)
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


COMMANDS = ("start", "connect", "agree", "setup", "offline", "online")


class _Mouth:
    """Writes frames to the process that started this one, and signs of life between them while a command is being worked on."""

    def __init__(self, sink: IO[bytes], worker: Worker):
        self._sink, self._worker = sink, worker
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._every = 1.0
        threading.Thread(target=self._beat, name="signs of life", daemon=True).start()

    def listen_to(self, message: dict[str, Any]) -> None:
        """A command begins: signs come often enough for its timeout."""
        self._every = min(1.0, message.get("timeout", self._every * 8) / 8)
        self._busy.set()

    def answer(self, answer: dict[str, Any]) -> None:
        """A command has ended."""
        self._busy.clear()
        with self._lock:
            frames.write(self._sink, answer)

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._busy.wait()
            pause.wait(self._every)
            transport = self._worker.transport
            with self._lock:
                if self._busy.is_set():
                    found = transport.progress() if transport else Progress()
                    frames.write(self._sink, {"beat": [found.moved, found.waits_for]})


def _read(source: IO[bytes], commands: queue.SimpleQueue[Any]) -> None:
    """Hands on what comes in. When nothing more can come, the process has nobody left to work for."""
    try:
        while (frame := frames.read(source)) is not None:
            commands.put(frame)
    finally:
        os._exit(0)


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Works on frames from `source` and answers on `sink`; does not return before one has failed."""
    worker = Worker()
    mouth = _Mouth(sink, worker)
    commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, commands), name="commands", daemon=True).start()
    with torch.inference_mode():
        while True:
            message, tensors = commands.get()
            command = message["command"]
            if command not in COMMANDS:
                mouth.answer({"error": f"unknown command {command!r}; allowed: {', '.join(COMMANDS)}"})
                continue
            mouth.listen_to(message)
            try:
                answer = getattr(worker, command)(message, tensors)
            except Exception as error:
                mouth.answer(
                    {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
                )
                return
            mouth.answer(answer)


def main() -> None:
    # Anything that a library prints must not get between the frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, sink)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # the thread that reads commands is not waited for
