"""A protocol from outside: registered by its distribution's entry point alone, it is named, runs models, is
counted, and conforms.

Then the suite itself: mutants of that protocol, each wrong in one way that has been seen in the field, have
to fail it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import secure_eval
from secure_eval import protocols, ring
from secure_eval.protocols.base import MUL, Bilinear, Bits, Protocol, Secret
from secure_eval.testing import ProtocolConformance
from secure_eval.testing.operations import CASES


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution that a third party would install: metadata with an entry point, and its module on the
    path.
    """
    site = tmp_path_factory.mktemp("site")
    info = site / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sordino.protocols]\ntoy = toy_protocol:Toy\nbroken = toy_protocol:Missing\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.syspath_prepend(str(site))
        yield


CHEAP: dict[str, tuple[str, ...]] = {
    "function": ("gelu", "exp", "elu", "clamp", "erf"),
    "masked": ("mul", "matmul", "truncate", "polynomial", "compare few"),
    "viewed": ("mul", "matmul", "truncate", "polynomial", "compare few"),
    "step": ("mul", "matmul", "square", "truncate", "compare few", "select", "polynomial", "gelu"),
    "case": tuple(
        name for name in CASES if name not in ("layer norm", "layer norm without affine", "rms norm")
    ),
}
"""What of the suite's long tables the toy is asked for: it sends 64 bits for each comparison, so that the rest takes minutes."""


class TestToy(ProtocolConformance):
    protocol = "toy"

    def pytest_generate_tests(self, metafunc: Any) -> None:
        names = [name for name in CHEAP if name in metafunc.fixturenames]
        for name in names:
            metafunc.parametrize(name, CHEAP[name])
        if not names:
            super().pytest_generate_tests(metafunc)


def test_it_is_named_beside_the_built_in_protocols() -> None:
    assert protocols.names()[:2] == ["plain", "dealer2pc"] and "toy" in protocols.names()
    assert protocols.get("toy").__module__ == "toy_protocol"
    with pytest.raises(protocols.UnknownProtocol, match="did you mean 'toy'.*Allowed: plain, dealer2pc"):
        protocols.get("toyy")


def test_an_entry_point_that_cannot_be_loaded_says_so() -> None:
    with pytest.raises(AttributeError, match="Missing"):
        protocols.get("broken")


def test_it_is_predicted_exactly_for_a_whole_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)
    ).eval()
    x = torch.randn(3, 6)
    with secure_eval.compile(model, (x,), "toy") as secure:
        assert float((secure(x) - model(x)).detach().abs().max()) < 2.0**-8
        assert secure.measurement.communication() == secure.predicted().communication()


# -- the suite can fail ------------------------------------------------------------------------------------
# --------------------------


def suite(mutant: type[Protocol]) -> ProtocolConformance:
    return type("Suite", (ProtocolConformance,), {"protocol": "toy", "cls": mutant})()


def mutant(**methods: Any) -> type[Protocol]:
    return type("Mutant", (protocols.get("toy"),), methods)


async def truncate_locally(self: Protocol, x: Secret, bits: int) -> Secret:
    """Each party shifts its share: wrong by 2^(64-bits) where the shares wrap."""
    shifted = x.shares[0] >> bits if self.party == 0 else -(-x.shares[0] >> bits)
    return Secret([shifted], x.fraction_bits - bits)


async def truncate_two_too_high(self: Any, x: Secret, bits: int) -> Secret:
    result = await super(type(self), self).truncate(x, bits)
    return self.add_public(result, 2)


async def sign_of_the_upper_half(self: Any, x: Secret) -> Bits:
    """Ignores the lower bits of the value: wrong next to zero."""
    return await super(type(self), self).msb(self.add_public(x, 1 << 20))


async def product_of_small_masks(self: Any, op: Bilinear, x: Secret, y: Secret) -> Secret:
    """Masks from 40 bits, in shares that are uniform: no single message shows it, what is opened does."""
    result = await super(type(self), self).bilinear(op, x, y)
    small = (
        torch.randint(0, 1 << 20, x.shape)
        if x.shares[0].device.type != "meta"
        else torch.empty(x.shape, dtype=ring.DTYPE, device="meta")
    )
    await self._open(x.shares[0] + small)
    return result


