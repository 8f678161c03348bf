"""Evaluating only what changed: outputs of the leading blocks are kept and used again.

Candidates that agree in their first layers compute the same thing there, and replacing one site changes
nothing before it. A block's output depends on the input batch and on the choices at the sites that ran
before the block ended, so it is stored under these, and a block whose output is known is not run.

Which sites run before which block ends is observed in one forward pass; no model family is assumed. Where
the pattern does not hold (a block that runs several times, as in ALBERT), the blocks concerned are simply
computed, and where `verify` finds any difference to plain evaluation, all of them are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn


class PrefixCache:
    """Wraps the repeated blocks of `model` (children of the outermost ModuleList above each site).

    model: in eval mode; its sites' modules may be swapped, its blocks may not.
    sites: module paths of the sites.
    limit_bytes: memory for stored outputs; the longest unused go first.
    noted: site -> what the caller's hooks note in a forward pass; what a block's sites noted is kept with its output,
        and put there again when the block is not run. The caller empties it before a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        limit_bytes: int,
        noted: MutableMapping[str, Any] | None = None,
    ) -> None:
        self._noted: MutableMapping[str, Any] = {} if noted is None else noted
        self._model, self._sites, self._limit = model, tuple(sites), limit_bytes
        self._blocks = _blocks(model, sites)
        self._upstream: dict[str, tuple[str, ...]] = {}
        self._store: OrderedDict[Hashable, tuple[Any, int, dict[str, Any]]] = OrderedDict()
        self._held = 0
        self._context: tuple[int, Mapping[str, str]] | None = None
        self.hits = 0

    @property
    def active(self) -> bool:
        """Whether any block's output is kept."""
        return bool(self._upstream)

    def observe(self, run: Callable[[], object]) -> None:
        """Learn the order of sites and blocks from one forward pass, and wrap the blocks that may be kept."""
        ends: list[str] = []
        seen: list[str] = []
        before: dict[str, tuple[str, ...]] = {}

        def site_ran(name: str, *_: Any) -> None:
            if name not in seen:
                seen.append(name)

        def block_ended(name: str, *_: Any) -> None:
            ends.append(name)
            before[name] = tuple(seen)

        handles = [
            self._model.get_submodule(name).register_forward_hook(partial(site_ran, name))
            for name in self._sites
        ]
        handles += [
            self._model.get_submodule(name).register_forward_hook(partial(block_ended, name))
            for name in self._blocks
        ]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        if set(seen) != set(self._sites):
            # A site that did not run here may run on another batch: nothing can be said about the order.
            return
        for name in self._blocks:
            # The block that ends last sees every choice, so its output would serve equal architectures only.
            if ends.count(name) == 1 and len(before[name]) < len(seen):
                self._upstream[name] = before[name]
                block = self._model.get_submodule(name)
                block.forward = partial(self._forward, name, block.forward)

    def run(self, batch: int, choices: Mapping[str, str], forward: Callable[[], Any]) -> Any:
        """`forward()` on the assembled student, the kept outputs of batch number `batch` being used and
        added to.
        """
        self._context = (batch, choices)
        try:
            return forward()
        finally:
            self._context = None

    def verify(self, compare: Callable[[], bool]) -> None:
        """Keep the wrapping only if `compare` (kept against plain evaluation) says that they agree."""
        if self.active and not compare():
            for name in self._upstream:
                del self._model.get_submodule(name).forward
            self._upstream.clear()
            self._store.clear()
            self._held = 0

    def _forward(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._context is None:
            return original(*args, **kwargs)
        batch, choices = self._context
        key = (name, batch, tuple(choices[site] for site in self._upstream[name]))
        found = self._store.get(key)
        if found is not None:
            self.hits += 1
            self._store.move_to_end(key)
            self._noted.update(found[2])
            return found[0]
        before = set(self._noted)
        output = original(*args, **kwargs)
        added = {site: value for site, value in self._noted.items() if site not in before}
        size = _bytes(output)
        if size is not None and size <= self._limit:
            self._store[key] = (output, size, added)
            self._held += size
            while self._held > self._limit:
                self._held -= self._store.popitem(last=False)[1][1]
        return output


def _blocks(model: nn.Module, sites: Sequence[str]) -> list[str]:
    """Paths of the outermost ModuleList children that contain sites, in order."""
    found: dict[str, None] = {}
    for site in sites:
        parts = site.split(".")
        for depth in range(1, len(parts)):
            if isinstance(model.get_submodule(".".join(parts[:depth])), nn.ModuleList):
                found[".".join(parts[: depth + 1])] = None
                break
    return list(found)


def _bytes(output: Any) -> int | None:
    """Size of the tensors in a block's output; None for an output of another kind, which is not kept."""
    if output is None:
        return 0
    if isinstance(output, torch.Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, (tuple, list)):
        sizes = [_bytes(item) for item in output]
        return (
            None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)
        )
    return None
