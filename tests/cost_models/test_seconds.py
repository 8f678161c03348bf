"""Seconds from counts, profiles and calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
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
from cost_models.calibrate import Workload, non_negative, workloads
from cost_models.profile_files import Rate
from cost_models.replay import Replay
from secure_eval.measurement import Work

DEVICE = Device(
    "d",
    work={
        "elementwise": Rate(call_s=0.5, bytes_per_s=50.0),
        "product 64": Rate(macs_per_s=100.0),
        "generator": Rate(bytes_per_s=20.0),
    },
    step_s=0.125,
    round_s=0.25,
    message_bytes_per_s=5.0,
)
NETWORK = Network("n", round_trip_s=4.0, bandwidth_bytes_per_s=10.0)
PHASE = Phase(
    bytes=30,
    rounds=2,
    path_bytes=30,
    handled_bytes=60,
    work={
        "elementwise": Work(3, 0, 40),
        "select_share": Work(1, 0, 10),  # without a rate of its own
        "product 32 by columns": Work(1, 100, 0),
        "generator": Work(2, 0, 20),
    },
)


def test_each_count_has_its_rate() -> None:
    found = seconds(PHASE, NETWORK, DEVICE)
    assert found.compute == pytest.approx(4 * 0.5 + 50 / 50 + 100 / 100 + 20 / 20 + 7 * 0.125)
    assert found.network == pytest.approx(2 * 2.0 + 60 / 5)
    assert found.total == found.compute + found.network


def test_the_slower_of_network_and_machine_is_what_messages_take() -> None:
    near, far = Network("near", 0.1, 1e9), Network("far", 100.0, 1e-3)
    assert seconds(PHASE, near, DEVICE).network == pytest.approx(2 * 0.25 + 60 / 5)
    assert seconds(PHASE, far, DEVICE).network == pytest.approx(2 * 50 + 30 / 1e-3)


def test_seconds_are_proportional_and_phases_can_be_named() -> None:
    cost = Cost(online=PHASE, offline=Phase(path_bytes=1000), roles={"online": {"party0": PHASE}})
    assert seconds(3 * cost, NETWORK, DEVICE).total == pytest.approx(3 * seconds(cost, NETWORK, DEVICE).total)
    assert seconds(cost, NETWORK, DEVICE, phase="offline").network == pytest.approx(100)


def test_the_offline_phase_is_a_stream() -> None:
    """Its material is on the way while the dealer makes more and the party takes it in."""
    busy = seconds(PHASE, NETWORK, DEVICE).compute
    far = Network("far", 1.0, 1e-3)
    assert seconds(PHASE, NETWORK, DEVICE, "offline").total == pytest.approx(2 * 2.0 + busy + 60 / 5)
    assert seconds(PHASE, far, DEVICE, "offline").total == pytest.approx(2 * 0.5 + 30 / 1e-3)


def test_each_role_does_its_own_work() -> None:
    """The longest role's work, not the most of each kind over the roles; on one machine the roles share its cores."""
    adds, products = {"elementwise": Work(8, 0, 0)}, {"product 64": Work(0, 700, 0)}
    roles = {"online": {"party0": Phase(work=adds, handled_bytes=5), "party1": Phase(work=products)}}
    cost = Cost(online=Phase(rounds=1, path_bytes=5, handled_bytes=5, work=adds | products), roles=roles)
    assert seconds(cost.online, NETWORK, DEVICE).compute == pytest.approx(8 * 0.625 + 7)
    assert seconds(cost, NETWORK, DEVICE).compute == pytest.approx(7)
    for cores, total in ((0, 7 + 2 + 1), (1, 5 + 7 + 1), (2, 7 + 2 + 1)):
        here = replace(NETWORK, one_machine=True)
        assert seconds(cost, here, replace(DEVICE, cores=cores)).total == pytest.approx(total)
    assert seconds(2 * cost - cost, NETWORK, DEVICE) == seconds(cost, NETWORK, DEVICE)


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
        (
            "round_trip_s: 1\nbandwidth_bytes_per_s: 1\none_machine: maybe\n",
            "one_machine is 'maybe'; allowed: true, false",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ProfileError, match=message):
            network_profile(path)
    with pytest.raises(ProfileError, match="Did you mean 'wan'.*Allowed: lan, loopback, wan"):
        network_profile("wann")


