"""AES-CTR streams: 128-bit keys from the operating system, separated by purpose and index, no block used
twice.
"""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_eval.correlations.correlation import stream_index
from secure_eval.counting import WorkCounter
from secure_eval.kernels.observation import observing
from secure_eval.measurement import Ledger
from secure_eval.randomness import (
    INDICES_PER_QUERY,
    SEED_BYTES,
    MetaStream,
    RandomnessReuse,
    Stream,
    new_seed,
)
from secure_eval.testing.statistics import Z_LIMIT, two_sample_z, uniform_z

SEED = bytes(range(16))


def independent(seed: bytes, purpose: str, index: int, count: int) -> bytes:
    """The stream block by block from single AES encryptions of counter blocks, no mode of operation."""
    key = hashlib.blake2b(purpose.encode(), key=seed, digest_size=16, person=b"sordino stream").digest()
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = (ecb.update(index.to_bytes(8, "big") + i.to_bytes(8, "big")) for i in range(-(-count // 16)))
    return b"".join(blocks)[:count]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 3, 16, 333])
def test_stream_is_aes_of_counter_blocks(dtype: torch.dtype, count: int) -> None:
    got = Stream(SEED, "masks").tensor(7, (count,), dtype)
    assert got.view(torch.uint8).numpy().tobytes() == independent(SEED, "masks", 7, count * dtype.itemsize)


def test_stream_continues_beyond_its_buffer() -> None:
    count = (1 << 20) + (1 << 19) + 5
    got = Stream(SEED, "masks").tensor(2**40, (count,), torch.uint8)
    assert got.numpy().tobytes() == independent(SEED, "masks", 2**40, count)


def test_shape_does_not_change_the_values() -> None:
    flat = Stream(SEED, "a").tensor(1, (24,))
    assert torch.equal(Stream(SEED, "a").tensor(1, (2, 3, 4)).reshape(-1), flat)
    assert Stream(SEED, "a").tensor(0, ()).shape == () and Stream(SEED, "a").tensor(0, (0, 3)).shape == (0, 3)


def test_purposes_seeds_and_indices_are_separated() -> None:
    tensors = [
        Stream(SEED, "a").tensor(1, (64,)),
        Stream(SEED, "b").tensor(1, (64,)),
        Stream(SEED, "a").tensor(2, (64,)),
        Stream(SEED[::-1], "a").tensor(1, (64,)),
        Stream(SEED, "").tensor(1, (64,)),
    ]
    values = torch.cat(tensors)
    assert values.unique().numel() == values.numel()


def test_one_index_serves_once() -> None:
    stream = Stream(SEED, "a")
    stream.tensor(5, (2,))
    with pytest.raises(RandomnessReuse, match="tensor 5"):
        stream.tensor(5, (2,))
    with pytest.raises(RandomnessReuse):
        stream.tensor(5, (3,), torch.uint8)
    stream.tensor(6, (2,))
    meta = MetaStream("a")
    meta.tensor(5, (2,))
    with pytest.raises(RandomnessReuse):
        meta.tensor(5, (2,))


def test_counters_of_large_tensors_cannot_meet() -> None:
    """The index fills the upper half of the counter block, so that a tensor would need 2^64 blocks to reach
    the next one.
    """
    tail = Stream(SEED, "a").tensor(0, (1 << 16,))
    following = Stream(SEED, "a").tensor(1, (1 << 16,))
    assert torch.cat([tail, following]).unique().numel() == 1 << 17


def test_stream_indices_of_fields_are_distinct_and_bounded() -> None:
    seen = {stream_index(q, n, f) for q in (0, 1, 2) for n in (0, 1, 63, 64, 2**32 - 1) for f in (0, 1, 63)}
    assert len(seen) == 3 * 5 * 3
    for query, number, field in ((0, 2**32, 0), (0, 0, 64), (0, -1, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="out of range"):
            stream_index(query, number, field)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 32])
def test_a_seed_has_128_bits(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Stream(bytes(length), "a")


def test_seeds_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(new_seed()) == SEED_BYTES == 16 and len({new_seed() for _ in range(100)}) == 100
    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or bytes(n))
    assert new_seed() == bytes(16) and asked == [16]


def test_values_are_uniform_over_the_whole_dtype() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int64):
        assert uniform_z(Stream(new_seed(), "a").tensor(0, (50_000,), dtype)) < Z_LIMIT


def test_the_statistics_reject_what_is_not_uniform() -> None:
    """The power of the tests used throughout: small masks, a leaked offset, one stuck bit."""
    values = Stream(SEED, "a").tensor(0, (4096,))
    assert uniform_z(values >> 8) > Z_LIMIT
    assert uniform_z(values & ~(1 << 40)) > Z_LIMIT
    assert uniform_z(values & 0xFFFF_FFFF_FFFF) > Z_LIMIT
    small = values & 0xFFFF_FFFF
    assert two_sample_z(small, small + (27 << 16) + (1 << 40)) > Z_LIMIT
    other = Stream(SEED, "a").tensor(1, (4096,))
    assert two_sample_z(values, other) < Z_LIMIT and uniform_z(other) < Z_LIMIT
    assert two_sample_z(values, other + (27 << 16)) < Z_LIMIT
    assert uniform_z(values[:100]) != uniform_z(values[:100])  # too few samples: no verdict


def test_meta_stream_counts_bytes() -> None:
    stream, ledger = MetaStream("a"), Ledger()
    with observing(WorkCounter(ledger)):
        assert stream.tensor(0, (3, 4)).device.type == "meta"
        stream.tensor(1, (5,), torch.uint8)
    assert ledger.counts.random_bytes == 3 * 4 * 8 + 5 and ledger.counts.traffic_bytes == 0


def test_an_earlier_query_is_over() -> None:
    """A stream remembers the indices of the newest query alone, and serves nothing of those before it."""
    stream = Stream(SEED, "a")
    for query in range(50):
        for number in (3, 1, 2):
            stream.tensor(query * INDICES_PER_QUERY + number, (2,))
        assert len(stream.used) == 3 and stream.query == query
    for index in (3, 48 * INDICES_PER_QUERY + 7, 49 * INDICES_PER_QUERY - 1):
        with pytest.raises(RandomnessReuse, match="belongs to query .*, and query 49 has begun"):
            stream.tensor(index, (2,))
    with pytest.raises(RandomnessReuse, match="was expanded before"):
        stream.tensor(49 * INDICES_PER_QUERY + 1, (2,))
    assert stream.tensor(49 * INDICES_PER_QUERY + 9, (2,)).shape == (2,)
