"""Money and energy: exact arithmetic on made-up figures, every byte of a real prediction, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cost_models import (
    Cost,
    Device,
    Network,
    Phase,
    Prices,
    ProfileError,
    money,
    predict,
    price_profile,
    profile_names,
    seconds,
)
from cost_models.prices import estimated_seconds
from cost_models.profile_files import Rate
from secure_eval.measurement import Work

PRICES = Prices(
    "p",
    machine_hour_usd=3.6,
    accelerator_hour_usd=36.0,
    egress_gb_usd=0.5,
    machine_watts=100,
    accelerator_watts=500,
)
DEVICE = Device("d", work={"product 64": Rate(macs_per_s=10.0), "elementwise": Rate(), "generator": Rate()})
NETWORK = Network("n", round_trip_s=2.0, bandwidth_bytes_per_s=1e6)


def counts(sent: int, macs: int = 0, messages: int = 1) -> Phase:
    return Phase(bytes=sent, rounds=messages, messages=messages, work={"product 64": Work(1, macs)})


IDLE = counts(0, 0, 0)


def phase(sent: int, rounds: int, macs: int) -> Phase:
    return Phase(bytes=sent, path_bytes=sent, rounds=rounds, work={"product 64": Work(1, macs)})


COST = Cost(
    setup=phase(4_000_000, 0, 100),
    offline=phase(2_000_000, 0, 30),
    online=phase(1_000_000, 5, 40),
    roles={
        "setup": {
            "party0": counts(0, 60, 0),
            "party1": counts(0, 60, 0),
            "dealer": IDLE,
            "owner": counts(4_000_000, 100),
            "client": counts(7),
        },
        "offline": {
            "party0": counts(0, 10, 0),
            "party1": counts(0, 20, 0),
            "dealer": counts(2_000_000, 30),
            "owner": IDLE,
            "client": IDLE,
        },
        "online": {
            "party0": counts(1_000_000, 40),
            "party1": counts(600_000, 30),
            "dealer": IDLE,
            "owner": IDLE,
            "client": counts(5_000),
        },
    },
)


def test_every_phase_by_hand() -> None:
    found = money(COST, NETWORK, DEVICE, PRICES, queries_per_setup=50)
    assert found.billed == {
        "setup": ("owner", "party0", "party1"),
        "offline": ("dealer", "party0", "party1"),
        "online": ("party0", "party1"),
    }
    # Set-up: at most 10 s of work, and 4 s of sending, on three machines, 20 times for 1,000 queries; a machine-second costs 0.1 cents.
    assert found.setup.occupied_cents == pytest.approx(3 * 14 * 20 * 0.1)
    assert found.setup.working_cents == pytest.approx((10 + 6 + 6) * 20 * 0.1)
    assert found.setup.egress_cents == pytest.approx(4e-3 * 20 * 50)
    # Offline: 3 s of the dealer's work, and within them 2 s of sending, on three machines, 1,000 times.
    assert found.offline.occupied_cents == pytest.approx(3 * 3 * 1000 * 0.1)
    assert found.offline.egress_bytes == 2e9 and found.offline.egress_cents == pytest.approx(100)
    # Online: at most 4 s of work, 1 s of sending, five times half a round trip, on two machines; the client's bytes are not ours to pay.
    assert found.online.occupied_hours == pytest.approx(2 * 10 * 1000 / 3600)
    assert found.online.working_cents == pytest.approx((4 + 3) * 1000 * 0.1)
    assert found.online.egress_bytes == 1.6e9
    assert found.online.watt_hours == pytest.approx((4 + 3) * 1000 / 3600 * 100)
    assert found.online.occupied_watt_hours == pytest.approx(2 * 10 * 1000 / 3600 * 100)


def test_the_total_is_the_sum_and_json_holds_it() -> None:
    found = money(COST, NETWORK, DEVICE, PRICES)
    data = json.loads(json.dumps(found.to_dict()))
    for key, value in data["total"].items():
        assert value == pytest.approx(sum(data[phase][key] for phase in ("setup", "offline", "online")))
    assert data["total"]["total_cents"] == pytest.approx(
        data["total"]["occupied_cents"] + data["total"]["egress_cents"]
    )
    assert (
        data["queries"] == 1000
        and data["queries_per_setup"] == 100_000
        and data["prices"]["machine_hour_usd"] == 3.6
    )


def test_set_up_is_shared_out() -> None:
    few, many = (money(COST, NETWORK, DEVICE, PRICES, queries_per_setup=n) for n in (10, 1000))
    assert few.setup.total_cents == pytest.approx(100 * (many.setup.total_cents or 0))
    assert (few.offline, few.online) == (many.offline, many.online)


def test_an_accelerator_is_paid_for_besides_its_machine() -> None:
    cpu, gpu = (money(COST, NETWORK, device, PRICES) for device in (DEVICE, replace(DEVICE, machine="gpu")))
    assert gpu.accelerated and not cpu.accelerated
    assert gpu.online.occupied_cents == pytest.approx(11 * (cpu.online.occupied_cents or 0))
    assert gpu.online.watt_hours == pytest.approx(6 * (cpu.online.watt_hours or 0))
    assert gpu.online.egress_cents == cpu.online.egress_cents


def test_who_is_billed_can_be_said() -> None:
    found = money(COST, NETWORK, DEVICE, PRICES, billed=["dealer"])
    assert found.billed == {"setup": (), "offline": ("dealer",), "online": ()}
    assert found.online.total_cents == 0 and found.offline.egress_bytes == 2e9


@pytest.mark.parametrize("protocol", ["dealer2pc", "replicated3pc"])
def test_every_byte_of_a_prediction_is_paid_for(protocol: str) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6)).eval()
    cost = predict(model, (torch.zeros(2, 5, 6),), protocol)
    found = money(cost, "lan", "cpu", "cloud", queries_per_setup=1000)
    sent = sum(
        c["bytes"] for roles in cost.communication.values() for role, c in roles.items() if role != "client"
    )
    assert found.total.egress_bytes * (1 / 1000) + found.setup.egress_bytes * (1 - 1 / 1000) == pytest.approx(
        sent
    )
    parties = {"dealer2pc": 2, "replicated3pc": 3}[protocol]
    assert found.online.occupied_hours == pytest.approx(
        parties * seconds(cost, "lan", "cpu").total * 1000 / 3600
    )


@dataclass(frozen=True)
class Estimate:
    """As much of a comparison system's estimate as is paid for."""

    parties: int = 2
    servers: int = 2
    setup_bytes: float = 100e6
    offline_bytes: float = 10e6
    online_bytes: float = 5e6
    rounds: float = 4
    compute_s: float | None = 1.0
    machine: str = "gpu"


