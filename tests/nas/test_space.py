"""The space says at once what is wrong with it, and knows the named baselines."""

from __future__ import annotations

from typing import Any

import pytest

import distill
import nas


@pytest.mark.parametrize(
    ("kinds", "sites", "said"),
    [
        ({"softmx": ["exact"]}, {}, ["softmx", "did you mean 'softmax'"]),
        ({"softmax": ["exact", "2qaud"]}, {}, ["2qaud", "did you mean '2quad'", "power4"]),
        ({"softmax": "exact"}, {}, ["softmax", "a list"]),
        ({"softmax": []}, {}, ["softmax", "one or more"]),
        ({"softmax": ["2quad", "2quad"]}, {}, ["twice"]),
        ({}, {}, ["known kinds", "softmax"]),
        ({"softmax": ["exact"]}, {"*.layer.9.*": ["exact"]}, ["*.layer.9.*", "matches no site"]),
        ({"softmax": ["exact"]}, {"*.softmax": ["quad"]}, ["*.softmax", "unknown variant 'quad'"]),
    ],
)
def test_what_is_wrong_is_said(teacher: Any, kinds: Any, sites: Any, said: list[str]) -> None:
    with pytest.raises(nas.SearchSpaceError) as raised:
        nas.SearchSpace(kinds, sites).options(distill.find_sites(teacher))
    assert all(part in str(raised.value) for part in said), raised.value


def test_single_sites_can_be_restricted(teacher: Any) -> None:
    sites = distill.find_sites(teacher)
    space = nas.SearchSpace(
        {"softmax": ["exact", "2quad"]}, {"*.layer.0.*": ["exact"], "*.layer.2.*.softmax": ["2relu"]}
    )
    options = space.options(sites)
    by_kind = {(s.layer, s.kind): options[s.name] for s in sites}
    assert by_kind[0, "softmax"] == ("exact",)
    assert by_kind[1, "softmax"] == ("exact", "2quad")
    assert by_kind[2, "softmax"] == ("2relu",)
    assert by_kind[1, "activation"] == ("exact",), "kinds that are not named stay exact"
    assert space.size(sites) == 2


def test_named_baselines(teacher: Any, space: nas.SearchSpace) -> None:
    sites = distill.find_sites(teacher)
    prices = {"exact": 5.0, "2quad": 1.0, "power4": 2.0, "quad": 0.5, "quad_channel": 0.5}
    found = space.baselines(sites, lambda site, variant: prices[variant])
    assert list(found) == ["teacher", "mpcformer", "all_cheapest"]
    assert found["teacher"] == distill.Architecture({})
    recipe = {"softmax": "2quad", "activation": "quad"}
    assert found["mpcformer"] == distill.Architecture.uniform(teacher, recipe)
    assert found["all_cheapest"] == found["mpcformer"], "the first of equal prices"
    assert space.contains(found["mpcformer"], sites)
    narrower = nas.SearchSpace({"softmax": ["exact"]})
    assert not narrower.contains(found["mpcformer"], sites)
    assert "mpcformer" in narrower.baselines(sites), "a reference, whether or not it may be chosen"
