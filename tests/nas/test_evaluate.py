"""Swapping blocks and keeping prefixes changes no score: both are checked against students that are
built whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import distill
import nas
from distill.fixed_point import MOST_BITS


def architectures(teacher: Any, count: int, space: nas.SearchSpace) -> list[distill.Architecture]:
    generator = torch.Generator().manual_seed(3)
    options = space.options(distill.find_sites(teacher))
    return [
        distill.Architecture(
            {s: v[int(torch.randint(len(v), (1,), generator=generator))] for s, v in options.items()}
        )
        for _ in range(count)
    ]


def whole(
    teacher: Any, calibration: Any, batches: Any, architecture: distill.Architecture
) -> dict[str, float]:
    student = distill.apply(teacher, architecture, calibration=calibration)
    expected = distill.evaluate(teacher, batches)
    found = distill.evaluate(student, batches)
    return {"kl": distill.kl(expected, found), "agreement": distill.agreement(expected, found)}


def test_scores_are_those_of_whole_students(
    teacher: Any, calibration: Any, batches: Any, space: nas.SearchSpace, make_evaluator: Callable[..., Any]
) -> None:
    evaluator = make_evaluator()
    plain = make_evaluator(cache_bytes=0)
    assert evaluator._prefix.active and not plain._prefix.active
    seen = []
    for architecture in architectures(teacher, 8, space):
        expected = whole(teacher, calibration, batches, architecture)
        for each in (evaluator, plain):
            found = each.evaluate(architecture)
            assert found.complete
            assert {name: found.scores[name] for name in expected} == pytest.approx(
                expected, rel=1e-3, abs=1e-6
            )
        seen.append(expected["kl"])
    assert evaluator._prefix.hits > 0
    assert max(seen) > 2 * min(seen) > 0, "the candidates differ, so the comparison says something"


def test_the_teacher_is_left_alone(
    teacher: Any, make_evaluator: Callable[..., Any], batches: Any, space: nas.SearchSpace
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    names = [name for name, _ in teacher.named_modules()]
    evaluator = make_evaluator()
    evaluator.evaluate(architectures(teacher, 1, space)[0])
    assert [name for name, _ in teacher.named_modules()] == names
    assert all(p.requires_grad for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert evaluator.evaluate(distill.Architecture({})).scores == pytest.approx(
        {"kl": 0, "agreement": 1, "spare_bits": MOST_BITS}, abs=1e-6
    )


def test_memory_for_prefixes_is_bounded(
    teacher: Any, calibration: Any, batches: Any, space: nas.SearchSpace, make_evaluator: Callable[..., Any]
) -> None:
    evaluator = make_evaluator(cache_bytes=20_000)
    for architecture in architectures(teacher, 4, space):
        expected = whole(teacher, calibration, batches, architecture)
        found = evaluator.evaluate(architecture).scores
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert evaluator._prefix._held <= 20_000


def test_giving_up_costs_a_quarter(
    make_evaluator: Callable[..., Any], teacher: Any, space: nas.SearchSpace
) -> None:
    evaluator = make_evaluator()
    architecture = architectures(teacher, 1, space)[0]
    calls = []
    student = evaluator.library.student
    handle = student.register_forward_hook(lambda *_: calls.append(1))
    part = evaluator.evaluate(architecture, lambda scores: True)
    assert len(calls) == 2 and not part.complete and part.scores == part.screening
    full = evaluator.evaluate(architecture, lambda scores: False)
    handle.remove()
    assert full.complete and full.screening == part.screening
    assert len(calls) == 2 + 8


def test_fingerprint_follows_the_content(
    teacher: Any, calibration: Any, batches: Any, space: nas.SearchSpace, make_evaluator: Callable[..., Any]
) -> None:
    first = make_evaluator().fingerprint
    assert make_evaluator().fingerprint == first
    options = space.options(distill.find_sites(teacher))
    assert nas.Evaluator(teacher, calibration, batches[:4], options).fingerprint != first
    other = distill.calibrate(teacher, batches[:2])
    assert nas.Evaluator(teacher, other, batches, options).fingerprint != first


def test_an_output_that_is_not_finite_has_a_score() -> None:
    scorer = nas.Classification()
    teacher = torch.tensor([[1.0, 2.0]])
    assert scorer.compare(teacher, torch.tensor([[float("nan"), 0.0]]))["kl"] >= 1e6


def test_tokens_are_items_and_padding_is_none() -> None:
    from types import SimpleNamespace

    logits = torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = nas.Classification().predictions(SimpleNamespace(logits=logits), {"attention_mask": mask})
    assert torch.equal(found, torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]]))
    with pytest.raises(ValueError, match="scorer"):
        nas.Classification().predictions(SimpleNamespace(logits=logits[..., :1]), {})


@pytest.mark.parametrize("family", ["llama", "albert"])
def test_other_families(family: str) -> None:
    torch.manual_seed(0)
    common: dict[str, Any] = dict(
        vocab_size=50,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=3,
        num_labels=3,
        max_position_embeddings=16,
        initializer_range=0.4,
        pad_token_id=0,
    )
    model: Any
    if family == "llama":
        model = LlamaForSequenceClassification(LlamaConfig(num_key_value_heads=1, **common)).eval()
    else:
        model = AlbertForSequenceClassification(AlbertConfig(embedding_size=8, **common)).eval()
    ids = torch.randint(1, 50, (6, 7), generator=torch.Generator().manual_seed(2))
    batches = [
        {"input_ids": ids[i : i + 2], "attention_mask": torch.ones(2, 7, dtype=torch.long)} for i in (0, 2, 4)
    ]
    calibration = distill.calibrate(model, batches)
    space = nas.SearchSpace({"softmax": ["exact", "power4"], "activation": ["exact", "relu", "quad_channel"]})
    evaluator = nas.Evaluator(model, calibration, batches, space.options(distill.find_sites(model)))
    assert evaluator._prefix.active == (family == "llama"), "ALBERT's one block runs several times"
    for architecture in architectures(model, 4, space):
        expected = whole(model, calibration, batches, architecture)
        found = evaluator.evaluate(architecture).scores
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