def test_an_estimate_of_another_system() -> None:
    found = money(Estimate(), NETWORK, DEVICE, PRICES, queries_per_setup=1000)
    assert found.accelerated  # its own machine, not ours
    assert found.online.occupied_hours == pytest.approx(2 * (1 + 5 + 4) * 1000 / 3600)
    assert found.online.working_hours == pytest.approx(2 * 1000 / 3600)
    assert found.offline.occupied_hours == pytest.approx(2 * 10 * 1000 / 3600)
    assert found.offline.working_hours == 0
    assert (found.setup.egress_bytes, found.offline.egress_bytes) == (200e6, 20e9)
    assert estimated_seconds(Estimate(), NETWORK) == {"compute": 1.0, "network": 9.0, "total": 10.0}


@dataclass(frozen=True)
class OneServer(Estimate):
    """An estimate whose other party is the client."""

    servers: int = 1


def test_a_client_that_computes_is_not_paid_for() -> None:
    both, one = (money(e, NETWORK, DEVICE, PRICES) for e in (Estimate(), OneServer()))
    assert one.billed["online"] == ("party0",)
    assert one.online.occupied_cents == pytest.approx((both.online.occupied_cents or 0) / 2)
    assert one.total.egress_bytes == both.total.egress_bytes / 2


def test_what_an_estimate_does_not_know_is_not_zero() -> None:
    unknown = Estimate(compute_s=None, machine="cpu")
    found = money(unknown, NETWORK, DEVICE, PRICES)
    assert found.online.occupied_cents is None and found.total.total_cents is None
    assert found.total.egress_cents > 0 and found.offline.total_cents is not None
    assert estimated_seconds(unknown, NETWORK)["total"] is None
    assert json.loads(json.dumps(found.to_dict()))["total"]["watt_hours"] is None


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queries_per_setup=0; allowed: 1 or more"):
        money(COST, NETWORK, DEVICE, PRICES, queries_per_setup=0)
    with pytest.raises(ValueError, match=r"no role 'party2'; allowed: client, dealer, owner, party0, party1"):
        money(COST, NETWORK, DEVICE, PRICES, billed=["party2"])
    with pytest.raises(ValueError, match="has no `roles`"):
        money(replace(COST, roles={}), NETWORK, DEVICE, PRICES)
    with pytest.raises(ValueError, match="another system knows no roles"):
        money(Estimate(), NETWORK, DEVICE, PRICES, billed=["party0"])
    with pytest.raises(ProfileError, match="no prices profile 'clod'. Did you mean 'cloud'"):
        money(COST, NETWORK, DEVICE, "clod")


def test_shipped_prices_say_what_they_are() -> None:
    for name in profile_names("prices"):
        prices = price_profile(name)
        assert prices.name == name and prices.date and "round figures" in prices.note


def test_prices_from_a_file_and_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    good = "machine_hour_usd: 0\naccelerator_hour_usd: 1e0\negress_gb_usd: 0.1\nmachine_watts: 1\naccelerator_watts: 2\n"
    path.write_text(good + "date: 2026-11-22\n")
    assert price_profile(path) == Prices("ours", 0, 1.0, 0.1, 1, 2, date="2026-11-22")
    for text, message in (
        (good + "egress_usd: 1\n", "unknown field 'egress_usd'; allowed: .*egress_gb_usd"),
        (good.replace("0.1", "-0.1"), "egress_gb_usd is -0.1; allowed: a number, 0 or more"),
        (good.replace("0.1", "cheap"), "egress_gb_usd is 'cheap'"),
        (good.replace("0.1", ".nan"), "egress_gb_usd is nan"),
        ("machine_hour_usd: 1\n", "needed: .*machine_watts"),
    ):
        path.write_text(text)
        with pytest.raises(ProfileError, match=message):
            price_profile(path)
