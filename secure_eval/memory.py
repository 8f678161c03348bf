"""Memory that a role's tensors need, followed over a counting run.

A tensor counts from the operation that makes it until Python lets go of it and of every view of it. Weights,
stored correlations, what an operation keeps while it waits for a message: all are tensors that somebody holds,
so nothing has to be declared. What a compiled loop or a library needs within one operation is not seen.
"""

from __future__ import annotations

from typing import Any

from torch._C import _DisableTorchDispatch

from secure_eval.kernels.meta_tensors import fresh, tensors_in


class _Held:
    """The memory of one tensor and its views: free once the last of them is gone."""

    __slots__ = ("_tracker", "_bytes")

    def __init__(self, tracker: MemoryTracker, nbytes: int):
        self._tracker, self._bytes = tracker, nbytes
        tracker.live += nbytes
        tracker.peak = max(tracker.peak, tracker.live)

    def __del__(self) -> None:
        self._tracker.live -= self._bytes


class MemoryTracker:
    """Bytes held now (`live`) and the most at once since `restart` (`peak`)."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def restart(self) -> None:
        """Begins another phase."""
        self.peak = self.live

    def new(self, result: Any) -> None:
        """Follows the tensors of a result that has memory of its own."""
        for tensor in tensors_in(result):
            if not hasattr(tensor, "_held"):  # else it is an operand itself
                tensor._held = _Held(self, tensor.numel() * tensor.element_size())  # type: ignore[attr-defined]

    def view(self, of: Any, result: Any) -> None:
        """Lets views keep the memory of the tensor that they view."""
        held = next((t._held for t in tensors_in(of) if hasattr(t, "_held")), None)
        if held is not None:
            for tensor in tensors_in(result):
                tensor._held = held  # type: ignore[attr-defined]

    def copy(self, result: Any) -> Any:
        """New objects for tensors that are shared between calls, followed."""
        with _DisableTorchDispatch():  # the copy is no work of the computation
            result = fresh(result)
        self.new(result)
        return result
