"""Estimates of other systems against published and measured figures, and what an estimate says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secure_eval
from cost_models import peers
from cost_models.peers import cheetah, crypten, figure, models, sigma, sigma_steps
from cost_models.workload import Work

ROOT = Path(__file__).parents[2]
MEASURED = sorted((ROOT / "results" / "benchmarks").glob("peers-*.json"))

RUNS: dict[str, Callable[[], Sequence[Work]]] = {
    "matmul-768": figure.linear(128, 768, 768),
    "matmul-3072": figure.linear(128, 768, 3072),
    "relu": figure.activation("relu", 128 * 3072),
    "gelu": figure.activation("gelu", 128 * 3072),
    "softmax": figure.rows("softmax", 12 * 128, 128),
    "layer-norm": figure.rows("layer_norm", 128, 768, True),
    "bert-layer-exact": figure.layer("bert-base"),
    "bert-layer-quad": figure.layer("bert-base quad"),
    "bert-12-layers-exact": figure.layers("bert-base"),
    "bert-12-layers-quad": figure.layers("bert-base quad"),
}
"""Names of the workloads in results/benchmarks -> the same as works."""


@pytest.fixture(scope="module")
def deviations() -> list[peers.Deviation]:
    return peers.deviations()


@pytest.mark.parametrize("name", [n for n in peers.names() if n not in ("crypten-stock", "delphi-quadratic")])
def test_every_figure_is_met_or_its_deviation_stated(name: str, deviations: list[peers.Deviation]) -> None:
    found = [d for d in deviations if d.figure.system.name == name]
    assert found
    print(figure.table(found))
    for d in found:
        assert d.accepted, f"{d.figure.what}: {d.estimated:,.0f}, published {d.figure.value:,.0f}"
        assert d.figure.source
        assert not d.figure.within or d.figure.why, d.figure.what


@pytest.mark.parametrize(("system", "recorded"), [("crypten", "crypten"), ("spu-semi2k", "spu-semi2k")])
def test_runs_on_record_are_met_to_the_byte(system: str, recorded: str) -> None:
    compared = 0
    for path in MEASURED:
        for workload, result in json.loads(path.read_text())["workloads"].items():
            online = result["systems"].get(recorded, {}).get("online")
            if online is None or workload not in RUNS:
                continue
            estimate = peers.get(system).estimate(RUNS[workload]())
            assert estimate.online_bytes == online["bytes"], workload
            assert estimate.rounds == online.get("rounds", online.get("messages")), workload
            compared += 1
    assert compared >= 5


def test_documentation_has_the_same_table(deviations: list[peers.Deviation]) -> None:
    assert figure.table(deviations) in (ROOT / "docs" / "comparison_systems.md").read_text()


@pytest.mark.parametrize("name", peers.names())
def test_an_estimate_says_what_it_is(name: str) -> None:
    estimate = peers.estimate(models.one_layer("bert-tiny"), name)
    assert "estimate" in estimate.notice.lower()
    assert estimate.source
    assert estimate.notes
    assert estimate.system == name
    assert estimate.parties in (2, 3)
    assert json.loads(json.dumps(estimate.to_dict()))["online_bytes"] == estimate.online_bytes
    assert (estimate.compute_s is None) == (not estimate.compute_hardware)


@pytest.mark.parametrize("name", peers.names())
def test_nothing_costs_nothing_and_twice_costs_more(name: str) -> None:
    assert peers.estimate((), name).online_bytes == 0
    works = (Work("linear", "", 768, 768, 768 * 768, 1, 1, 768, 768, weight=True), Work("relu", "", 768))
    once, twice = peers.estimate(works, name), peers.estimate(works * 2, name)
    assert 0 < once.online_bytes <= twice.online_bytes


def test_programs_are_read() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU()).eval()
    program = secure_eval.capture(model, (torch.zeros(5, 6),), passes=())
    estimate = peers.estimate(program, "crypten")
    assert estimate.online_bytes == crypten.FORMULAS["linear"](_linear(5, 6, 12)).online + 60 * 232
    assert estimate.rounds == 10


def test_what_has_no_formula_is_listed() -> None:
    layer = models.one_layer("bert-tiny")
    missing = {n.kind: n for n in peers.estimate(layer, "delphi").not_priced}
    assert set(missing) == {"matmul", "softmax", "gelu", "layer_norm"}
    assert missing["layer_norm"].count == 2
    assert "encoder.layer.0" in missing["softmax"].site
    assert "gelu" not in {n.kind for n in peers.estimate(layer, "delphi-quadratic").not_priced}
    unknown = Work("sorted_somehow", "head", 10)
    for name in peers.names():
        if name != "nexus":  # computes without messages, so that everything is priced
            (listed,) = peers.estimate((unknown,), name).not_priced
            assert (listed.kind, listed.elements) == ("sorted_somehow", 10)
            assert "10 elements" in str(listed)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crypte", {}, "did you mean 'crypten'"),
        ("spu-cheeta", {}, "did you mean 'spu-cheetah'"),
        ("sigma", {"bit": 50}, "sigma has no option 'bit'; allowed: bits"),
        ("crypten", {"bits": 50}, "crypten has no option 'bits'; allowed: none"),
        ("sigma", {"bits": 64}, "allowed: 33 to 63"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peers.get(name, **options)


def test_sigmas_ring_is_an_option() -> None:
    layer = models.one_layer("bert-tiny")
    narrow, wide = (peers.estimate(layer, "sigma", bits=b) for b in (37, 50))
    assert narrow.online_bytes < wide.online_bytes
    assert narrow.key_storage_bytes < wide.key_storage_bytes
    assert "37 bits" in narrow.variant


def test_keys_of_comparisons() -> None:
    """A distributed comparison function: a block for each level but the last seven, which are a table."""
    assert sigma_steps.dcf(7, 1).keys == 8 + 16
    assert sigma_steps.dcf(12, 1).keys == 24 + 16 * (12 - 7 + 2) + 4 * (12 - 7)
    assert sigma.SYSTEM.estimate((Work("relu", "", 1000),)).rounds == 2


def test_the_taylor_gelu_of_the_release_is_another_variant() -> None:
    gelu = (Work("gelu", "", 1000),)
    repaired, stock = (peers.estimate(gelu, n) for n in ("crypten", "crypten-stock"))
    assert repaired.online_bytes != stock.online_bytes
    assert "erf" in stock.variant


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((128, 64, 128), (1, 2)), ((128, 768, 768), (12, 12)), ((128, 768, 3072), (12, 48)), ((1, 768, 768), (3, 1))],
)  # fmt: skip
def test_ciphertexts_of_products(shape: tuple[int, int, int], expected: tuple[int, int]) -> None:
    """As many as messages were counted on the running system."""
    assert cheetah.blocks(*shape) == expected


def test_masked_scores_cost_sigma_less() -> None:
    full = Work("softmax", "", 64 * 64, rows=64, columns=64, kept=64 * 64)
    causal = Work("softmax", "", 64 * 64, rows=64, columns=64, kept=64 * 65 // 2)
    found = [sigma.SYSTEM.estimate((w,)).online_bytes for w in (full, causal)]
    assert found[1] < found[0]


def _linear(m: int, k: int, n: int) -> Work:
    return figure.linear(m, k, n)()[0]
