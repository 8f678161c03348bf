"""A program's works are the model's own operations, whatever the engine's passes made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secure_eval
from cost_models.peers import models
from cost_models.workload import Work, within, works


class _Made(nn.Module):
    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


def _works(function: Callable[..., Tensor] | nn.Module, *shapes: tuple[int, ...]) -> tuple[Work, ...]:
    model = function if isinstance(function, nn.Module) else _Made(function)
    return works(secure_eval.capture(model.eval(), tuple(torch.zeros(s) for s in shapes), passes=()))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v


def test_a_linear_layer() -> None:
    (work,) = _works(nn.Linear(6, 12), (2, 5, 6))
    assert (work.kind, work.batch, work.m, work.k, work.n) == ("linear", 1, 10, 6, 12)
    assert (work.left, work.right, work.elements) == (60, 72, 120)
    assert work.weight


def test_a_convolution() -> None:
    (work,) = _works(nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 10))
    assert (work.kind, work.m, work.k, work.n) == ("conv", 200, 27, 8)
    assert (work.left, work.right, work.elements) == (600, 216, 1600)


def test_products_of_secrets() -> None:
    (work,) = _works(lambda x, y: x @ y, (2, 4, 5), (2, 5, 6))
    assert (work.kind, work.batch, work.m, work.k, work.n) == ("matmul", 2, 4, 5, 6)
    (work,) = _works(lambda x, y: x * y, (4, 5), (4, 1))
    assert (work.kind, work.elements, work.left, work.right, work.weight) == ("mul", 20, 20, 4, False)
    assert [w.kind for w in _works(lambda x: x * x, (4, 5))] == ["square"]
    assert [(w.kind, w.factor) for w in _works(lambda x: 3 * x, (4, 5))] == [("scale", 3)]


def test_softmax_is_one_work_and_its_division_stays_before_the_product() -> None:
    found = _works(_attention, (2, 8, 4), (2, 8, 4), (2, 8, 4))
    kinds = [w.kind for w in found]
    assert sorted(kinds) == ["matmul", "matmul", "scale", "softmax"]
    softmax = next(w for w in found if w.kind == "softmax")
    assert (softmax.rows, softmax.columns, softmax.kept) == (16, 8, 128)


def test_a_division_behind_a_product_counts_on_what_is_divided() -> None:
    def two_quad(x: Tensor, v: Tensor) -> Tensor:
        squares = torch.square(x + 5)
        return (squares / squares.sum(-1, keepdim=True)) @ v

    found = {w.kind: w for w in _works(two_quad, (8, 8), (8, 4))}
    assert set(found) == {"square", "reciprocal", "mul", "matmul"}
    assert (found["mul"].left, found["mul"].right, found["reciprocal"].elements) == (64, 8, 8)


def test_a_scale_that_was_put_into_a_weight_counts_on_the_scores() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.q(x) @ self.k(x).transpose(-1, -2) / 2).softmax(-1)

    found = _works(Scores(), (3, 6))
    (scale,) = [w for w in found if w.kind == "scale"]
    assert (scale.elements, scale.factor) == (9, pytest.approx(0.5))
    assert Counter(w.kind for w in found) == Counter(linear=2, matmul=1, scale=1, softmax=1)


def test_a_causal_mask_leaves_the_lower_triangle() -> None:
    def causal(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).masked_fill(torch.ones(8, 8).triu(1).bool(), -1e9).softmax(-1)

    found = {w.kind: w for w in _works(causal, (8, 4), (8, 4))}
    assert found["softmax"].kept == found["matmul"].kept == 36
    assert found["softmax"].elements == 64


def test_activations_written_out_are_one_work() -> None:
    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    assert [(w.kind, w.elements) for w in _works(gelu, (4, 5))] == [("gelu", 20)]
    assert [w.kind for w in _works(lambda x: functional.gelu(x), (4, 5))] == ["gelu"]


def test_norms_have_rows_and_gains() -> None:
    (norm,) = _works(nn.LayerNorm(6), (2, 5, 6))
    assert (norm.kind, norm.rows, norm.columns, norm.weight) == ("layer_norm", 10, 6, True)
    (norm,) = _works(nn.LayerNorm(6, elementwise_affine=False), (2, 5, 6))
    assert not norm.weight
    (norm,) = _works(nn.RMSNorm(6), (2, 5, 6))
    assert norm.kind == "rms_norm"


@pytest.mark.parametrize(("embedding", "kind"), [("client", "lookup"), ("onehot", "embedding")])
def test_embeddings(embedding: str, kind: str) -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    program = secure_eval.capture(nn.Embedding(10, 3).eval(), (ids,), embedding=embedding, passes=())
    (work,) = works(program)
    assert (work.kind, work.elements) == (kind, 12)
    assert (work.rows, work.columns) == (4, 3) if kind == "lookup" else (work.m, work.k, work.n) == (4, 10, 3)


def test_other_operations_keep_their_names() -> None:
    found = _works(lambda x: torch.where(x < 0, torch.exp(x), torch.sqrt(x)).amax(-1), (4, 5))
    assert {"less", "exp", "sqrt", "where", "max"} <= {w.kind for w in found}


def test_merged_projections_and_sites() -> None:
    found = models.whole("bert-tiny")
    layer = within(found, "encoder.layer.0")
    assert Counter(w.kind for w in layer) == Counter(
        linear=6, matmul=2, scale=1, softmax=1, layer_norm=2, gelu=1
    )
    projections = [w for w in layer if w.kind == "linear" and "attention.self" in w.site]
    assert [w.site.rsplit(".", 1)[-1] for w in projections] == ["query", "key", "value"]
    assert len({w.operand for w in projections}) == 1


@pytest.mark.parametrize("name", ["bert-tiny", "gpt2", "llama2-7b"])
def test_repeated_layers_are_a_model_with_more_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = models.REFERENCES[name]
    monkeypatch.setitem(models.REFERENCES, f"{name} twice", replace(reference, layers=2))
    found, expected = models.whole(f"{name} twice", 16), models.captured(reference.build(2), 16)
    assert [replace(w, operand="") for w in found] == [replace(w, operand="") for w in expected]


def test_rotary_embeddings_are_two_works_a_layer() -> None:
    layer = models.one_layer("llama2-7b", 16)
    assert Counter(w.kind for w in layer)["rotary"] == 2
    assert Counter(w.kind for w in layer)["rms_norm"] == 2
    assert next(w for w in layer if w.kind == "softmax").kept == 32 * 16 * 17 // 2
