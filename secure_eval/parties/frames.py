"""Frames between a launcher and the processes that it started: a JSON object and tensors as raw bytes. Nothing is pickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

_LENGTHS = struct.Struct("!QQ")


def write(stream: IO[bytes], message: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Writes one frame."""
    header, blobs = [], []
    for name, tensor in (tensors or {}).items():
        blobs.append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        header.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    text = json.dumps({"message": message, "tensors": header}).encode()
    stream.write(_LENGTHS.pack(len(text), sum(map(len, blobs))))
    stream.write(text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Reads one frame; None at the end of the stream. Raises EOFError inside a frame."""
    start = stream.read(_LENGTHS.size)
    if not start:
        return None
    text_bytes, blob_bytes = _LENGTHS.unpack(_exactly(start, _LENGTHS.size))
    data = json.loads(_exactly(stream.read(text_bytes), text_bytes))
    blob = bytearray(_exactly(stream.read(blob_bytes), blob_bytes))
    tensors, offset = {}, 0
    for name, dtype_name, shape in data["tensors"]:
        dtype = getattr(torch, dtype_name)
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        flat = (
            torch.frombuffer(blob, dtype=dtype, count=count, offset=offset)
            if count
            else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.clone().view(shape)
        offset += size
    return data["message"], tensors


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise EOFError("the other process ended inside a message")
    return data
