"""Signs and ranges that the making of a value proves decide which division is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from secure_eval import capture
from secure_eval.testing.operations import Function


class Masked(Function):
    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        keep = attention_mask.bool()[:, None, :].to(x.dtype)
        power = (x + 5).square() * keep
        result: Tensor = power / power.sum(-1, keepdim=True)
        return result


def operations(function: Callable[..., Tensor], *inputs: Tensor) -> set[str]:
    model = Function(function).eval()
    return {n.op for n in capture(model, inputs).nodes if n.level == "secret"}


def test_a_sum_of_masked_squares_is_not_negative() -> None:
    """2Quad's divisor, with a mask that is known to be 0 or 1 because it was a bool."""
    inputs = {"x": torch.randn(2, 3, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    ops = {n.op for n in capture(Masked(lambda: None).eval(), inputs).nodes}
    assert "reciprocal" in ops and "signed_reciprocal" not in ops


@pytest.mark.parametrize(
    "function, division",
    [
        (lambda x: 1 / (x * x + 1), "reciprocal"),
        (lambda x: 1 / (x.relu() + 0.5), "reciprocal"),
        (lambda x: 1 / (x.abs() + 0.1), "reciprocal"),
        (lambda x: 1 / (-(x * x) - 1), "reciprocal"),
        (lambda x: 1 / x.sum(-1, keepdim=True), "signed_reciprocal"),
        (lambda x: 1 / (x * x - 1), "signed_reciprocal"),
    ],
)
def test_a_divisor_of_known_sign_takes_the_cheaper_division(
    function: Callable[[Tensor], Tensor], division: str
) -> None:
    other = {"reciprocal", "signed_reciprocal"} - {division}
    ops = operations(function, torch.randn(3, 4))
    assert division in ops and not ops & other
