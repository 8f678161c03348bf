"""The range penalty: nothing inside the range, bits beyond it, and a term of every stage's loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill import Architecture, DistillConfig, apply, mpcformer
from distill.fixed_point import ENGINE, RangePenalty, range_term, variant_modules
from distill.variants.softmax_two_quad import TwoQuadSoftmax


def penalty_of(scores: Tensor) -> Tensor:
    module = TwoQuadSoftmax()
    penalty = RangePenalty({"site": module})
    with penalty.watching():
        module(scores, None)
    return penalty.value()


def test_it_is_zero_inside_and_squared_bits_beyond() -> None:
    inside = torch.zeros(1, 1, 1, 4, requires_grad=True)
    assert float(penalty_of(inside)) == 0.0
    # (s + 5)^2 = 2^13 for one key: a row's sum may reach 2^14 less the margin.
    scores = torch.full((1, 1, 1, 1), 2.0**6.5 - 5.0, requires_grad=True)
    value = penalty_of(scores)
    assert float(value) == pytest.approx((13 - (14 - ENGINE.margin_bits)) ** 2, rel=1e-4)
    value.backward()
    assert scores.grad is not None and float(scores.grad.sum()) > 0, "descending makes the scores smaller"
    small = torch.full((1, 1, 1, 1), -5.0 + 2.0**-3, requires_grad=True)
    low = penalty_of(small)
    assert float(low) == pytest.approx((6 - (6 - ENGINE.margin_bits)) ** 2, rel=1e-3)
    low.backward()
    assert small.grad is not None and float(small.grad.sum()) < 0, "descending makes a small sum larger"


def test_hooks_do_not_stay() -> None:
    module = TwoQuadSoftmax()
    penalty = RangePenalty({"site": module})
    with pytest.raises(RuntimeError), penalty.watching():
        module(torch.zeros(1, 1, 1, 4), torch.zeros(5, dtype=torch.bool))
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert float(penalty_of(torch.zeros(1, 1, 1, 4))) == 0.0, "nothing watches on after an error"


def test_it_is_a_term_of_training(
    teacher: PreTrainedModel, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = apply(teacher, Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"}))
    assert len(variant_modules(student)) == 4 and variant_modules(teacher) == {}
    with torch.no_grad():
        for name, value in student.named_parameters():
            if ".query.weight" in name:
                value.mul_(3000.0)
    student.eval()  # drop-out would draw differently
    with range_term(student, 0.5)() as term:
        student(**inputs)
    whole = term()
    with range_term(student, 1.0)() as term:
        student(**inputs)
    assert float(whole) == pytest.approx(0.5 * float(term()), rel=1e-4) and float(whole) > 0
    whole.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.parameters())

    from distill import train as training

    seen: list[int] = []

    def stop(student: Any, cache: Any, config: DistillConfig, extras: Any = ()) -> Any:
        seen.append(len(extras))
        raise KeyboardInterrupt

    module = __import__("sys").modules["distill.train"]
    monkeypatch.setattr(module, "Objectives", stop)
    from distill import Tokens

    tokens = Tokens({"input_ids": [[1, 2, 3]] * 4}, [0, 1, 0, 1], {"input_ids": 0}, 8)
    for weight in (0.0, 0.01):
        with pytest.raises(KeyboardInterrupt):
            training(student, teacher, tokens, tokens, DistillConfig(range_penalty=weight))
    assert seen == [0, 1] and DistillConfig().range_penalty > 0
    assert mpcformer.settings(1000)["range_penalty"] == 0.0, "a published baseline is trained as published"
