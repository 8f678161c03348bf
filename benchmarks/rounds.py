"""Microseconds that one round takes between two processes on this machine: the transport's own share of a query.

A round is 8 bytes each way at the same time, as a narrow step of a protocol sends them. Beside `Tcp` with mutual TLS 1.3, which is
what parties use, stand `Tcp` over plain sockets and the bare sockets themselves: what the machine allows.

    python benchmarks/rounds.py [--rounds 20000] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from secure_eval.network.links import connect_all, issue, listen
from secure_eval.network.transport import Tcp, TensorSpec

ROLES = ("party0", "party1")


def _connected(role: str, listener: socket.socket, address: Any, credentials: Any) -> socket.socket:
    peer = ROLES[1 - ROLES.index(role)]
    return connect_all(role, listener, [ROLES], {"party1": address}, credentials)[peer]


def _plain(role: str, listener: socket.socket, address: Any) -> socket.socket:
    if role == "party0":
        return socket.create_connection(address)
    return listener.accept()[0]


def _bare(sock: socket.socket, rounds: int) -> None:
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = bytes(8)
    for _ in range(rounds):
        sock.sendall(message)
        sock.recv(8, socket.MSG_WAITALL)


def _exchange(role: str, sock: socket.socket, rounds: int) -> None:
    peer = ROLES[1 - ROLES.index(role)]
    transport, message, spec = Tcp(role, {peer: sock}), torch.zeros(1, dtype=torch.int64), TensorSpec((1,))
    for _ in range(rounds):
        transport.exchange({peer: [message]}, {peer: [spec]})


def _party(
    role: str, listener: socket.socket, credentials: Any, rounds: int, repeats: int, results: Any
) -> None:
    torch.set_num_threads(1)
    address = listener.getsockname()
    kinds: dict[str, Callable[[], None]] = {}
    sockets = [_plain(role, listener, address), _plain(role, listener, address)]
    secured = _connected(role, listener, address, credentials)
    kinds["bare sockets"] = lambda: _bare(sockets[0], rounds)
    kinds["Tcp, plain sockets"] = lambda: _exchange(role, sockets[1], rounds)
    kinds["Tcp, mutual TLS 1.3"] = lambda: _exchange(role, secured, rounds)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, run in kinds.items():
            started = time.perf_counter()
            run()
            found[name].append((time.perf_counter() - started) / rounds * 1e6)
    results.put((role, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    results, listener, credentials = context.Queue(), listen(), issue(ROLES)
    processes = [
        context.Process(
            target=_party,
            args=(role, listener, credentials[role], options.rounds, options.repeats, results),
        )
        for role in ROLES
    ]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)["party0"]
    for process in processes:
        process.join()
    table = {name: {"best": min(us), "median": statistics.median(us)} for name, us in found.items()}
    for name, row in table.items():
        print(f"{name:22s} best {row['best']:6.1f} us   median {row['median']:6.1f} us a round")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"microseconds_a_round": table, "rounds": options.rounds, "repeats": options.repeats},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
