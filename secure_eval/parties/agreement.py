"""What all roles of a computation have to agree on before anything is shared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from secure_eval.network.transport import TensorSpec, TransportError
from secure_eval.program import Program

_DIGEST_BYTES = 32
_UNKNOWN = bytes(_DIGEST_BYTES)
_NAMES = {
    "version": "another version of Sordino",
    "protocol": "another protocol",
    "fraction_bits": "another number of fraction bits",
    "program": "another program",
    "constants": "other constants of the program",
}


class Disagreement(TransportError):
    """Two roles are not about to compute the same thing in the same way."""


@dataclass(frozen=True)
class Agreement:
    """Digests of what a role is about to compute, 32 bytes each. A role that knows the constants' shapes alone says nothing of their
    values."""

    version: bytes
    protocol: bytes
    fraction_bits: bytes
    program: bytes
    constants: bytes

    @classmethod
    def of(cls, program: Program, protocol: str, fraction_bits: int) -> Agreement:
        return cls(
            _digest(_version().encode()),
            _digest(protocol.encode()),
            _digest(str(fraction_bits).encode()),
            _digest(program.to_json().encode()),
            _UNKNOWN
            if any(t.is_meta for t in program.constants.values())
            else _digest(*_constants(program.constants)),
        )

    def tensor(self) -> Tensor:
        """As it travels: AGREEMENT."""
        return torch.frombuffer(bytearray(b"".join(astuple(self))), dtype=torch.uint8).view(*AGREEMENT.shape)

    def compare(self, role: str, peer: str, heard: Tensor) -> None:
        """Raises Disagreement where a peer said something else."""
        rows = [bytes(row) for row in heard.cpu().tolist()]
        other = [
            _NAMES[f.name]
            for f, row in zip(fields(self), rows, strict=True)
            if row != getattr(self, f.name) and _UNKNOWN not in (row, getattr(self, f.name))
        ]
        if other:
            raise Disagreement(
                f"{role}: {peer} is about to compute with {', '.join(other)}; nothing was shared"
            )


AGREEMENT = TensorSpec((len(fields(Agreement)), _DIGEST_BYTES), torch.uint8)
"""How an agreement travels."""


def _digest(*parts: bytes) -> bytes:
    """A hash of the parts in order, each with its length."""
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"sordino agreed")
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def _constants(constants: Mapping[str, Tensor]) -> list[bytes]:
    found = []
    for name in sorted(constants):
        tensor = constants[name].detach()
        found.append(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.append(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found


def _version() -> str:
    try:
        return version("sordino")
    except PackageNotFoundError:
        return "source"
