"""Predictions equal what runs count, and need no weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secure_eval
from cost_models import Cost, predict


def _model(device: str = "cpu") -> nn.Module:
    with torch.device(device):
        return nn.Sequential(
            nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6), nn.LayerNorm(6), nn.Softmax(-1)
        ).eval()


@pytest.mark.parametrize("protocol", ["plain", "dealer2pc"])
@pytest.mark.parametrize("batch", [1, 3])
def test_predicted_equals_measured(protocol: str, batch: int) -> None:
    x = torch.randn(batch, 5, 6, generator=torch.Generator().manual_seed(0))
    cost = predict(_model(), (x,), protocol)
    with secure_eval.compile(_model(), (x,), protocol) as secure:
        secure(x)
        measured = Cost.of(secure.measurement)
    assert cost.communication == measured.communication
    assert (cost.online.bytes, cost.online.rounds) == (measured.online.bytes, measured.online.rounds)
    assert sum(c.bytes for c in cost.by_site.values()) == sum(c.bytes for c in cost.by_operation.values())


def test_a_run_tells_exchange_from_work_and_a_prediction_knows_no_seconds() -> None:
    x = torch.zeros(2, 5, 6)
    with secure_eval.compile(_model(), (x,)) as secure:
        secure(x)
        measured, predicted = secure.measurement, secure.predicted()
    for phase in ("offline", "online"):
        for counts in (measured.phase(phase), measured.roles[phase]["party0"]):
            assert counts.seconds is not None and counts.exchange_seconds is not None
            assert 0 < counts.exchange_seconds < counts.seconds or not counts.messages
        assert predicted.phase(phase).seconds is predicted.phase(phase).exchange_seconds is None
    assert Cost.from_dict(Cost.of(measured).to_dict()) == Cost.of(measured)


def test_the_meta_device_is_enough() -> None:
    x = torch.zeros(2, 5, 6)
    assert predict(_model("meta"), (x.to("meta"),)).communication == predict(_model(), (x,)).communication


def test_sites_hold_all_bytes_that_parties_exchange() -> None:
    x = torch.zeros(2, 5, 6)
    cost = predict(_model(), (x,))
    outputs = 8 + 2 * 5 * 6 * 8  # its share of the output and the output's fraction bits, to the client
    assert (
        sum(c.bytes for c in cost.by_site.values())
        == cost.communication["online"]["party0"]["bytes"] - outputs
    )


def test_work_of_a_matrix_product() -> None:
    cost = predict(nn.Linear(6, 12).eval(), (torch.zeros(5, 6),))
    assert cost.online.macs == 5 * 6 * 12  # with a fixed weight one product is left for the query
    assert cost.offline.macs == 5 * 6 * 12


def test_inputs_are_needed_and_protocols_are_known() -> None:
    with pytest.raises(ValueError, match="needs example_inputs"):
        predict(_model())
    with pytest.raises(ValueError, match="did you mean 'dealer2pc'"):
        predict(_model(), (torch.zeros(1, 5, 6),), "dealer2p")
