"""Masks however they are written: spelling, number, type, place before or after scaling, bias, side of the padding, and rows of nothing.

A small attention of every kind runs under `plain` and is compared with torch: in float64 where a row keeps anything, in float32, as models
run, where all of it is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols
from secure_eval.lowering import masks
from secure_eval.program import Ref
from secure_eval.testing.operations import Function

HEADS, LENGTH, WIDTH = 2, 5, 6
BOUND = 2.0**-9
NUMBERS: dict[str, float] = {
    "-100": -100.0,
    "-1e3": -1e3,
    "-1e4": -1e4,
    "-1e6": -1e6,
    "-1e7": -1e7,
    "-1e9": -1e9,
    "half": torch.finfo(torch.float16).min,
    "bfloat": torch.finfo(torch.bfloat16).min,
    "float": torch.finfo(torch.float32).min,
    "-inf": float("-inf"),
}
KEPT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
"""No padding, on the left, on the right, and a row of nothing."""

Spelling = Callable[[Tensor, Tensor, float], Tensor]


def _added(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return s + torch.where(kept != 0, 0.0, low)


def _computed(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return s + (1 - kept.to(s.dtype)) * low


def _subtracted(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return s - torch.where(kept != 0, 0.0, -low)


def _filled(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return s.masked_fill(kept == 0, low)


def _filled_in_place(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return (s * 1.0).masked_fill_(~kept.to(torch.bool), low)


def _chosen(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return torch.where(kept != 0, s, torch.full([], low))


def _chosen_the_other_way(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return torch.where(kept == 0, low, s)


def _inverted(s: Tensor, kept: Tensor, low: float) -> Tensor:
    inverted = 1.0 - kept.to(s.dtype)
    return s + inverted.masked_fill(inverted.to(torch.bool), low)


def _minimum(s: Tensor, kept: Tensor, low: float) -> Tensor:
    return torch.minimum(s, torch.where(kept != 0, torch.finfo(torch.float32).max, low))


def _bounded_below(s: Tensor, kept: Tensor, low: float) -> Tensor:
    summed = s + torch.where(kept != 0, 0.0, low)
    return torch.max(summed, torch.tensor(torch.finfo(torch.float32).min))


def _reshaped(s: Tensor, kept: Tensor, low: float) -> Tensor:
    flat = s.view(-1, HEADS, LENGTH, LENGTH) + torch.where(kept != 0, 0.0, low)
    return flat.view(-1, LENGTH, LENGTH).view(s.shape)


def _with_causal(s: Tensor, kept: Tensor, low: float) -> Tensor:
    causal = torch.triu(torch.ones(LENGTH, LENGTH), 1) * (low if low > -1e30 else -1e30)
    return s + causal + torch.where(kept != 0, 0.0, low)


SPELLINGS: dict[str, Spelling] = {
    f.__name__.strip("_").replace("_", " "): f
    for f in (
        _added, _computed, _subtracted, _filled, _filled_in_place, _chosen, _chosen_the_other_way, _inverted, _minimum,
        _bounded_below, _reshaped, _with_causal,
    )
}  # fmt: skip
NO_INFINITY = ("computed",)
"""0 * -inf is no number: torch itself cannot."""


class Attention(nn.Module):
    """Attention of one query tensor with itself, masked by `spelling`."""

    def __init__(self, spelling: Spelling, low: float, before: bool, bias: str):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.spelling, self.low, self.before, self.bias = spelling, low, before, bias
        self.table = nn.Parameter(torch.randn(2 * LENGTH, HEADS, generator=generator))
        self.register_buffer("places", torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH)

    def scores(self, x: Tensor, kept: Tensor) -> Tensor:
        scores = x @ x.transpose(-1, -2)
        mask = kept[:, None, None, :]
        if not self.before:
            scores = scores * 0.3
        if self.bias == "secret first":
            scores = scores + self.table[self.places].permute(2, 0, 1)
        scores = self.spelling(scores, mask, self.low)
        if self.bias == "secret last":
            scores = scores + self.table[self.places].permute(2, 0, 1)
        if self.bias == "public":
            scores = scores - torch.arange(LENGTH, dtype=scores.dtype)
        return scores * 0.3 if self.before else scores

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        return torch.softmax(self.scores(x, kept), -1) @ x


def _query(kind: torch.dtype = torch.int64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(len(KEPT), HEADS, LENGTH, WIDTH, generator=generator)
    return {"x": x.half().float(), "kept": KEPT.to(kind)}


def _wanted(model: Attention, query: dict[str, Tensor]) -> Tensor:
    """float64; but float32, as models run, where all of a row has a number beside which float32 holds no score. Where torch says that
    there is no number, all of a row counts alike."""
    inside = {k: v.double() if v.is_floating_point() else v for k, v in query.items()}
    whole = model.double()(**inside)
    single = model.float()(**query).double()
    keep = (query["kept"] != 0)[:, None, None, :].expand(-1, 1, LENGTH, -1)
    if model.spelling is _with_causal:
        keep = keep & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    rows = whole if model.low >= -1e7 else torch.where(keep.any(-1, keepdim=True), whole, single)
    return torch.where(rows.isnan(), query["x"].double().mean(-2, keepdim=True), rows).detach()


def _error(model: Attention, query: dict[str, Tensor], protocol: str = "plain") -> float:
    with secure_eval.compile(model.eval(), query, protocol, public=("kept",)) as secure:
        got = secure(**query)
        assert secure.measurement.communication() == secure.predicted().communication()
    return float((got.double() - _wanted(model, query)).abs().max())


CASES = [
    (spelling, low)
    for spelling, low in product(SPELLINGS, NUMBERS)
    if not (low == "-inf" and spelling in NO_INFINITY)
]


@pytest.mark.parametrize(("spelling", "low"), CASES)
def test_every_number_however_spelled(spelling: str, low: str) -> None:
    """Before and after scaling; a full row, padding on either side, and a row of nothing."""
    for before in (False, True):
        assert _error(Attention(SPELLINGS[spelling], NUMBERS[low], before, ""), _query()) < BOUND


@pytest.mark.parametrize("bias", ("secret first", "secret last", "public"))
@pytest.mark.parametrize("low", ("-1e3", "-1e4", "-1e9", "float", "-inf"))
def test_with_relative_positions(bias: str, low: str) -> None:
    """Biases that nobody knows and slopes that all know, before and after the mask, are numbers beside it."""
    for spelling, before in product((_added, _filled, _with_causal), (False, True)):
        assert _error(Attention(spelling, NUMBERS[low], before, bias), _query()) < BOUND


def _table_added(t: Tensor, visible: Tensor, low: float) -> Tensor:
    return t + torch.where(visible, 0.0, low)


def _table_subtracted(t: Tensor, visible: Tensor, low: float) -> Tensor:
    return t - torch.where(visible, 0.0, -low).expand(HEADS, -1, -1).contiguous()


def _table_filled(t: Tensor, visible: Tensor, low: float) -> Tensor:
    return t.clone().masked_fill(~visible, low)


def _table_chosen(t: Tensor, visible: Tensor, low: float) -> Tensor:
    return torch.where(visible, t, low).clone()


def _table_chosen_of_tensors(t: Tensor, visible: Tensor, low: float) -> Tensor:
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(~visible, low)
    return torch.where(visible, t, mask).to(torch.float64).float()


def _table_scaled(t: Tensor, visible: Tensor, low: float) -> Tensor:
    return ((t.masked_fill(~visible, low) + 3.0) * 0.25) / 0.5


TABLES = (
    _table_added,
    _table_subtracted,
    _table_filled,
    _table_chosen,
    _table_chosen_of_tensors,
    _table_scaled,
)


class Decoder(nn.Module):
    """Attention whose table of relative positions hides what follows, before any scores are there; with padding on top."""

    def __init__(self, written: Callable[[Tensor, Tensor, float], Tensor], low: float, trained: bool):
        super().__init__()
        self.written, self.low = written, low
        table = torch.randn(2 * LENGTH, HEADS, generator=torch.Generator().manual_seed(3))
        if trained:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        places = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
        bias = self.written(self.table[places + LENGTH].permute(2, 0, 1), places >= 0, self.low)
        scores = x @ x.transpose(-1, -2) + bias[None]
        return torch.softmax(scores + torch.where(kept[:, None, None, :] != 0, 0.0, -1e9), -1) @ x


@pytest.mark.parametrize("trained", (True, False), ids=("parameter", "buffer"))
@pytest.mark.parametrize("low", ("-1e4", "-1e9", "float", "-inf"))
@pytest.mark.parametrize("written", TABLES)
def test_in_a_table_of_the_owners(
    written: Callable[[Tensor, Tensor, float], Tensor], low: str, trained: bool
) -> None:
    """What the owner computes with its table is walked through as what is computed of scores is; the table itself stays secret."""
    query = {k: v[[0, 2]] for k, v in _query().items()}
    model = Decoder(written, NUMBERS[low], trained).eval()
    with secure_eval.compile(model, query, "plain", public=("kept",)) as secure:
        assert not any("table" in c.path for c in secure.program.public_constants)
        got = secure(**query)
    wanted = model.double()(query["x"].double(), query["kept"])
    assert float((got.double() - wanted).abs().max()) < BOUND


@pytest.mark.parametrize("kind", (torch.bool, torch.int32, torch.float32, torch.float16), ids=str)
def test_every_type_of_mask(kind: torch.dtype) -> None:
    for spelling, low in product((_computed, _chosen, _inverted), ("-1e4", "float")):
        assert _error(Attention(spelling, NUMBERS[low], False, ""), _query(kind)) < BOUND


@pytest.mark.parametrize("protocol", ("dealer2pc", "replicated3pc"))
@pytest.mark.parametrize(
    ("spelling", "low", "bias"),
    (
        ("added", "-1e4", ""),
        ("filled", "-inf", "secret last"),
        ("with causal", "float", "public"),
        ("minimum", "-1e9", ""),
    ),
)
def test_on_shares(spelling: str, low: str, bias: str, protocol: str) -> None:
    """Also that what is predicted is what is counted: `_error` compares them."""
    assert _error(Attention(SPELLINGS[spelling], NUMBERS[low], False, bias), _query(), protocol) < BOUND


def test_a_mask_costs_what_no_mask_costs() -> None:
    """A mask is public: whatever its spelling, none of them adds a byte or a round, bounds that nothing reaches included."""

    def cost(spelling: Spelling, low: float) -> tuple[int, float]:
        program = secure_eval.capture(Attention(spelling, low, False, "").eval(), _query(), public=("kept",))
        counted = secure_eval.count(program, protocols.get("dealer2pc")).online
        return counted.bytes, counted.rounds

    unmasked = cost(lambda s, kept, low: s, 0.0)
    assert {cost(f, -1e9) for f in SPELLINGS.values()} == {unmasked}


@pytest.mark.parametrize("kind", (torch.bool, torch.int64, torch.int32), ids=str)
@pytest.mark.parametrize("power", (1, 2))
def test_a_factor_costs_the_same_in_every_type(kind: torch.dtype, power: int) -> None:
    """Weights that are formed from scores and then multiplied by the mask, as replaced softmaxes are."""

    class Weighted(nn.Module):
        def forward(self, x: Tensor, kept: Tensor) -> Tensor:
            weights = (x @ x.transpose(-1, -2) * 0.2 + 1) ** (2**power)
            weights = weights * kept.to(weights.dtype)[:, None, None, :]
            return weights @ x

    def cost(kind: torch.dtype) -> tuple[int, float]:
        program = secure_eval.capture(Weighted().eval(), _query(kind), public=("kept",))
        counted = secure_eval.count(program, protocols.get("dealer2pc")).online
        return counted.bytes, counted.rounds

    assert cost(kind) == cost(torch.bool)


def test_a_difference_from_a_mask_is_as_whole_as_the_mask() -> None:
    """1 - (1 - mask) in floating point multiplies exactly, without fraction bits."""
    program = secure_eval.capture(
        Function(lambda x, kept: x * (1.0 - (1.0 - kept.float()))[:, None, :, None]).eval(),
        (torch.ones(4, 2, 5, 6), KEPT),
        public=("kept", "tensors_1"),
    )
    factor = next(n for n in program.nodes if n.op == "mul").args[1]
    assert isinstance(factor, Ref) and program[factor.name].integral


@pytest.mark.parametrize("low", ("-1e4", "-1e9", "float", "-inf"))
def test_logarithms_of_masked_softmaxes(low: str) -> None:
    """log_softmax and logsumexp where something is kept; what is masked is far below, as a number."""
    query = {k: v[:3] for k, v in _query().items()}

    class Both(Attention):
        def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            scores = self.scores(x, kept)
            return F.log_softmax(scores, -1), scores.logsumexp(-1)

    for spelling, bias in product((_added, _filled), ("", "public")):
        model = Both(spelling, NUMBERS[low], False, bias).eval()
        with secure_eval.compile(model, query, "plain", public=("kept",)) as secure:
            logs, total = secure(**query)
        wanted_logs, wanted_total = model(**query)
        kept = (query["kept"] != 0)[:, None, None, :].expand_as(logs)
        assert float((logs - wanted_logs)[kept].abs().max()) < 2 * BOUND
        assert float((total - wanted_total).abs().max()) < 2 * BOUND
        assert float(logs[~kept].max()) < masks.FLOOR / 2 - 1000 or low == "-1e4"
        assert float(logs[~kept].max()) < -9000


def test_masks_inside_joins_and_under_a_maximum() -> None:
    """A sink beside the scores, and the row's maximum taken off first: both as models with attention sinks write them."""

    class Sinks(Attention):
        def forward(self, x: Tensor, kept: Tensor) -> Tensor:
            scores = self.scores(x, kept)
            joined = torch.cat([scores, self.table[:1].T[None, :, None].expand(*scores.shape[:-1], 1)], -1)
            joined = joined - joined.max(dim=-1, keepdim=True).values
            return torch.softmax(joined, -1)[..., :-1] @ x

    query = {k: v[:3] for k, v in _query().items()}
    for low in ("-1e4", "-1e9", "float"):
        assert _error(Sinks(_added, NUMBERS[low], False, ""), query) < BOUND


