"""One role's local work, run and timed by itself.

Protocol code does not depend on the values that arrive. So a role can be run for real against a transport that answers every message
with tensors of the stated shapes: what passes is the time of its own work, without peers, network or contention.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secure_eval.counting import kind_of, work_of
from secure_eval.kernels.meta_tensors import tensors_in
from secure_eval.kernels.observation import timing
from secure_eval.measurement import Work
from secure_eval.network.transport import Incoming, Outgoing, Transport
from secure_eval.parties.roles import Dealer, Party, Plan
from secure_eval.program import Program
from secure_eval.protocols.base import Protocol


class Echo(Transport):
    """Sends to nobody; what is expected arrives at once, as zeros."""

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        return {
            peer: [torch.zeros(s.shape, dtype=s.dtype, device=self.device) for s in specs]
            for peer, specs in receives.items()
        }


class Stopwatch(TorchDispatchMode):
    """Seconds by kind of work, for everything that is run inside; `calls` has every single call that is not of a fused step."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.calls: list[tuple[str, Work, float]] = []
        self._device = device

    def time(self, kind: str, run: Callable[[], Any]) -> Any:
        """Runs, waits until the device is done, and adds the time to a kind."""
        started = perf_counter()
        result = run()
        synchronize(self._device)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + perf_counter() - started
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in([*args, *kwargs.values()]))
        kind = kind_of(func, inputs)
        if kind is None:
            return func(*args, **kwargs)
        before = self.seconds.get(kind, 0.0)
        result = self.time(kind, lambda: func(*args, **kwargs))
        self.calls.append((kind, work_of(kind, inputs, result), self.seconds[kind] - before))
        return result


def synchronize(device: torch.device) -> None:
    """Waits until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Replay:
    """One role of a program, set up, whose phases can be run as often as wanted."""

    def __init__(
        self,
        program: Program,
        protocol: type[Protocol],
        role: str = "party0",
        device: str = "cpu",
        fraction_bits: int = 16,
        plan: Plan | None = None,
    ):
        plan = plan or Plan(program, protocol, fraction_bits)
        transport = Echo(role, device)
        self.device = transport.device
        self._role: Party | Dealer
        with torch.inference_mode():
            if role == "dealer":
                self._role = Dealer(protocol, transport, fraction_bits)
                self._role.setup(plan)
            else:
                self._role = Party(protocol, transport, fraction_bits)
                self._role.setup(program, plan)

    def run(self, phase: str) -> None:
        """Runs the offline or the online phase of a query; every online phase uses up an offline one."""
        with torch.inference_mode():
            getattr(self._role, phase)()
        synchronize(self.device)

    def seconds(self, phase: str) -> float:
        """Seconds of one run of a phase."""
        started = perf_counter()
        self.run(phase)
        return perf_counter() - started

    def watched(self, phase: str) -> Stopwatch:
        """One run of a phase under a stopwatch; what the engine does between operations counts to no kind."""
        watch = Stopwatch(self.device)
        with watch, timing(watch.time):
            self.run(phase)
        return watch
