"""Token batches: ragged token lists, grouped by length so that little is padded, in an order that a seed
fixes.

tokens = tokenize(splits.train, tokenizer, max_length=64)      # Tokens: ragged, with labels
for batch in batches(tokens, tokenizer, batch_size=32): model(**batch)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from distill.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, not padded.

    Attributes:
        columns: "input_ids" and, where the tokenizer makes them, "token_type_ids": a list of ints an item.
        labels: one number an item, or None.
        padding: value that pads each column.
        max_length: longest item allowed when it was made.
    """

    columns: Mapping[str, Sequence[Sequence[int]]]
    labels: Sequence[int | float] | None
    padding: Mapping[str, int]
    max_length: int

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item."""
        return [len(ids) for ids in self.columns["input_ids"]]

    def collate(
        self, items: Sequence[int], length: int | None = None, labels: bool = True
    ) -> dict[str, Tensor]:
        """Items padded to `length` (the longest of them by default): [items, length] longs, "attention_mask",
        "labels"."""
        lengths = [len(self.columns["input_ids"][item]) for item in items]
        width = max(lengths) if length is None else length
        batch: dict[str, Tensor] = {}
        for name, rows in self.columns.items():
            pad = self.padding[name]
            batch[name] = torch.tensor([[*rows[item], *[pad] * (width - len(rows[item]))] for item in items])
        mask = [[1] * count + [0] * (width - count) for count in lengths]
        batch["attention_mask"] = torch.tensor(mask)
        if labels and self.labels is not None:
            batch["labels"] = torch.tensor([self.labels[item] for item in items])
        return batch


def tokenize(dataset: "Dataset", tokenizer: Any, max_length: int = 128) -> Tokens:
    """Tokenise the "text" column of a split, with "text_pair" as second text where it is there, truncated to
    `max_length` tokens (of a pair, the longer text first)."""
    if "text" not in dataset.column_names:
        raise DataError(f"no column 'text'; columns present: {', '.join(dataset.column_names)}")
    texts = [list(dataset[name]) for name in ("text", "text_pair") if name in dataset.column_names]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    padding = {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    labels = list(dataset["label"]) if "label" in dataset.column_names else None
    return Tokens(columns, labels, padding, max_length)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Items of several token sets one after the other, without labels."""
    first = parts[0]
    columns = {name: [row for part in parts for row in part.columns[name]] for name in first.columns}
    return Tokens(columns, None, first.padding, max(part.max_length for part in parts))


def as_tokens(data: "Tokens | Dataset", tokenizer: Any, max_length: int = 128) -> Tokens:
    """`data` tokenised, unless it is already."""
    return data if isinstance(data, Tokens) else tokenize(data, tokenizer, max_length)


def plan(
    lengths: Sequence[int], batch_size: int, seed: int | None = None, window: int = 32
) -> list[list[int]]:
    """Batches of item numbers, items of similar length together.

    Args:
        lengths: tokens of each item.
        seed: None for one fixed order, longest first (so that a lack of memory shows at once); else items are
            shuffled, sorted by length within windows of `window` batches, and the batches are shuffled.
    """
    if seed is None:
        order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * window
    groups: list[list[int]] = []
    for start in range(0, len(order), span):
        block = sorted(order[start : start + span], key=lambda item: lengths[item])
        groups += [block[first : first + batch_size] for first in range(0, len(block), batch_size)]
    return [groups[index] for index in torch.randperm(len(groups), generator=generator).tolist()]


def batches(
    data: "Tokens | Dataset",
    tokenizer: Any,
    batch_size: int = 32,
    max_length: int = 128,
    *,
    pad: Literal["longest", "max_length"] = "longest",
    seed: int | None = None,
    labels: bool = True,
    limit: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Dicts of tensors that a model takes as keyword arguments, items of similar length together (so not in
    data order).

    Args:
        pad: "longest" pads to the longest of the batch, "max_length" to max_length (one shape, as secure
            evaluation needs).
        seed: shuffles; None is one fixed order.
        labels: include "labels" where the data has them.
        limit: use only the first `limit` items.
    """
    tokens = as_tokens(data, tokenizer, max_length)
    lengths = tokens.lengths[:limit]
    for items in plan(lengths, batch_size, seed):
        yield tokens.collate(items, max_length if pad == "max_length" else None, labels)
