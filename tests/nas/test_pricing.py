"""The price table against the cost model's own predictions."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import cost_models
import distill
import nas
from nas import pricing


def test_uniform_architectures_cost_what_the_whole_does(tmp_path: Path) -> None:
    """The one test that runs the cost model: one layer, so that each of the four predictions is short."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
            max_position_embeddings=8,
        )
    ).eval()
    inputs = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
    space = nas.SearchSpace({"softmax": ["2quad"], "activation": ["quad"]})
    table = nas.build_cost_table(model, None, space, inputs, run_dir=tmp_path)
    architecture = distill.Architecture.uniform(model, {"softmax": "2quad", "activation": "quad"})
    whole = cost_models.predict(distill.apply(model, architecture), inputs, protocol="dealer2pc")
    priced = table.price(architecture)
    for phase in ("setup", "offline", "online"):
        for name in ("bytes", "rounds", "macs"):
            expected = getattr(getattr(whole, phase), name)
            assert getattr(getattr(priced, phase), name) == pytest.approx(expected), (phase, name)
    for network in ("lan", "wan"):
        seconds = cost_models.seconds(whole, network=network, device="cpu").total
        assert table.seconds(architecture, network) == pytest.approx(seconds)


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
        max_position_embeddings=8,
    )
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("protocol", ["dealer2pc"])
def test_any_architecture_costs_what_the_assembled_student_does(
    small: Any, protocol: str, tmp_path: Path
) -> None:
    """Mixtures in which two groups change: the busiest role's work is that of the sum, not the sum of the busiest's."""
    inputs = {"input_ids": torch.randint(0, 20, (1, 6)), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    calibration = distill.calibrate(small, [inputs])
    allowed = {"softmax": ["exact", "power8", "2relu"], "activation": ["exact", "quad_channel"]}
    space = nas.SearchSpace(allowed)
    table = nas.build_cost_table(small, calibration, space, inputs, protocol=protocol, run_dir=tmp_path)
    again = nas.CostTable.from_dict(json.loads(nas.table_path(tmp_path).read_text()))
    chosen = random.Random(1)
    sites = distill.find_sites(small)
    for _ in range(4):
        picked = {site.name: chosen.choice(allowed[site.kind]) for site in sites}
        architecture = distill.Architecture(picked)
        whole = cost_models.predict(
            distill.apply(small, architecture, calibration), inputs, protocol=protocol
        )
        for priced in (table.price(architecture), again.price(architecture)):
            assert set(priced.roles["online"]) == set(whole.roles["online"])
            for phase in ("setup", "offline", "online"):
                for name in ("bytes", "rounds"):
                    assert getattr(getattr(priced, phase), name) == getattr(getattr(whole, phase), name)
        for network in ("lan", "wan", "loopback"):
            seconds = cost_models.seconds(whole, network=network, device="cpu").total
            assert table.seconds(architecture, network) == pytest.approx(seconds, rel=1e-9)


def test_a_mixture_is_the_sum_of_its_sites(teacher: Any, table: nas.CostTable) -> None:
    sites = distill.find_sites(teacher)
    softmax = [site.name for site in sites if site.kind == "softmax"]
    mixed = distill.Architecture({softmax[0]: "2quad", softmax[2]: "power4"})
    total = table.seconds(distill.Architecture({}), "wan")
    total += table.site_seconds(softmax[0], "2quad", "wan") + table.site_seconds(softmax[2], "power4", "wan")
    assert table.seconds(mixed, "wan") == pytest.approx(total)
    assert table.seconds(mixed, "wan") == pytest.approx(
        cost_models.seconds(table.price(mixed), network="wan", device="cpu").total, rel=1e-12
    ), "seconds are those of the summed cost"
    assert table.site_seconds(softmax[0], "exact") == 0.0
    assert table.site_seconds(softmax[0], "2quad", "wan") < 0, "2quad saves against softmax"


def test_pricing_is_quick(teacher: Any, table: nas.CostTable) -> None:
    architecture = distill.Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"})
    other = distill.Architecture.uniform(teacher, {"softmax": "2quad"})
    started = time.process_time()
    for _ in range(20):
        for each in (architecture, other):
            table.price(each)
            table.seconds(each, "wan")
    assert (time.process_time() - started) / 40 < 0.005


def test_what_has_no_price_is_said(teacher: Any, table: nas.CostTable) -> None:
    site = distill.find_sites(teacher)[0].name
    with pytest.raises(nas.SearchSpaceError, match="2relu.*has no price"):
        table.price(distill.Architecture({site: "2relu"}))
    with pytest.raises(nas.SearchSpaceError, match="unknown site.*did you mean"):
        table.price(distill.Architecture({site + "x": "2quad"}))


def test_the_file_is_used_again_and_goes_on(
    teacher: Any,
    calibration: Any,
    space: nas.SearchSpace,
    example_inputs: Any,
    table: nas.CostTable,
    made_up_prices: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.pricing.cost_models", made_up_prices)
    predicted: list[str] = []
    original = pricing.predict_whole

    def counting(model: Any, architecture: Any, *rest: Any) -> Any:
        predicted.append(architecture.key())
        return original(model, architecture, *rest)

    monkeypatch.setattr(pricing, "predict_whole", counting)

    def build(**changes: Any) -> nas.CostTable:
        predicted.clear()
        given = {"protocol": "dealer2pc", "example_inputs": example_inputs, **changes}
        inputs = given.pop("example_inputs")
        return nas.build_cost_table(teacher, calibration, space, inputs, run_dir=tmp_path, **given)

    # As if killed after two of its four entries.
    kept = table.to_dict()
    assert len(kept["deltas"]) == 4
    path = nas.table_path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**kept, "deltas": kept["deltas"][:2]}))
    again = build()
    assert len(predicted) == 2
    assert again.to_dict() == table.to_dict()
    assert build().to_dict() == table.to_dict() and not predicted
    shorter = {name: value[:, :4] for name, value in example_inputs.items()}
    assert build(example_inputs=shorter).key != table.key
    assert len(predicted) == 5, "other shapes are another table"
