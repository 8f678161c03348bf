"""Predictions: the engine itself, run on meta tensors over a transport that only counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

import secure_eval
from cost_models.cost import Cost
from secure_eval.capture import PUBLIC_INPUTS


def predict(
    model: nn.Module | secure_eval.Program,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    protocol: str = "dealer2pc",
    *,
    embedding: str = "client",
    public: Sequence[str] = PUBLIC_INPUTS,
    fraction_bits: int = 16,
) -> Cost:
    """What set-up, the offline phase of one query and one query cost: bytes, rounds and work, exactly as a run would count them.

    Args:
        model: a module in eval mode (its weights' values are not used: it may be on the meta device), or a captured program.
        example_inputs: tensors of the query's shapes (meta tensors do); not needed for a program.
        protocol: a name from `secure_eval.protocols.names()`.

    Raises:
        secure_eval.UnsupportedOperations, secure_eval.protocols.UnknownProtocol, ValueError.
    """
    cls = secure_eval.protocols.get(protocol)
    if isinstance(model, secure_eval.Program):
        program = model
    elif example_inputs is None:
        raise ValueError("a module needs example_inputs: the cost depends on their shapes")
    else:
        program = secure_eval.capture(model, example_inputs, embedding=embedding, public=public)
    return Cost.of(secure_eval.count(program, cls, fraction_bits))
