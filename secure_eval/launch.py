"""Runs the roles of one computation: as threads of this process here, as processes in processes.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from secure_eval.counting import collect
from secure_eval.emulation import Link, over
from secure_eval.measurement import Measurement
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol
from secure_eval.roles import Client, Dealer, Owner, Party, Plan, party_names, role_names
from secure_eval.transport import Hub, InProcess


class Launcher(ABC):
    """Starts the phases in all roles together and waits for them."""

    @abstractmethod
    def setup(self, program: Program, plan: Plan) -> None: ...

    @abstractmethod
    def offline(self) -> None: ...

    @abstractmethod
    def online(self, inputs: Mapping[str, Tensor]) -> list[Any]: ...

    @abstractmethod
    def measurement(self, program: Program) -> Measurement: ...

    @abstractmethod
    def close(self) -> None: ...


class Threads(Launcher):
    """All roles in this process: for tests and simulations. Nothing is encrypted, and one process sees everything."""

    def __init__(
        self,
        protocol: type[Protocol],
        fraction_bits: int,
        device: torch.device | str = "cpu",
        network: Link | None = None,
    ):
        self._hub = Hub()
        transports = {
            name: over(network, InProcess(name, self._hub, device)) for name in role_names(protocol)
        }
        self._transports = transports
        self._client = Client(protocol, transports["client"], fraction_bits)
        self._owner = Owner(protocol, transports["owner"], fraction_bits)
        self._parties = [Party(protocol, transports[n], fraction_bits) for n in party_names(protocol)]
        self._dealer = Dealer(protocol, transports["dealer"], fraction_bits) if protocol.has_dealer else None
        self._pool = ThreadPoolExecutor(len(transports), thread_name_prefix="sordino")

    def _together(self, *calls: Callable[[], Any]) -> list[Any]:
        def guarded(call: Callable[[], Any]) -> Any:
            with torch.inference_mode():
                try:
                    return call()
                except BaseException:
                    self._hub.abort()
                    raise

        futures = [self._pool.submit(guarded, call) for call in calls]
        done, _ = wait(futures)
        errors = [e for f in futures if (e := f.exception()) is not None]
        if errors:
            from secure_eval.transport import TransportError

            raise next((e for e in errors if not isinstance(e, TransportError)), errors[0])
        return [f.result() for f in futures]

    def setup(self, program: Program, plan: Plan) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: self._owner.setup(program),
            lambda: self._client.setup(program),
        ]
        calls += [lambda q=q: q.setup(program, plan) for q in self._parties]  # type: ignore[misc]
        if self._dealer:
            dealer = self._dealer
            calls.append(lambda: dealer.setup(plan))
        self._together(*calls)

    def offline(self) -> None:
        self._together(*(q.offline for q in self._parties), *([self._dealer.offline] if self._dealer else []))

    def online(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        outputs: list[Any] = self._together(
            lambda: self._client.online(inputs), *(q.online for q in self._parties)
        )[0]
        return outputs

    def measurement(self, program: Program) -> Measurement:
        result = Measurement()
        collect(result, program, {name: t.ledger for name, t in self._transports.items()}, with_seconds=True)
        return result

    def close(self) -> None:
        self._pool.shutdown()
