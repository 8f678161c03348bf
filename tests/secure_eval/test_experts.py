"""Experts behind a router: all are computed, the choice is secret. And what the choice is made of: top-k, and writing at secret places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols
from secure_eval.experts import is_experts
from secure_eval.testing.operations import Function

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 6, generator=_GENERATOR)
Y = torch.randn(3, 4, 2, generator=_GENERATOR)


def _first(x: Tensor) -> Tensor:
    return x.transpose(0, 2)


_EVEN = torch.arange(6) % 2 == 0


CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "values": lambda x, y: torch.topk(x, 3)[0],
    "indices": lambda x, y: torch.topk(x, 3)[1].float(),
    "all of them": lambda x, y: torch.topk(x, 6)[0],
    "another dimension": lambda x, y: torch.topk(x, 2, dim=1)[0],
    "the smallest": lambda x, y: torch.topk(x, 2, dim=1, largest=False)[1].float(),
    "shares of nothing but the chosen": lambda x, y: (
        torch.full_like(x, float("-inf")).scatter(2, torch.topk(x, 2)[1], torch.topk(x, 2)[0]).sigmoid()
    ),
    "of what a mask leaves": lambda x, y: torch.topk(x.masked_fill(_EVEN, float("-inf")), 2)[1].float(),
    "of what an added mask leaves": lambda x, y: torch.topk(
        x + torch.where(_EVEN, torch.finfo(torch.float32).min, 0.0), 2
    )[1].float(),
    "the smallest of what a mask leaves": lambda x, y: torch.topk(
        torch.where(_EVEN, torch.finfo(torch.float32).max, x), 2, largest=False
    )[1].float(),
    "the place of the largest that a mask leaves": lambda x, y: (
        x.masked_fill(_EVEN, -torch.inf).argmax(-1).float()
    ),
    "as a mask of attention": lambda x, y: F.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.zeros(3, 4, 4).scatter(-1, torch.topk(x[..., :4], 2)[1], 1.0) > 0.5
    ),
    "far apart": lambda x, y: torch.topk(x * 4000, 3)[1].float(),
    "gathered": lambda x, y: x.gather(-1, torch.topk(x.abs(), 2)[1]),
    "written": lambda x, y: torch.zeros_like(x).scatter(-1, torch.topk(x, 2)[1], y),
    "written onto": lambda x, y: x.scatter(-1, torch.topk(x, 2)[1], y),
    "one number written": lambda x, y: torch.zeros_like(x).scatter(-1, torch.topk(x, 2)[1], 1.0) * x,
    "one number written onto": lambda x, y: x.scatter(-1, torch.topk(x, 2)[1], 0.5),
    "written along the first": lambda x, y: _first(x).scatter(
        0, torch.topk(_first(x), 2, dim=0)[1], _first(y)
    ),
    "one-hot rows": lambda x, y: F.one_hot(torch.topk(x, 2)[1].reshape(-1, 2), 6).float(),
    "one-hot rows, transposed": lambda x, y: F.one_hot(torch.topk(x, 2)[1].permute(2, 0, 1), 6).float(),
}


@pytest.mark.parametrize("protocol", ("plain", "dealer2pc"))
@pytest.mark.parametrize("name", CHOICES)
def test_choices(name: str, protocol: str) -> None:
    """What torch gives, at a cost that is known before."""
    wanted = CHOICES[name](X, Y)
    with secure_eval.compile(Function(CHOICES[name]).eval(), (X, Y), protocol) as secure:
        assert float((secure(X, Y) - wanted).abs().max()) < 2.0**-10
        assert secure.measurement.communication() == secure.predicted().communication()


def test_rows_that_exist_are_not_compared_again() -> None:
    """A top-k has the one-hot rows of what it takes out; the last one's alone is new."""

    def router(x: Tensor) -> Tensor:
        weights, places = torch.topk(torch.softmax(x, -1), 2)
        rows: Tensor = F.one_hot(places, 6).float() * weights.unsqueeze(-1)
        return rows.sum(-2)

    program = secure_eval.capture(Function(router).eval(), (X,))
    assert [n.op for n in program.nodes].count("one_hot") == 2


def _mixture(**changed: Any) -> nn.Module:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.MixtralConfig(
        **sizes
        | {"num_key_value_heads": 1, "num_local_experts": 5, "num_experts_per_tok": 2, "pad_token_id": 1}
        | changed
    )
    torch.manual_seed(2)
    model = transformers.MixtralForSequenceClassification(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.9 / parameter.shape[-1] ** 0.5)
    return model


def _tokens() -> dict[str, Tensor]:
    ids = torch.randint(2, 40, (2, 5), generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("protocol", ("plain", "dealer2pc"))
def test_a_mixture_of_experts(protocol: str) -> None:
    model, query = _mixture(), _tokens()
    wanted = model(**query).logits
    with secure_eval.compile(model, query, protocol) as secure:
        got = secure(**query).logits
        assert secure.measurement.communication() == secure.predicted().communication()
    assert float((got - wanted).abs().max()) < 0.01 * float(wanted.abs().max())
    assert any(is_experts(m) for m in model.modules())
    assert torch.equal(model(**query).logits, wanted)  # the model is as it was
    wrong = _mixture(num_experts_per_tok=1)
    wrong.load_state_dict(model.state_dict())
    assert float((wrong(**query).logits - wanted).abs().max()) > 0.02 * float(wanted.abs().max())


def test_a_mixture_costs_the_products_of_all_its_experts() -> None:
    """And nothing that depends on which are chosen."""

    def megabytes(experts: int) -> float:
        program = secure_eval.capture(_mixture(num_local_experts=experts), _tokens())
        assert not any(n.op == "aten::aten.sort.default" for n in program.nodes)
        return float(secure_eval.count(program, protocols.get("dealer2pc")).online.bytes)

    four, eight = megabytes(4), megabytes(8)
    assert 1.3 < eight / four < 2.0


def test_a_model_is_left_as_it_was() -> None:
    """Also one whose capture fails."""
    model, query = _mixture(), _tokens()
    secure_eval.capture(model, query)
    assert not any("forward" in vars(m) for m in model.modules())
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        secure_eval.capture(model, query)
    assert not any("forward" in vars(m) for m in model.modules())
