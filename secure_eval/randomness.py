"""Cryptographic randomness: AES-128 in counter mode, expanded from 128-bit seeds.

One seed is shared by two roles (the dealer and a party, say). Each purpose gets a key of its own from it, and
inside a purpose each tensor gets an index of its own; the counter block of AES is `index (64 bits) ||
position in the tensor (64 bits)`, so that no block is ever used twice and both ends can expand any tensor
without expanding those before it. The upper 26 bits of the index are the query: queries only rise, so that a
stream remembers the indices of the newest one alone. Seeds come from the operating system. There is no other generator in this
package.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from secure_eval.kernels.meta_tensors import allocated
from secure_eval.kernels.observation import timed
from secure_eval.measurement import GENERATOR

SEED_BYTES = 16

INDICES_PER_QUERY = 1 << 38
"""Indices of a stream that belong to one query: number `query * INDICES_PER_QUERY` is the first. There is room for 2^26 queries."""

_ZEROS = memoryview(bytes(1 << 20))


class RandomnessReuse(RuntimeError):
    """A stream was asked twice for the same tensor: its values would mask two secrets."""


def new_seed() -> bytes:
    """A fresh 128-bit seed from the operating system."""
    return os.urandom(SEED_BYTES)


class Stream:
    """An AES-128-CTR stream for one purpose.

    `used` has the indices that were served for the newest query, `query`. An older query is over: nothing of it is served any more.

    Args:
        seed: 16 bytes, known to exactly the roles that are to expand the same values.
        purpose: what the values are for; streams of different purposes share no key.
    """

    def __init__(self, seed: bytes, purpose: str):
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._key = hashlib.blake2b(
            purpose.encode(), key=seed, digest_size=16, person=b"sordino stream"
        ).digest()
        self.query = 0
        self.used: set[int] = set()

    def tensor(
        self,
        index: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.int64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Tensor number `index`: uniform over the whole range of an integer dtype.

        Raises RandomnessReuse when the same index is asked for twice, or one of a query before the newest.
        """
        self._spend(index)
        return timed(GENERATOR, lambda: self._expanded(index, shape, dtype).to(device))

    def _spend(self, index: int) -> None:
        """Marks an index as used, for ever."""
        query = index // INDICES_PER_QUERY
        if query < self.query:
            raise RandomnessReuse(
                f"tensor {index} of this stream belongs to query {query}, and query {self.query} has begun"
            )
        if query > self.query:
            self.query = query
            self.used.clear()
        if index in self.used:
            raise RandomnessReuse(f"tensor {index} of this stream was expanded before")
        self.used.add(index)

    def _expanded(self, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = torch.empty(math.prod(shape), dtype=dtype)
        count = out.numel() * out.element_size()
        if count:
            encryptor = Cipher(
                algorithms.AES(self._key), modes.CTR(index.to_bytes(8, "big") + bytes(8))
            ).encryptor()
            # A CTR block holds 16 bytes, and update_into wants room for one block more than it writes only in
            # block modes.
            target = out.view(torch.uint8).numpy().data
            for start in range(0, count, len(_ZEROS)):
                stop = min(count, start + len(_ZEROS))
                encryptor.update_into(_ZEROS[: stop - start], target[start:stop])
        return out.view(tuple(shape))


class MetaStream(Stream):
    """The same interface for the counting run: shapes without values."""

    def __init__(self, purpose: str):
        super().__init__(bytes(SEED_BYTES), purpose)

    def tensor(
        self,
        index: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.int64,
        device: torch.device | str = "meta",
    ) -> Tensor:
        self._spend(index)
        return allocated(tuple(shape), dtype, generator=True)