def test_a_network_is_a_link_to_emulate() -> None:
    network = Network("n", round_trip_s=0.02, bandwidth_bytes_per_s=1e8, message_overhead_s=1e-3)
    assert network.link() == secure_eval.Link(round_trip_s=0.02, bandwidth_bytes_per_s=1e8)


def test_device_profiles_say_what_they_need(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    good = "work: {elementwise: {bytes_per_s: 1e9}, product 64: {macs_per_s: 1e9, call_s: 1e-6}, generator: {}}\n"
    path.write_text(good)
    assert device_profile(path).rate("product 8") == Rate(call_s=1e-6, macs_per_s=1e9)
    for text, message in (
        ("name: mine\n", "needed: .*work"),
        ("work: fast\n", "work is 'fast'; allowed: a mapping of kinds of work"),
        ("work: {elementwise: {}, generator: {}}\n", "work has no 'product 64'"),
        (good.replace("call_s", "calls"), "product 64: unknown field 'calls'; allowed: call_s"),
        (good.replace("1e-6", "-1"), "product 64: call_s is -1"),
        (good + "cores: 1.5\n", "cores is 1.5; allowed: a whole number, 0 or more"),
        (good.replace("{bytes_per_s: 1e9}", "{bytes_per_s: 0}"), "elementwise: bytes_per_s is 0"),
    ):
        path.write_text(text)
        with pytest.raises(ProfileError, match=message):
            device_profile(path)


def test_a_profile_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(DEVICE.to_dict()))
    assert device_profile(path) == DEVICE


def test_rates_are_recovered_from_exact_measurements() -> None:
    rows = [(1e6, 1e5, 10.0), (1e3, 1e7, 20.0), (1e4, 1e4, 500.0), (1e6, 1e6, 100.0)]
    rates = (1e-9, 2e-10, 5e-5)
    times = [sum(a * b for a, b in zip(row, rates, strict=True)) for row in rows]
    assert non_negative(rows, times) == pytest.approx(rates, rel=1e-3)
    assert non_negative([(1.0, 0.0), (2.0, 0.0)], [3.0, 6.0]) == pytest.approx([3.0, 0.0])
    with pytest.raises(ValueError, match="allowed: positive numbers, one at least"):
        non_negative([], [])


def test_replay_runs_the_counted_work() -> None:
    program = secure_eval.capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (torch.zeros(4, 8),))
    for protocol in map(secure_eval.protocols.get, ("dealer2pc", "replicated3pc")):
        counted = secure_eval.count(program, protocol).roles
        for role, phases in (("party0", ("offline", "online")), ("dealer", ("offline",))):
            if role not in counted["online"]:
                continue
            one = Replay(program, protocol, role)
            for phase in phases:
                watch = one.watched(phase)
                assert set(watch.seconds) == set(counted[phase][role].work)
                for kind in [kind for kind in watch.seconds if kind.startswith("product ")]:
                    calls = [work for name, work, _ in watch.calls if name == kind]
                    assert _sum(calls) == counted[phase][role].work[kind]
                assert all(seconds > 0 for seconds in watch.seconds.values())


def _sum(parts: list[Work]) -> Work:
    total = Work()
    for part in parts:
        total = total.plus(part)
    return total


@pytest.mark.usefixtures("forked_roles")
def test_calibration_finds_rates_and_says_where() -> None:
    steps: list[tuple[int, int, str]] = []
    small = [Workload("a layer", nn.Sequential(nn.Linear(16, 16), nn.GELU()), (4, 16), exchanged=True)]
    device = calibrate(
        progress=lambda done, total, message: steps.append((done, total, message)), measured=small
    )
    assert {"elementwise", "product 64", "generator", "polynomial_share"} <= set(device.work)
    assert all(rate.seconds(Work(1, 1000, 1000)) > 0 for rate in device.work.values())
    assert device.step_s >= 0 and device.round_s > 0
    assert device.hardware and torch.__version__ in device.versions and device.date
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]


def test_the_shipped_profile_knows_every_kind_of_work() -> None:
    """Kinds that calibration does not meet would silently be taken for elementwise steps."""
    done = {
        kind
        for workload in workloads()
        for protocol in map(secure_eval.protocols.get, workload.protocols)
        for phase in secure_eval.count(
            secure_eval.capture(workload.module.eval(), (torch.zeros(workload.shape),)), protocol
        ).roles.values()
        for counts in phase.values()
        for kind in counts.work
    }
    newer = {"both_share"}  # than the shipped calibration: counted as elementwise until the next one
    assert done - newer <= set(device_profile("cpu").work)
