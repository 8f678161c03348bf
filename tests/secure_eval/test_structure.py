"""Operations that rearrange, select, join and slide over values, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import UnsupportedOperations, capture
from secure_eval.testing.operations import Function

_GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR)


X = normal(2, 4, 6, 6)
ROWS = normal(3, 5)
SIGNAL = normal(2, 4, 11)
INDEX = torch.tensor([[0, 2], [1, 0]])

Functions = dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]


def weight(*shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return {"w": torch.randn(shape, generator=generator) / 3, "b": torch.randn(shape[0], generator=generator)}


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 0.5
    y[:, 1:3] += x[:, :2]
    y[..., ::2] = x[..., 1::2]
    z = torch.zeros_like(y)
    z[:, -1] = y[:, -1]
    return y + z


def shifted_right(x: Tensor) -> Tensor:
    """As sequence-to-sequence models do with their decoder's input."""
    y = x.new_zeros(x.shape)
    y[:, 1:] = x[:, :-1].clone()
    y[:, 0] = 2.0
    return y.masked_fill_(torch.arange(y.shape[-1]) > 3, -1.0)


def put(x: Tensor) -> Tensor:
    y = x.clone()
    y[torch.tensor([0, 2]), torch.tensor([1, 4])] = 7.0
    y[1] = x[0]
    y[torch.arange(5) > 3] if y.shape[0] == 5 else y
    return y


REARRANGED: Functions = {
    "assignments through views": (assigned, (X,)),
    "shifted right": (shifted_right, (ROWS,)),
    "assignment at public positions": (put, (ROWS,)),
    "assignment by a public mask": (
        lambda x: x.clone().index_put_((torch.arange(3) > 1,), torch.tensor(2.0)),
        (ROWS,),
    ),
    "scatter": (lambda x: x.scatter(1, torch.tensor([[0, 2], [1, 3]]), x[:, 3:] * 2), (ROWS,)),
    "scatter of a number": (lambda x: x.scatter(1, torch.tensor([[0], [4], [2]]), 1.5), (ROWS,)),
    "constant pad": (lambda x: F.pad(x, (1, 2, 0, 1)), (X,)),
    "constant pad with a number": (lambda x: F.pad(x, (1, -1), value=-3.0), (X,)),
    "reflect pad": (lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"), (X,)),
    "replicate pad": (lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"), (X,)),
    "circular pad": (lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"), (X,)),
    "view of what is not contiguous": (lambda x: (x.mT.contiguous() * 2).view(2, -1), (X,)),
    "narrow": (lambda x: x.narrow(1, 1, 2), (X,)),
    "unbind": (lambda x: x.unbind(1)[2] * x.unbind(0)[1][0], (X,)),
    "tile": (lambda x: x.tile(2, 1, 3), (SIGNAL,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, dim=1), (X,)),
    "expand_as": (lambda x: x[:, :1].expand_as(x) + x, (X,)),
    "reshape_as, view_as, type_as": (lambda x: x.mT.reshape_as(x).view_as(x).type_as(x), (X,)),
    "tril and triu": (lambda x: x.tril(-1) + 2 * x.triu(1), (X,)),
    "roll and flip": (lambda x: x.roll((1, -2), (2, 3)).flip(-1), (X,)),
    "diagonal": (lambda x: x.diagonal(0, -2, -1), (X,)),
    "diag_embed": (lambda x: x.diag_embed(), (ROWS,)),
    "unfold": (lambda x: x.unfold(2, 3, 2), (SIGNAL,)),
    "im2col": (lambda x: F.unfold(x, 3, padding=1, stride=2), (X,)),
    "col2im": (lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2), (X,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (X,)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 3), (X,)),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), (X,)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (X,)),
    "nearest to a size": (lambda x: F.interpolate(x, size=(9, 4), mode="nearest"), (X,)),
    "nearest in one dimension": (lambda x: F.interpolate(x, scale_factor=2.0), (SIGNAL,)),
    "bilinear": (lambda x: F.interpolate(x, size=(9, 4), mode="bilinear"), (X,)),
    "bilinear at corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        (X,),
    ),
    "bicubic": (lambda x: F.interpolate(x, size=(9, 9), mode="bicubic"), (X,)),
    "tensor_split": (lambda x: torch.cat(x.tensor_split(3, -1)[::-1], -1), (SIGNAL,)),
    "full_like and others": (
        lambda x: x + torch.full_like(x, 0.3) + torch.ones_like(x) + x.new_full((6,), 2.5) - x.new_ones(6),
        (X,),
    ),
    "one element": (lambda x: torch.where(torch.arange(6) > 2, x, torch.full((), 4.0)), (X,)),
    "masked_fill with a tensor": (lambda x: x.masked_fill(torch.arange(6) > 2, torch.tensor(-2.0)), (X,)),
    "dropout": (lambda x: F.dropout(x, 0.5, False) + F.dropout2d(x, 0.5, False), (X,)),
    "meshgrid": (lambda x: torch.meshgrid(x[0], x[1], indexing="ij")[1], (ROWS,)),
    "cat with an empty vector": (lambda x: torch.cat([torch.tensor([]), x.flatten()]), (ROWS,)),
    "rotary": (
        lambda x: (
            x * torch.linspace(0, 1, 6).cos()
            + torch.cat([-x[..., 3:], x[..., :3]], -1) * torch.linspace(0, 1, 6).sin()
        ),
        (X,),
    ),
    "repeated keys": (lambda x: x[:, :, None].expand(2, 4, 3, 6, 6).reshape(2, 12, 6, 6), (X,)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
}

