"""The teacher's outputs, computed once in eval mode and read back during training.

Logits of every item are kept. Hidden states and scores of every layer grow with the data (727 GB for 100,000 texts
of 128 tokens and BERT-base), so they are written, as float16 and without padding, to memory-mapped files for as many
items as fit into `max_bytes`; those of the others are computed by the teacher again whenever a batch needs them
(the same values up to float16), which costs a forward pass. `describe` says how many of each there are.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from distill import fingerprint
from distill.batching import Tokens, plan
from distill.errors import DistillError
from distill.recording import instrumented, record_scores

Half = npt.NDArray[np.float16]
Progress = Callable[[int, int, str], None]

DEFAULT_BYTES = 2_000_000_000
"""Most that the stored layers take on disk unless told otherwise."""

PASS_BYTES = 1 << 28
"""Most that the scores of all layers take in memory while the teacher runs over one batch of the data."""


@dataclass(frozen=True)
class Targets:
    """Teacher outputs of a batch: logits [batch, labels]; hidden [batch, tokens, width] of each layer,
    embedding output first; scores [batch, heads, tokens, tokens] of each softmax call. Padding is zero."""

    logits: Tensor
    hidden: list[Tensor]
    scores: list[Tensor]


@dataclass(frozen=True)
class _Layout:
    """Which items' layers are stored, and where: `count` items, those of the lowest numbers.

    heads: of each softmax call; layers: hidden states; width: of a hidden state.
    tokens, scores: where an item's hidden states (in tokens) and scores (in numbers) begin, one entry more than
        there are stored items.
    """

    heads: tuple[int, ...]
    layers: int
    width: int
    tokens: list[int]
    scores: list[int]

    @classmethod
    def fitting(
        cls, heads: Sequence[int], layers: int, width: int, lengths: Sequence[int], max_bytes: int
    ) -> "_Layout":
        """As many items as fit into `max_bytes`."""
        tokens = [0, *accumulate(lengths)]
        scores = [0, *accumulate(sum(heads) * length * length for length in lengths)]
        sizes = [2 * (a * layers * width + b) for a, b in zip(tokens, scores, strict=True)]
        count = sum(1 for _ in takewhile(lambda size: size <= max_bytes, sizes)) - 1
        return cls(tuple(heads), layers, width, tokens[: count + 1], scores[: count + 1])

    @property
    def count(self) -> int:
        return len(self.tokens) - 1

    @property
    def bytes(self) -> int:
        """Size of both files."""
        return 2 * (self.tokens[-1] * self.layers * self.width + self.scores[-1])


class TeacherCache:
    """Teacher outputs of every item of a token set; make one with `build`.

    Attributes:
        logits: [items, labels] float32.
        stored: items whose hidden states and scores are stored, those of the lowest numbers; the others' are
            computed again.
        bytes, max_bytes: size of the stored layers, and the most that was allowed.
    """

    def __init__(
        self,
        tokens: Tokens,
        logits: Tensor,
        teacher: PreTrainedModel,
        layout: _Layout,
        root: Path,
        max_bytes: int,
    ) -> None:
        """Use `build`."""
        self.tokens, self.logits, self.max_bytes = tokens, logits, max_bytes
        self._teacher, self._layout = teacher, layout
        self._lengths = tokens.lengths
        self._hidden: Half | None = None
        self._scores: Half | None = None
        if layout.count:
            shape = (layout.tokens[-1], layout.layers, layout.width)
            self._hidden = np.memmap(root / "hidden.f16", np.float16, "r+", shape=shape)
            self._scores = np.memmap(root / "scores.f16", np.float16, "r+", shape=(layout.scores[-1],))

    @property
    def stored(self) -> int:
        return self._layout.count

    @property
    def bytes(self) -> int:
        return self._layout.bytes

    def describe(self) -> str:
        """What is stored and what is computed again, in a sentence."""
        total = len(self.tokens)
        limit = f"{self.max_bytes / 1e6:,.0f} MB allowed"
        kept = f"logits of all {total:,} items are stored"
        if self.stored == total:
            return (
                f"teacher outputs: {kept}, hidden states and scores too ({self.bytes / 1e6:,.1f} MB, {limit})"
            )
        return (
            f"teacher outputs: {kept}, hidden states and scores of {self.stored:,} ({self.bytes / 1e6:,.1f} MB, "
            f"{limit}); those of the other {total - self.stored:,} are computed again at each step"
        )

    @classmethod
    def build(
        cls,
        teacher: PreTrainedModel,
        tokens: Tokens,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int = DEFAULT_BYTES,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> "TeacherCache":
        """Compute the outputs, or open them if `directory` already holds those of the same teacher, tokens and
        limit.

        Args:
            max_bytes: most that the layers' files may take; 0 stores logits only.
            batch_size: most items in one pass of the teacher; fewer where scores would take too much memory.
            progress: called as progress(items done, items, message).

        Raises DistillError if the disk has no room for what the limit allows and the data needs.
        """
        root = Path(directory)
        view = instrumented(teacher)
        key = fingerprint.of_json(
            [fingerprint.of_model(teacher), fingerprint.of_tokens(tokens), max_bytes, fingerprint.versions()]
        )
        heads, layers, width = _shapes(view, tokens)
        layout = _Layout.fitting(heads, layers, width, tokens.lengths, max_bytes)
        manifest = root / "manifest.json"
        if manifest.exists():
            if json.loads(manifest.read_text())["key"] == key:
                logits = load_file(root / "logits.safetensors")["logits"]
                return cls(tokens, logits, view, layout, root, max_bytes)
            shutil.rmtree(root)
        root.mkdir(parents=True, exist_ok=True)
        # The manifest is written last: a directory without one is unfinished and is filled again.
        if layout.count:
            _reserve(root / "hidden.f16", 2 * layout.tokens[-1] * layers * width)
            _reserve(root / "scores.f16", 2 * layout.scores[-1])
        cache = cls(tokens, torch.empty(0), view, layout, root, max_bytes)
        cache.logits = cache._fill(view, batch_size, progress)
        save_file({"logits": cache.logits}, str(root / "logits.safetensors"))
        temporary = root / "manifest.json.tmp"
        temporary.write_text(json.dumps({"key": key, "stored": layout.count, "bytes": layout.bytes}))
        os.replace(temporary, manifest)
        return cache

    def targets(self, items: Sequence[int], length: int, device: torch.device | str = "cpu") -> Targets:
        """Teacher outputs of a batch of `items` padded to `length` tokens, float32."""
        layout = self._layout
        hidden = np.zeros((layout.layers, len(items), length, layout.width), np.float32)
        scores = np.zeros((len(items), sum(layout.heads), length, length), np.float32)
        for row, item in enumerate(items):
            if item >= layout.count:
                continue
            assert self._hidden is not None and self._scores is not None
            count, start, begin = self._lengths[item], layout.tokens[item], layout.scores[item]
            hidden[:, row, :count] = self._hidden[start : start + count].transpose(1, 0, 2)
            flat = self._scores[begin : layout.scores[item + 1]]
            scores[row, :, :count, :count] = flat.reshape(-1, count, count)
        targets = Targets(
            self.logits[list(items)].to(device),
            list(torch.from_numpy(hidden).to(device)),
            list(torch.from_numpy(scores).to(device).split(layout.heads, dim=1)),
        )
        missing = [row for row, item in enumerate(items) if item >= layout.count]
        if missing:
            self._recompute(targets, missing, [items[row] for row in missing], length)
        return targets

    def _recompute(self, targets: Targets, rows: list[int], items: list[int], length: int) -> None:
        """Fill the rows of items that are not stored."""
        inputs = self.tokens.collate(items, length, labels=False)
        mask = inputs["attention_mask"].to(targets.logits.device)
        inputs = {name: value.to(self._teacher.device) for name, value in inputs.items()}
        with torch.no_grad(), record_scores(self._teacher) as calls:
            output = self._teacher(**inputs, output_hidden_states=True)
        for whole, found in zip(targets.hidden, output.hidden_states, strict=True):
            whole[rows] = found.to(whole) * mask[..., None]
        for whole, (scores, _) in zip(targets.scores, calls, strict=True):
            whole[rows] = scores.to(whole) * (mask[:, None, :, None] * mask[:, None, None, :])

    @torch.no_grad()
    def _fill(self, view: PreTrainedModel, batch_size: int, progress: Progress | None) -> Tensor:
        """Run the teacher over everything, write the layers that are stored, return the logits [items, labels]."""
        layout, logits, done = self._layout, None, 0
        for items in self._passes(batch_size):
            inputs = {k: v.to(view.device) for k, v in self.tokens.collate(items, labels=False).items()}
            with record_scores(view) as calls:
                output = view(**inputs, output_hidden_states=True)
            if logits is None:
                logits = torch.empty(len(self.tokens), output.logits.shape[-1])
            logits[items] = output.logits.float().cpu()
            hidden = [state.half().cpu().numpy() for state in output.hidden_states]
            scores = [found.half().cpu().numpy() for found, _ in calls]
            for row, item in enumerate(items):
                if item >= layout.count:
                    continue
                assert self._hidden is not None and self._scores is not None
                count, start, begin = self._lengths[item], layout.tokens[item], layout.scores[item]
                for layer, state in enumerate(hidden):
                    self._hidden[start : start + count, layer] = state[row, :count]
                flat = np.concatenate([found[row, :, :count, :count].reshape(-1) for found in scores])
                self._scores[begin : layout.scores[item + 1]] = flat
            done += len(items)
            if progress is not None:
                progress(done, len(self.tokens), "teacher outputs")
        assert logits is not None
        return logits

    def _passes(self, batch_size: int) -> list[list[int]]:
        """Batches in which the scores of all layers stay below `PASS_BYTES`, or of one item."""
        passes = []
        for items in plan(self._lengths, batch_size):
            length = max(self._lengths[item] for item in items)
            most = max(1, PASS_BYTES // (4 * sum(self._layout.heads) * length * length))
            passes += [items[start : start + most] for start in range(0, len(items), most)]
        return passes


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes that has its place on the disk: writing to a map of one that has none would end
    the process. Raises DistillError if there is no room."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise DistillError(
                f"{path}: no room for {size / 1e6:,.0f} MB of teacher outputs ({error.strerror}); lower cache_bytes"
            ) from None


@torch.no_grad()
def _shapes(view: PreTrainedModel, tokens: Tokens) -> tuple[list[int], int, int]:
    """(heads of each softmax call, hidden states, their width) of the teacher, from one item."""
    inputs = {k: v.to(view.device) for k, v in tokens.collate([0], labels=False).items()}
    with record_scores(view) as calls:
        output = view(**inputs, output_hidden_states=True)
    widths = {state.shape[-1] for state in output.hidden_states}
    if len(widths) > 1:
        raise DistillError(
            f"{type(view).__name__}: its hidden states have different widths ({sorted(widths)}), which distillation "
            "by layers cannot compare"
        )
    return [scores.shape[1] for scores, _ in calls], len(output.hidden_states), widths.pop()
