"""The teacher's outputs, computed once in eval mode and read back during training.

Logits are always kept. Hidden states and scores of every layer are written as float16, item after item
without padding, to memory-mapped files; if they would take more than `max_bytes` they are recomputed from the
teacher for each batch instead (the same values up to float16), which costs one more forward pass a step.
`stored` says which.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from distill import fingerprint
from distill.batching import Tokens, plan
from distill.metrics import evaluate
from distill.recording import instrumented, record_scores

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Targets:
    """Teacher outputs of a batch: logits [batch, labels]; hidden [batch, tokens, width] of each layer,
    embedding output first; scores [batch, heads, tokens, tokens] of each softmax call. Padding is zero."""

    logits: Tensor
    hidden: list[Tensor]
    scores: list[Tensor]


class TeacherCache:
    """Teacher outputs of every item of a token set; make one with `build`."""

    def __init__(self, tokens: Tokens, logits: Tensor, teacher: PreTrainedModel | None) -> None:
        """Use `build`."""
        self.tokens = tokens
        self.logits = logits
        self.stored = False
        self._teacher = teacher
        self._lengths = tokens.lengths
        self._hidden: Half | None = None
        self._scores: Half | None = None
        self._heads: list[int] = []

    @classmethod
    def build(
        cls,
        teacher: PreTrainedModel,
        tokens: Tokens,
        directory: str | os.PathLike[str],
        *,
        layerwise: bool = True,
        max_bytes: int = 2 << 30,
        batch_size: int = 64,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> "TeacherCache":
        """Compute the outputs, or open them if `directory` already holds those of the same teacher and
        tokens.

        Args:
            layerwise: keep hidden states and scores as well as logits.
            max_bytes: most the layers' files may take; above it they are recomputed a batch at a time.
            progress: called as progress(items done, items, message).
        """
        root = Path(directory)
        view = instrumented(teacher)
        key = fingerprint.of_json([fingerprint.of_model(teacher), fingerprint.of_tokens(tokens), layerwise])
        manifest = root / "manifest.json"
        if manifest.exists():
            described = json.loads(manifest.read_text())
            if described["key"] == key:
                cache = cls(tokens, load_file(root / "logits.safetensors")["logits"], view)
                if described["stored"]:
                    cache._open(root, described["heads"], described["layers"], described["width"])
                return cache
            shutil.rmtree(root)
        root.mkdir(parents=True, exist_ok=True)
        # The manifest is written last: a directory without one is unfinished and is filled again.
        hidden, scores = _shapes(view, tokens)
        layers, width, heads = len(hidden), hidden[0], scores
        items = tokens.lengths
        size = 2 * (sum(items) * layers * width + sum(heads) * sum(length * length for length in items))
        stored = layerwise and len(set(hidden)) == 1 and size <= max_bytes
        if stored:
            cache = cls(tokens, torch.empty(0), view)
            cache._create(root, heads, layers, width)
            cache.logits = cache._fill(view, batch_size, progress)
        else:
            cache = cls(tokens, evaluate(teacher, tokens, batch_size=batch_size, progress=progress), view)
        save_file({"logits": cache.logits}, str(root / "logits.safetensors"))
        described = {"key": key, "stored": stored, "heads": heads, "layers": layers, "width": width}
        temporary = root / "manifest.json.tmp"
        temporary.write_text(json.dumps(described))
        os.replace(temporary, manifest)
        return cache

    def targets(self, items: Sequence[int], length: int, device: torch.device | str = "cpu") -> Targets:
        """Teacher outputs of a batch of `items` padded to `length` tokens, float32."""
        logits = self.logits[list(items)].to(device)
        if not self.stored:
            return self._recompute(items, length, logits)
        assert self._hidden is not None and self._scores is not None
        layers, width = self._hidden.shape[1:]
        hidden = np.zeros((layers, len(items), length, width), np.float16)
        scores = np.zeros((len(items), sum(self._heads), length, length), np.float16)
        for row, item in enumerate(items):
            count = self._lengths[item]
            start = self._token_offsets[item]
            hidden[:, row, :count] = self._hidden[start : start + count].transpose(1, 0, 2)
            begin = self._score_offsets[item]
            flat = self._scores[begin : begin + sum(self._heads) * count * count]
            scores[row, :, :count, :count] = flat.reshape(-1, count, count)
        return Targets(
            logits,
            list(torch.from_numpy(hidden).to(device).float()),
            list(torch.from_numpy(scores).to(device).float().split(self._heads, dim=1)),
        )

    def _recompute(self, items: Sequence[int], length: int, logits: Tensor) -> Targets:
        assert self._teacher is not None
        inputs = self.tokens.collate(items, length, labels=False)
        inputs = {name: value.to(logits.device) for name, value in inputs.items()}
        with torch.no_grad(), record_scores(self._teacher) as calls:
            output = self._teacher(**inputs, output_hidden_states=True)
        return Targets(logits, list(output.hidden_states), [scores for scores, _ in calls])

    def _offsets(self) -> None:
        squares = [length * length * sum(self._heads) for length in self._lengths]
        self._token_offsets = [0, *accumulate(self._lengths)]
        self._score_offsets = [0, *accumulate(squares)]

    def _create(self, root: Path, heads: list[int], layers: int, width: int) -> None:
        self._heads = heads
        self._offsets()
        shape = (self._token_offsets[-1], layers, width)
        self._hidden = np.memmap(root / "hidden.f16", np.float16, "w+", shape=shape)
        self._scores = np.memmap(root / "scores.f16", np.float16, "w+", shape=(self._score_offsets[-1],))
        self.stored = True

    def _open(self, root: Path, heads: list[int], layers: int, width: int) -> None:
        self._heads = heads
        self._offsets()
        shape = (self._token_offsets[-1], layers, width)
        self._hidden = np.memmap(root / "hidden.f16", np.float16, "r", shape=shape)
        self._scores = np.memmap(root / "scores.f16", np.float16, "r", shape=(self._score_offsets[-1],))
        self.stored = True

    @torch.no_grad()
    def _fill(
        self, view: PreTrainedModel, batch_size: int, progress: Callable[[int, int, str], None] | None
    ) -> Tensor:
        """Run the teacher over everything, write the layers, return the logits [items, labels]."""
        assert self._hidden is not None and self._scores is not None
        logits: Tensor | None = None
        done = 0
        for items in plan(self._lengths, batch_size):
            inputs = {k: v.to(view.device) for k, v in self.tokens.collate(items, labels=False).items()}
            with record_scores(view) as calls:
                output = view(**inputs, output_hidden_states=True)
            if logits is None:
                logits = torch.empty(len(self.tokens), output.logits.shape[-1])
            logits[items] = output.logits.float().cpu()
            hidden = (
                torch.stack(output.hidden_states, dim=2).half().cpu().numpy()
            )  # [batch, tokens, layers, width]
            scores = torch.cat([scores for scores, _ in calls], dim=1).half().cpu().numpy()
            for row, item in enumerate(items):
                count = self._lengths[item]
                start, begin = self._token_offsets[item], self._score_offsets[item]
                self._hidden[start : start + count] = hidden[row, :count]
                self._scores[begin : self._score_offsets[item + 1]] = scores[row, :, :count, :count].reshape(
                    -1
                )
            done += len(items)
            if progress is not None:
                progress(done, len(self.tokens), "teacher outputs")
        assert logits is not None
        return logits


@torch.no_grad()
def _shapes(view: PreTrainedModel, tokens: Tokens) -> tuple[list[int], list[int]]:
    """(width of each hidden state, heads of each softmax call) of the teacher, from one item."""
    inputs = {k: v.to(view.device) for k, v in tokens.collate([0], labels=False).items()}
    with record_scores(view) as calls:
        output = view(**inputs, output_hidden_states=True)
    return [state.shape[-1] for state in output.hidden_states], [scores.shape[1] for scores, _ in calls]
