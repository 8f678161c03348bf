"""Seconds from counts, profiles and calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secure_eval
from cost_models import (
    Cost,
    Device,
    Network,
    Phase,
    ProfileError,
    calibrate,
    device_profile,
    network_profile,
    profile_names,
    seconds,
)
from cost_models.calibrate import _non_negative
from cost_models.replay import replay

DEVICE = Device(
    "d", macs_per_s=100.0, traffic_bytes_per_s=50.0, random_bytes_per_s=20.0, kernel_s=0.5, round_s=0.25
)
NETWORK = Network("n", round_trip_s=4.0, bandwidth_bytes_per_s=10.0)


def test_each_count_has_its_rate() -> None:
    phase = Phase(bytes=30, rounds=2, macs=100, traffic_bytes=50, random_bytes=20, kernels=4)
    found = seconds(phase, NETWORK, DEVICE)
    assert found.compute == pytest.approx(1 + 1 + 1 + 4 * 0.5 + 2 * 0.25)
    assert found.network == pytest.approx(2 * 2.0 + 3.0)
    assert found.total == found.compute + found.network


def test_seconds_are_linear_and_phases_can_be_named() -> None:
    cost = Cost(online=Phase(bytes=30, rounds=2), offline=Phase(bytes=1000))
    assert seconds(3 * cost, NETWORK, DEVICE).total == pytest.approx(3 * seconds(cost, NETWORK, DEVICE).total)
    assert seconds(cost, NETWORK, DEVICE, phase="offline").network == pytest.approx(100)


@pytest.mark.parametrize("kind", ["networks", "devices"])
def test_shipped_profiles_load(kind: str) -> None:
    load = network_profile if kind == "networks" else device_profile
    assert profile_names(kind)
    for name in profile_names(kind):
        assert load(name).name == name


def test_profiles_from_a_file_and_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("round_trip_s: 0.02\nbandwidth_bytes_per_s: 1e8\n")
    assert network_profile(path) == Network("mine", 0.02, 1e8)
    for text, message in (
        ("round_trip: 1\n", "unknown field 'round_trip'; allowed: .*round_trip_s"),
        ("round_trip_s: 0.1\nbandwidth_bytes_per_s: 0\n", "bandwidth_bytes_per_s is 0.*a positive number"),
        ("round_trip_s: fast\nbandwidth_bytes_per_s: 1\n", "round_trip_s is 'fast'"),
        ("round_trip_s: 0.1\n", "needed: .*bandwidth_bytes_per_s"),
        ("- 1\n", "expected a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(ProfileError, match=message):
            network_profile(path)
    with pytest.raises(ProfileError, match="Did you mean 'wan'.*Allowed: lan, loopback, wan"):
        network_profile("wann")


def test_a_network_is_a_link_to_emulate() -> None:
    network = Network("n", round_trip_s=0.02, bandwidth_bytes_per_s=1e8, message_overhead_s=1e-3)
    assert network.link() == secure_eval.Link(round_trip_s=0.02, bandwidth_bytes_per_s=1e8)


def test_rates_are_recovered_from_exact_measurements() -> None:
    rows = [(1e6, 1e5, 10.0), (1e3, 1e7, 20.0), (1e4, 1e4, 500.0), (1e6, 1e6, 100.0)]
    rates = (1e-9, 2e-10, 5e-5)
    times = [sum(a * b for a, b in zip(row, rates, strict=True)) for row in rows]
    assert _non_negative(rows, times) == pytest.approx(rates, rel=1e-3)


def test_replay_runs_the_counted_work() -> None:
    program = secure_eval.capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (torch.zeros(4, 8),))
    protocol = secure_eval.protocols.get("dealer2pc")
    counted = secure_eval.count(program, protocol).roles["online"]["party0"]
    counts = replay(program, protocol, repeats=1)
    assert (counts.bytes, counts.rounds, counts.messages) == (counted.bytes, counted.rounds, counted.messages)
    assert counts.seconds is not None and counts.seconds > 0


def test_calibration_finds_positive_rates_and_says_where() -> None:
    steps: list[tuple[int, int, str]] = []
    device = calibrate(progress=lambda done, total, message: steps.append((done, total, message)))
    rates = (
        device.macs_per_s,
        device.traffic_bytes_per_s,
        device.random_bytes_per_s,
        device.kernel_s,
        device.round_s,
    )
    assert all(rate > 0 for rate in rates)
    assert device.hardware and torch.__version__ in device.versions and device.date
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
