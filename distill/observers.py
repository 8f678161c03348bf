"""What calibration collects at a site: running statistics of the teacher, bounded in memory whatever the
number of batches."""

from collections.abc import Mapping

import torch
from torch import Tensor

MAXIMUM_SCORES = 2**19
"""Scores kept per attention site (1 MB as float16): about a thousand rows of 12 heads and 40 keys."""

ROWS = 256
"""Sampled rows on which a variant's range is measured."""


class Observer:
    """Collects statistics of one site over many calls.

    The contract: `update` sees the inputs and output of each call of the site's module, and the public token
    mask of the batch (bool [batch, tokens], or None); `extend` sees inputs of which only the extremes count, padding
    among them, since fixed point has to hold those as well; `statistics` gives named tensors, "range" (largest
    absolute input) among them.
    """

    def __init__(self, size: int) -> None:
        """size: heads or channels of the site."""
        self.size = size
        self.range = 0.0

    def update(self, inputs: tuple[Tensor | None, ...], output: Tensor, tokens: Tensor | None) -> None:
        """Add one call."""
        raise NotImplementedError

    def extend(self, inputs: tuple[Tensor | None, ...]) -> None:
        """Take in the extremes of one call, whatever is padding."""

    def statistics(self) -> Mapping[str, Tensor]:
        """Named tensors, on the CPU."""
        return {"range": torch.tensor(self.range)}

    @staticmethod
    def inputs(statistics: Mapping[str, Tensor]) -> list[tuple[Tensor | None, ...]]:
        """Inputs of a variant that meet the extremes that were seen, for measuring its range; [] if none were kept."""
        return []

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
        self.low = torch.full((size,), torch.inf)
        self.high = torch.full((size,), -torch.inf)

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
        self.extend(inputs)

    def extend(self, inputs: tuple[Tensor | None, ...]) -> None:
        """The smallest and the largest input of each channel."""
        assert inputs[0] is not None
        low, high = torch.aminmax(inputs[0].float().reshape(-1, self.size), dim=0)
        self.low, self.high = torch.minimum(self.low, low.cpu()), torch.maximum(self.high, high.cpu())

    def statistics(self) -> Mapping[str, Tensor]:
        """{"range": [], "moments": [8, channels], "extent": [2, channels]}."""
        return {
            **super().statistics(),
            "moments": self.moments,
            "extent": torch.stack([self.low, self.high]),
        }

    @staticmethod
    def inputs(statistics: Mapping[str, Tensor]) -> list[tuple[Tensor | None, ...]]:
        """The extremes of every channel: [1, 2, channels]."""
        return [(statistics["extent"][None],)]


class SoftmaxObserver(Observer):
    """A sample of real tokens' score rows: "scores" [rows, heads, keys] (float16) and "keep" [rows, keys] (0/1).

    And for each head the rows, padding's among them, that have the largest score, the smallest one, and the smallest
    of largest scores: "extreme_scores" and "extreme_keep" [3, heads, keys]. A sample alone would miss them.
    """

    def __init__(self, size: int) -> None:
        """size: heads."""
        super().__init__(size)
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.elements = 0
        self.stride = 1
        self.extremes: tuple[Tensor, Tensor, Tensor] | None = None

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
        self.extend(inputs)
        self.elements += rows.numel()
        while self.elements > MAXIMUM_SCORES:
            # Halve the sampling rate of what is kept and of what comes, so that the sample stays even over
            # the batches.
            self.stride *= 2
            self.rows = [(kept[::2].clone(), mask[::2].clone()) for kept, mask in self.rows]
            self.elements = sum(kept.numel() for kept, _ in self.rows)

    def extend(self, inputs: tuple[Tensor | None, ...]) -> None:
        """Keep each head's extreme rows: scores [batch, heads, queries, keys], any query, kept keys."""
        scores, keep = inputs[0], inputs[1] if len(inputs) > 1 else None
        assert scores is not None
        allowed = torch.ones_like(scores[:, :1], dtype=torch.bool)
        if keep is not None:
            allowed = allowed & keep.to(torch.bool)
        rows = scores.detach().float().transpose(1, 2).flatten(0, 1)  # [batch * queries, heads, keys]
        kept = allowed.transpose(1, 2).flatten(0, 1)  # [batch * queries, 1, keys]
        rows, kept = rows[kept.any(-1)[:, 0]], kept[kept.any(-1)[:, 0]]
        if not len(rows):
            return
        highest = rows.masked_fill(~kept, -torch.inf).amax(-1)
        lowest = rows.masked_fill(~kept, torch.inf).amin(-1)
        measures = torch.stack(
            [highest, -lowest, -highest]
        )  # [3, rows, heads], the largest of each is wanted
        values, index = measures.max(1)  # [3, heads]
        heads = torch.arange(rows.shape[1], device=rows.device).expand(3, -1)
        found = (values.cpu(), rows[index, heads].cpu(), kept[index, 0].cpu())
        if self.extremes is None:
            self.extremes = found
            return
        keys = max(found[1].shape[-1], self.extremes[1].shape[-1])
        old, new = ((one[0], _wide(one[1], keys), _wide(one[2], keys)) for one in (self.extremes, found))
        better = new[0] > old[0]
        self.extremes = (
            torch.where(better, new[0], old[0]),
            torch.where(better[..., None], new[1], old[1]),
            torch.where(better[..., None], new[2], old[2]),
        )

    def statistics(self) -> Mapping[str, Tensor]:
        """{"range": [], "scores": [rows, heads, keys], "keep": [rows, keys], "extreme_scores", "extreme_keep": [3,
        heads, keys]}, shorter rows padded with keep = 0."""
        keys = max(rows.shape[-1] for rows, _ in self.rows)
        scores = torch.cat([_wide(rows, keys) for rows, _ in self.rows])
        keep = torch.cat([_wide(mask, keys) for _, mask in self.rows]).to(torch.uint8)
        if self.extremes is None:
            empty = scores.new_zeros(0, self.size, keys)
            extremes = {"extreme_scores": empty.float(), "extreme_keep": empty.to(torch.uint8)}
        else:
            extremes = {
                "extreme_scores": self.extremes[1],
                "extreme_keep": self.extremes[2].to(torch.uint8),
            }
        return {**super().statistics(), "scores": scores, "keep": keep, **extremes}

    @staticmethod
    def inputs(statistics: Mapping[str, Tensor]) -> list[tuple[Tensor | None, ...]]:
        """Sampled rows [rows, heads, 1, keys] with their mask, and every head's extreme rows."""
        step = max(1, len(statistics["scores"]) // ROWS)
        sampled = (
            statistics["scores"][::step].float()[:, :, None],
            statistics["keep"][::step].to(torch.bool)[:, None, None],
        )
        # One row a head and extreme, each with a mask of its own; heads' rows may be of different queries.
        extreme = (
            statistics["extreme_scores"].float()[:, :, None],
            statistics["extreme_keep"].to(torch.bool)[:, :, None],
        )
        return [sampled, extreme] if len(statistics["extreme_scores"]) else [sampled]


def _wide(rows: Tensor, keys: int) -> Tensor:
    """Rows [..., fewer keys] padded with zeros to [..., keys]."""
    return torch.nn.functional.pad(rows, (0, keys - rows.shape[-1]))


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