READ: Functions = {
    "two index tensors": (lambda x: x[torch.arange(2), torch.tensor([3, 0])], (X,)),
    "slices between": (lambda x: x[torch.tensor([1, 0]), :, torch.tensor([3, 0])], (X,)),
    "an index after a slice": (lambda x: x[:, torch.tensor([[0, 3], [1, 1]])], (X,)),
    "index_select": (lambda x: x.index_select(-1, torch.tensor([5, 0, 0])), (X,)),
    "gather": (lambda x: x.gather(1, INDEX), (ROWS,)),
    "take_along_dim": (lambda x: x.take_along_dim(torch.tensor([[0], [4], [2]]), 1), (ROWS,)),
    "secret rows": (lambda x: x[(x[:, 0] > 0).long() + (x[:, 1] > 0).long()], (ROWS,)),
    "secret elements": (lambda x: x.gather(1, (x[:, :2] > 0).long() * 3), (ROWS,)),
    "secret rows of fewer": (lambda x: x.gather(0, (x[:2, :3] > 0).long()), (ROWS,)),
    "secret and public": (lambda x: x[torch.arange(3), (x[:, 0] > 0).long() * 2], (ROWS,)),
    "secret and public behind a slice": (
        lambda x: x[:, torch.arange(4), (x[0, :, 0, 0] > 0).long() * 5],
        (X,),
    ),
    "two secret ones": (lambda x: x[(x[0] > 0).long() * 2, (x[1] > 0).long() * 4], (ROWS,)),
    "one secret index of one row": (lambda x: x[:1][(x[0] > 9).long()], (ROWS,)),
}

PRODUCTS: Functions = {
    "einsum": (lambda x: torch.einsum("bchw,bkhw->bck", x, x * 2), (X,)),
    "einsum of three": (lambda x, y: torch.einsum("ij,kj,k->ik", x, y, x[:, 0]), (ROWS, ROWS.flip(0))),
    "einsum of a diagonal": (lambda x: torch.einsum("bcii->bc", x), (X,)),
    "tensordot": (lambda x: torch.tensordot(x, x, dims=([1], [1])), (ROWS,)),
    "outer": (lambda x: torch.outer(x[0], x[1]), (ROWS,)),
    "addmm": (lambda x: torch.addmm(x[:, :3], x, x.T.contiguous(), alpha=2, beta=-0.5), (ROWS,)),
    "baddbmm": (lambda x: torch.baddbmm(x[0], x[0], x[0].mT, alpha=0.25, beta=3), (X,)),
    "addcmul": (lambda x: torch.addcmul(x, x, x[:1], value=0.5), (ROWS,)),
    "lerp": (lambda x: torch.lerp(x, x[:1], 0.25), (ROWS,)),
    "aliases": (lambda x: torch.multiply(torch.subtract(x, 1), 2), (ROWS,)),
}

