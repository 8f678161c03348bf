"""A recipe's queries: items of its data in the shape that a query has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from recipes.schema import Secure

if TYPE_CHECKING:
    import torch

    from distill import Tokens


class Queries:
    """The first `samples` items of `tokens` as inputs of queries, `secure.batch` to a query, each padded to
    `secure.sequence_length`.

    inputs: one query's inputs each, [batch, sequence_length]; an incomplete last batch is filled by repeating
    its last item. Iterating gives each query's inputs and how many of its items count.
    """

    def __init__(self, tokens: Tokens, samples: int, secure: Secure) -> None:
        self.secure = secure
        self.count = min(samples, len(tokens))
        items = [
            list(range(at, min(at + secure.batch, self.count))) for at in range(0, self.count, secure.batch)
        ]
        self.sizes = [len(one) for one in items]
        self.inputs = [
            tokens.collate(one + [one[-1]] * (secure.batch - len(one)), secure.sequence_length, labels=False)
            for one in items
        ]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        return iter(zip(self.inputs, self.sizes, strict=True))
