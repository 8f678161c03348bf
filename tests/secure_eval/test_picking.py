"""What is picked by a mask, filled in where nobody may know, or masked under an exponential or a maximum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import UnsupportedOperations
from secure_eval.testing.operations import Function

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 2, 4, 2, 0], [2, 2, 3, 0, 0], [5, 6, 2, 5, 2]])


class AtTheEnd(nn.Module):
    """Pools at the first or last of the tokens with number 2, of which each row has as many."""

    def __init__(self, place: int):
        super().__init__()
        torch.manual_seed(1)
        self.table, self.layer, self.place = nn.Embedding(9, 6), nn.Linear(6, 6), place

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(5)[:, None] * 0.3  # the same token is another state elsewhere
        states = torch.tanh(self.layer(self.table(ids)) - places)
        ends = ids.eq(2)
        torch._check(torch.unique_consecutive(ends.sum(1)).numel() == 1)
        picked: Tensor = states[ends, :].view(states.size(0), -1, states.size(-1))[:, self.place, :]
        return picked


@pytest.mark.parametrize("place", (0, -1))
def test_the_first_or_last_of_each_row(place: int) -> None:
    model = AtTheEnd(place).eval()
    with secure_eval.compile(model, (IDS,), "dealer2pc") as secure:
        assert float((secure(IDS) - model(IDS)).abs().max()) < 2.0**-9
        assert secure.measurement.communication() == secure.predicted().communication()


def test_another_of_each_row_is_refused() -> None:
    with pytest.raises(
        UnsupportedOperations, match="how many elements come out depends on values|decides shapes"
    ):
        secure_eval.capture(AtTheEnd(1).eval(), (IDS,))


LOWEST = torch.finfo(torch.float32).min
FILLED: dict[str, Callable[[Tensor], Tensor]] = {
    "-inf by a secret mask": lambda x: torch.softmax(x.masked_fill(x < -0.5, float("-inf")), -1),
    "the smallest by a secret condition": lambda x: torch.softmax(
        torch.where(x > x.amax(-1, True) * 0.1, x, LOWEST), -1
    ),
    "-inf at a secret place": lambda x: torch.softmax(x.scatter(-1, x.argmax(-1, True), float("-inf")), -1),
    "under an exponential": lambda x: (
        x.masked_fill(torch.ones(5, 6).triu(1).bool(), float("-inf")) * 0.5
    ).exp(),
    "under a maximum": lambda x: x.masked_fill(torch.arange(6) > 3, float("-inf")).amax(-1),
    "added, under a maximum": lambda x: (x + (torch.arange(6) > 3) * -1e9).max(-1).values,
    "real numbers as bits": lambda x: torch.where(torch.relu(x).bool(), x, 1.0),
}


@pytest.mark.parametrize("name", FILLED)
def test_filled(name: str) -> None:
    with secure_eval.compile(Function(FILLED[name]).eval(), (X,), "plain") as secure:
        assert float((secure(X) - FILLED[name](X)).abs().max()) < 2.0**-10


def test_a_mask_that_the_owner_adds_to_its_biases() -> None:
    """Relative positions and a causal mask, neither of which depends on an input: the owner adds them, before anything is shared."""

    class Relative(nn.Module):
        def __init__(self, filled: bool) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.table, self.filled = nn.Embedding(5, 1), filled

        def forward(self, x: Tensor) -> Tensor:
            bias = self.table(torch.arange(5)[:, None].expand(5, 5) % 5).permute(2, 0, 1)
            causal = torch.ones(5, 5).tril().bool()
            bias = (
                torch.where(causal, bias, LOWEST) if self.filled else bias + torch.where(causal, 0.0, LOWEST)
            )
            return torch.softmax(x @ x.transpose(-1, -2) + bias, -1) @ x

    for filled in (False, True):
        model = Relative(filled).eval()
        with secure_eval.compile(model, (X,), "plain") as secure:
            assert float((secure(X) - model(X)).abs().max()) < 2.0**-9


def test_weights_standardised_by_the_owner() -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            self.positions = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3), dim=2)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.layer.weight.reshape(1, 4, -1)
            weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(
                self.layer.weight
            )
            y: Tensor = self.positions(F.conv2d(x, weight, self.layer.bias))
            return y

    torch.manual_seed(0)
    model, x = Standardised().eval(), torch.randn(1, 3, 5, 5)
    with secure_eval.compile(model, (x,), "plain") as secure:
        assert float((secure(x) - model(x)).abs().max()) < 2.0**-9