WINDOWS: Functions = {
    "patches": (lambda x, w, b: F.conv2d(x, w, b, stride=3), (X,)),
    "1x1": (lambda x, w, b: F.conv2d(x, w[:, :, :1, :1], b), (X,)),
    "stride beyond the kernel": (lambda x, w, b: F.conv2d(x, w[:, :, :1, :1], b, stride=2), (X,)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b), (X,)),
    "padded and strided": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=(1, 2)), (X,)),
    "same": (lambda x, w, b: F.conv2d(x, w[..., :2], b, padding="same"), (X,)),
    "dilated": (lambda x, w, b: F.conv2d(x, w, None, dilation=2), (X,)),
    "groups": (lambda x, w, b: F.conv2d(x, w[:, :2], b, padding=1, groups=2), (X,)),
    "depthwise": (lambda x, w, b: F.conv2d(x, w[:4, :1], b[:4], padding=1, groups=4), (X,)),
    "no batch": (lambda x, w, b: F.conv2d(x[0], w, b), (X,)),
    "transposed": (
        lambda x, w, b: F.conv_transpose2d(x, w[:4, :3], b[:3], stride=2, padding=1, output_padding=1),
        (X,),
    ),
    "transposed in groups": (
        lambda x, w, b: F.conv_transpose2d(x, w[:4, :3], None, stride=3, groups=2),
        (X,),
    ),
    "conv1d": (lambda x, w, b: F.conv1d(x, w[..., 0], b, padding=1), (SIGNAL,)),
    "conv1d same, dilated": (
        lambda x, w, b: F.conv1d(x, w[..., 0], b, padding="same", dilation=2),
        (SIGNAL,),
    ),
    "avg_pool1d": (lambda x, w, b: F.avg_pool1d(x, 3, 2, 1), (SIGNAL,)),
    "avg_pool2d": (lambda x, w, b: F.avg_pool2d(x, 2), (X,)),
    "avg_pool2d, border not counted": (
        lambda x, w, b: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        (X,),
    ),
    "avg_pool2d, ceil": (lambda x, w, b: F.avg_pool2d(x, (4, 3), 4, 1, ceil_mode=True), (X,)),
    "avg_pool2d, one large window": (
        lambda x, w, b: F.avg_pool2d(x, (3000, 5), 3000, (0, 2), ceil_mode=True),
        (X,),
    ),
    "avg_pool2d, one window less than all": (lambda x, w, b: F.avg_pool2d(x, 5, 7, 1), (X,)),
    "avg_pool2d without batch": (lambda x, w, b: F.avg_pool2d(x[0], 2), (X,)),
    "adaptive_avg_pool1d": (lambda x, w, b: F.adaptive_avg_pool1d(x, 1), (SIGNAL,)),
    "adaptive_avg_pool2d": (lambda x, w, b: F.adaptive_avg_pool2d(x, (3, 1)), (X,)),
    "adaptive_avg_pool2d, not dividing": (lambda x, w, b: F.adaptive_avg_pool2d(x, (4, 5)), (X,)),
    "max_pool1d": (lambda x, w, b: F.max_pool1d(x, 3, 2, 1), (SIGNAL,)),
    "max_pool2d": (lambda x, w, b: F.max_pool2d(x - 5, 3, 2, 1), (X,)),
    "max_pool2d, dilated, ceil": (lambda x, w, b: F.max_pool2d(x, 2, 2, 1, dilation=3, ceil_mode=True), (X,)),
}

ATTENTION: Functions = {
    "causal": (lambda x: F.scaled_dot_product_attention(x, x * 2, x, is_causal=True), (X,)),
    "causal, more keys": (
        lambda x: F.scaled_dot_product_attention(x[:, :, :3], x, x, is_causal=True, scale=0.3),
        (X,),
    ),
    "grouped": (lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True), (X,)),
    "scale of one": (lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0), (X,)),
    "float mask": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.arange(6).float().neg().expand(2, 1, 6, 6)),
        (X,),
    ),
    "filled where true": (
        lambda x: torch.where(torch.arange(6) > 3, torch.finfo(torch.float32).min, x).softmax(-1),
        (X,),
    ),
    "filled with a tensor": (
        lambda x: x.masked_fill(torch.arange(6) > 3, torch.tensor(float("-inf"))).softmax(-1),
        (X,),
    ),
}

ALL = {**REARRANGED, **READ, **PRODUCTS, **WINDOWS, **ATTENTION}


def model(name: str) -> nn.Module:
    return Function(ALL[name][0], **(weight(6, 4, 3, 3) if name in WINDOWS else {})).eval()


@pytest.mark.parametrize("name", ALL)
def test_means_what_torch_means(name: str) -> None:
    """In plain fixed point: what is checked here is the lowering."""
    module, inputs = model(name), ALL[name][1]
    wanted = module(*inputs)
    with secure_eval.compile(module, inputs, "plain") as secure:
        got = secure(*inputs)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert float(((got - wanted).abs() / wanted.abs().clamp(min=1)).max()) < 2.0**-9


@pytest.mark.parametrize(
    "name",
    [
        "assignments through views",
        "secret and public",
        "padded and strided",
        "groups",
        "transposed",
        "max_pool2d",
    ],
)
def test_in_two_parties_at_the_predicted_cost(name: str) -> None:
    module, inputs = model(name), ALL[name][1]
    with secure_eval.compile(module, inputs, "dealer2pc") as secure:
        assert float((secure(*inputs) - module(*inputs)).abs().max()) < 2.0**-8
        assert secure.measurement.communication() == secure.predicted().communication()


