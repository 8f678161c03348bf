"""What calibration collects at a site: running statistics of the teacher, bounded in memory whatever the
number of batches."""

from collections.abc import Mapping

import torch
from torch import Tensor

MAXIMUM_SCORES = 2**19
"""Scores kept per attention site (1 MB as float16): about a thousand rows of 12 heads and 40 keys."""


class Observer:
    """Collects statistics of one site over many calls.

    The contract: `update` sees the inputs and output of each call of the site's module, and the public token
    mask of the batch (bool [batch, tokens], or None); `statistics` gives named tensors, "range" (largest
    absolute input) among them.
    """

    def __init__(self, size: int) -> None:
        """size: heads or channels of the site."""
        self.size = size
        self.range = 0.0

    def update(self, inputs: tuple[Tensor | None, ...], output: Tensor, tokens: Tensor | None) -> None:
        """Add one call."""
        raise NotImplementedError

    def statistics(self) -> Mapping[str, Tensor]:
        """Named tensors, on the CPU."""
        return {"range": torch.tensor(self.range)}

    def _kept(self, values: Tensor, tokens: Tensor | None) -> Tensor:
        """values [batch, tokens, channels] as rows [kept tokens, channels]; padding is left out."""
        if tokens is not None and values.dim() == 3 and values.shape[:2] == tokens.shape:
            return values[tokens]
        return values.reshape(-1, values.shape[-1])


class ActivationObserver(Observer):
    """Per-channel moments for least-squares quadratics: "moments" [8, channels], sums of 1, x, x², x³, x⁴, y,
    xy, x²y."""

    def __init__(self, size: int) -> None:
        """size: channels."""
        super().__init__(size)
        self.moments = torch.zeros(8, size, dtype=torch.float64)

    def update(self, inputs: tuple[Tensor | None, ...], output: Tensor, tokens: Tensor | None) -> None:
        """Add one call of the activation: inputs[0] and output [..., channels]."""
        assert inputs[0] is not None
        x = self._kept(inputs[0], tokens).float()
        y = self._kept(output, tokens).float()
        self.range = max(self.range, float(torch.maximum(x.max(), -x.min())))
        square = x * x
        terms = (x, square, square * x, square * square, y, x * y, square * y)
        # Sums of one batch are float32, which is faster and loses nothing that matters; over batches they are
        # float64.
        self.moments[0] += x.shape[0]
        self.moments[1:] += torch.stack([term.sum(0) for term in terms]).double().cpu()

    def statistics(self) -> Mapping[str, Tensor]:
        """{"range": [], "moments": [8, channels]}."""
        return {**super().statistics(), "moments": self.moments}


class SoftmaxObserver(Observer):
    """A sample of score rows: "scores" [rows, heads, keys] (float16) and "keep" [rows, keys] (0/1)."""

    def __init__(self, size: int) -> None:
        """size: heads."""
        super().__init__(size)
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.elements = 0
        self.stride = 1

    def update(self, inputs: tuple[Tensor | None, ...], output: Tensor, tokens: Tensor | None) -> None:
        """Add one call of the softmax: inputs are scores [batch, heads, queries, keys] and the mask of keys
        to keep."""
        scores, keep = inputs[0], inputs[1] if len(inputs) > 1 else None
        assert scores is not None
        batch, _, queries, keys = scores.shape
        allowed = torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=scores.device)
        if keep is not None:
            allowed = allowed & keep.to(torch.bool)
        wanted = torch.ones(batch, queries, dtype=torch.bool, device=scores.device)
        if tokens is not None and tokens.shape == (batch, queries):
            wanted = tokens
        pairs = allowed & wanted[:, None, :, None]
        self.range = max(self.range, float(scores.abs().masked_fill(~pairs, 0.0).max()))
        rows = scores.transpose(1, 2)[wanted].to(torch.float16).cpu()[:: self.stride]  # [rows, heads, keys]
        self.rows.append((rows, allowed[:, 0][wanted].cpu()[:: self.stride]))
        self.elements += rows.numel()
        while self.elements > MAXIMUM_SCORES:
            # Halve the sampling rate of what is kept and of what comes, so that the sample stays even over
            # the batches.
            self.stride *= 2
            self.rows = [(kept[::2].clone(), mask[::2].clone()) for kept, mask in self.rows]
            self.elements = sum(kept.numel() for kept, _ in self.rows)

    def statistics(self) -> Mapping[str, Tensor]:
        """{"range": [], "scores": [rows, heads, keys], "keep": [rows, keys]}, shorter rows padded with keep =
        0."""
        keys = max(rows.shape[-1] for rows, _ in self.rows)
        scores = [torch.nn.functional.pad(rows, (0, keys - rows.shape[-1])) for rows, _ in self.rows]
        keep = [torch.nn.functional.pad(mask, (0, keys - mask.shape[-1])) for _, mask in self.rows]
        return {**super().statistics(), "scores": torch.cat(scores), "keep": torch.cat(keep).to(torch.uint8)}


class NormObserver(Observer):
    """Range of the input, and "variance" [2]: smallest and largest variance over the channels of a token."""

    def __init__(self, size: int) -> None:
        """size: channels."""
        super().__init__(size)
        self.low, self.high = float("inf"), 0.0

    def update(self, inputs: tuple[Tensor | None, ...], output: Tensor, tokens: Tensor | None) -> None:
        """Add one call: inputs[0] [..., channels]."""
        assert inputs[0] is not None
        x = self._kept(inputs[0], tokens).float()
        variance = x.var(-1, correction=0)
        self.range = max(self.range, float(x.abs().max()))
        self.low, self.high = min(self.low, float(variance.min())), max(self.high, float(variance.max()))

    def statistics(self) -> Mapping[str, Tensor]:
        """{"range": [], "variance": [2]}."""
        return {**super().statistics(), "variance": torch.tensor([self.low, self.high])}