def test_a_mask_of_the_clients_tokens() -> None:
    """Nobody else sees it: it is shared as a number that no score makes up for."""

    class Padded(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            mask = (1.0 - (ids != 0).to(x.dtype))[:, None, None, :] * torch.finfo(x.dtype).min
            filled = (x @ x.transpose(-1, -2)).masked_fill((ids == 2)[:, None, None, :], float("-inf"))
            return torch.softmax(filled + mask, -1) @ x

    x = _query()["x"][:2]
    ids = torch.tensor([[5, 4, 3, 0, 0], [0, 2, 3, 4, 5]])
    model = Padded().eval()
    with secure_eval.compile(model, {"x": x, "ids": ids}, "dealer2pc") as secure:
        assert not any("ids" in n.references() and n.level == "public" for n in secure.program.nodes)
        assert float((secure(x=x, ids=ids) - model(x, ids)).abs().max()) < BOUND
        assert secure.measurement.communication() == secure.predicted().communication()
    wide = x * 6  # scores to about 200: no mask may give way to them
    with secure_eval.compile(model, {"x": wide, "ids": ids}, "plain") as secure:
        assert float((secure(x=wide, ids=ids) - model(wide, ids)).abs().max()) < 2.0**-6


def test_a_mask_that_is_no_number_is_refused() -> None:
    """0 * -inf: torch has no number there either."""
    model = Attention(_computed, float("-inf"), False, "").eval()
    with (
        pytest.raises(ValueError, match="scores nan, allowed"),
        secure_eval.compile(model, _query(), "plain", public=("kept",)) as secure,
    ):
        secure(**_query())