@pytest.mark.parametrize("name", REARRANGED)
def test_rearranging_sends_nothing(name: str) -> None:
    """But for the truncation of products with public numbers."""
    count = secure_eval.count(capture(model(name), ALL[name][1]), secure_eval.protocols.get("dealer2pc"))
    arithmetic = {"mul", "matmul", "where", "add", "sub", "cat"}
    assert {o for o, c in count.operations.items() if c.bytes} <= arithmetic | {"output"}


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "part of a composite": (lambda x: torch.special.expit(torch.special.entr(x)), "aten.special_entr"),
    "dropout that is on": (lambda x: F.dropout(x, 0.5, True), "is switched on"),
    "accumulating": (
        lambda x: x.index_put((torch.tensor([0, 0]),), x[:2], accumulate=True),
        "that accumulates",
    ),
    "secret destination": (lambda x: x.index_put(((x[:, 0] > 0).long(),), x), "depends on private"),
    "secret destination of some rows": (
        lambda x: x.scatter(0, (x[:1, :1] > 0).long(), x[:1, :1]),
        "a private index for a part",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    function, said = REFUSED[name]
    with pytest.raises(UnsupportedOperations, match=said):
        capture(Function(function).eval(), (ROWS,))


def test_a_composite_names_itself_and_its_missing_part() -> None:
    """kl_div is made of others, of which xlogy has no rule."""
    with pytest.raises(UnsupportedOperations) as info:
        capture(Function(lambda x: F.kl_div(x, x, reduction="sum")).eval(), (ROWS,))
    assert "aten.kl_div" in str(info.value) and "is made of aten.xlogy" in str(info.value)


class Last(nn.Module):
    """The last token that is no padding, as classifiers of decoders pick it: only the client knows which."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.table, self.behind = nn.Embedding(9, 4), behind

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        last = (torch.arange(input_ids.shape[1]) * (input_ids != 0).int()).argmax(-1)
        if self.behind:
            return x[torch.arange(input_ids.shape[0]), last - input_ids.shape[1]]
        return x.gather(1, last[:, None, None].expand(-1, 1, 4)).squeeze(1)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("embedding", ["client", "onehot"])
def test_positions_that_the_client_knows(behind: bool, embedding: str) -> None:
    torch.manual_seed(0)
    module = Last(behind).eval()
    ids = torch.tensor([[3, 4, 0, 0], [1, 2, 3, 8], [5, 0, 0, 0]])
    program = capture(module, {"input_ids": ids}, embedding=embedding)
    with secure_eval.compile(program) as secure:
        for query in (ids, ids.flip(0)):
            assert float((secure(input_ids=query) - module(query)).detach().abs().max()) < 2.0**-12
        assert secure.measurement.communication() == secure.predicted().communication()


def test_a_convolution_opens_its_input_once() -> None:
    """Not each of its windows, which hold an element nine times; and its weight at set-up."""
    module = nn.Conv2d(4, 6, 3, padding=1).eval()
    count = secure_eval.count(capture(module, (X,)), secure_eval.protocols.get("dealer2pc"))
    assert count.operations["conv"].bytes == 8 * X.numel() and count.operations["conv"].rounds == 1


class Cached(nn.Module):
    class Config:
        use_cache = True

    def __init__(self) -> None:
        super().__init__()
        self.config = Cached.Config()

    def forward(self, x: Tensor) -> Any:
        return (x * 2, object()) if self.config.use_cache else x * 2


def test_no_cache_is_captured_and_the_model_stays_as_it_was() -> None:
    module = Cached().eval()
    program = capture(module, (ROWS,))
    assert len(program.outputs) == 1 and module.config.use_cache


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_goes_into_its_convolution(groups: int, kernel: int, bias: bool) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(4, 8, kernel, padding=kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
    ).eval()
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    program = capture(module, (X,))
    operations = [n.op for n in program.nodes if n.level == "secret"]
    assert not {"mul", "add"} & set(operations)
    assert operations.count("conv") + operations.count("linear") == 1
    with secure_eval.compile(program, protocol="dealer2pc") as secure:
        assert float((secure(X) - module(X)).abs().max()) < 2.0**-8
        assert secure.measurement.communication() == secure.predicted().communication()


def test_a_convolution_of_two_uses_keeps_its_batch_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    module = Twice().eval()
    nn.init.uniform_(module.norm.weight, 0.5, 2)
    with secure_eval.compile(module, (X,), "plain") as secure:
        assert any(n.op == "mul" for n in secure.program.nodes)
        assert float((secure(X) - module(X)).abs().max()) < 2.0**-8