async def product_of_what_is_opened(self: Any, op: Bilinear, x: Secret, y: Secret) -> Secret:
    a, b = await self._open(x.shares[0], y.shares[0])
    return self.public(op(a, b), x.fraction_bits + y.fraction_bits)


def dealt_once(self: Any, correlation: Any) -> Any:
    """All correlations of one description are the first one: each product is right, two together give away a difference."""
    dealt = self.__dict__.setdefault("dealt", {})
    if correlation not in dealt:
        dealt[correlation] = self.source.next(correlation)[1]
    return dealt[correlation]


async def unconditional_bit(self: Any, b: Bits) -> Secret:
    return self.public(torch.ones(b.shape, dtype=ring.DTYPE, device=b.shares[0].device), 0)


MUTANTS: dict[str, tuple[dict[str, Callable[..., Any]], str, tuple[Any, ...]]] = {
    "local truncation": ({"truncate": truncate_locally}, "test_truncate_is_off_by_less_than_a_unit", ()),
    "truncation two units off": (
        {"truncate": truncate_two_too_high},
        "test_truncate_is_off_by_less_than_a_unit",
        (),
    ),
    "coarse sign": ({"msb": sign_of_the_upper_half}, "test_msb_is_exact", ()),
    "coarse comparison": ({"msb": sign_of_the_upper_half}, "test_less_than_is_exact_around_thresholds", ()),
    "small masks": (
        {"bilinear": product_of_small_masks},
        "test_what_parties_see_does_not_depend_on_secrets",
        ("mul",),
    ),
    "operands in the clear": (
        {"bilinear": product_of_what_is_opened},
        "test_what_parties_see_does_not_depend_on_secrets",
        ("mul",),
    ),
    "one mask for two products": (
        {"_deal": dealt_once},
        "test_each_mask_covers_one_opening_and_each_opening_has_a_mask",
        ("mul",),
    ),
    "one mask for two products, seen in what is opened": (
        {"_deal": dealt_once},
        "test_nothing_that_a_party_knows_unmasks_what_it_receives",
        ("mul",),
    ),
    "operands in the clear, seen with one's own share": (
        {"bilinear": product_of_what_is_opened},
        "test_nothing_that_a_party_knows_unmasks_what_it_receives",
        ("mul",),
    ),
    "wrong bits": ({"bits_to_ring": unconditional_bit}, "test_bits_to_ring_is_exact", ()),
    "a way to reveal": ({"reveal": lambda self, x: x}, "test_has_no_way_to_reveal", ()),
    "one party holds all": (
        {"parts_of": classmethod(lambda cls, party: (0, 1))},
        "test_parts_cover_the_secret_and_no_party_has_all",
        (),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_notices(name: str) -> None:
    methods, test, arguments = MUTANTS[name]
    getattr(suite(protocols.get("toy")), test)(*arguments)
    with pytest.raises(AssertionError):
        getattr(suite(mutant(**methods)), test)(*arguments)


def test_the_suite_notices_counts_that_depend_on_values() -> None:
    """A protocol that sends less on meta tensors than in a run."""

    async def chatty(self: Any, op: Bilinear, x: Secret, y: Secret) -> Secret:
        if x.shares[0].device.type != "meta":
            await self._open(torch.zeros(3, dtype=ring.DTYPE))
        return await super(type(self), self).bilinear(op, x, y)

    with pytest.raises(AssertionError, match="predicted bytes and rounds"):
        suite(mutant(bilinear=chatty)).test_bilinear_is_exact_modulo_the_ring("mul")


def test_protocol_code_cannot_look_at_values() -> None:
    """A step that reads a share's value fails in the counting run, before anything is sent."""

    async def looks(self: Any, op: Bilinear, x: Secret, y: Secret) -> Secret:
        if x.shares[0].sum().item() == 0:
            return x
        return await super(type(self), self).bilinear(op, x, y)

    with pytest.raises(RuntimeError, match="meta"):
        suite(mutant(bilinear=looks)).run(lambda p, x: p.bilinear(MUL, x, x), torch.arange(3))


def test_cases_have_inputs_of_their_shapes() -> None:
    for case in CASES.values():
        assert [tuple(x.shape) for x in case.inputs()][: len(case.shapes)] == list(case.shapes)
