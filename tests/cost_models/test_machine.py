"""The profile of the machine at hand: measured once, kept with its date, adapted from the shipped one."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from torch import nn

import cost_models
import secure_eval
from cost_models import machine
from cost_models.calibrate import Query, Sample, Workload
from cost_models.profile_files import Device, Rate
from secure_eval.measurement import Counts, Work

BASE = Device(
    "base", {"elementwise": Rate(macs_per_s=1e9), "product 64": Rate(macs_per_s=1e9), "generator": Rate(macs_per_s=1e9)},
    round_s=1e-3, message_bytes_per_s=1e9,
)  # fmt: skip


class _Measured:
    """A calibration that measured what it is told: seconds of each kind for one billion multiply-accumulates."""

    def __init__(self, seconds: dict[str, float], exchange_s: float = 0.011):
        self._seconds, self._exchange_s = seconds, exchange_s

    def samples(self) -> list[Sample]:
        work = {kind: Work(calls=1, macs=10**9) for kind in self._seconds}
        total = sum(self._seconds.values()) + 1e-3
        return [Sample(work, self._seconds, total, [])]

    def queries(self) -> list[Query]:
        counts = Counts(rounds=10, handled_bytes=10**6)
        return [Query(counts, 1.0, 1.0, self._exchange_s)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path))


def test_each_kind_is_as_much_slower_as_it_was_measured() -> None:
    found = machine.adapted(BASE, _Measured({"elementwise": 2.0, "product 64": 4.0}))  # type: ignore[arg-type]
    billion = Work(calls=1, macs=10**9)
    assert found.rate("elementwise").seconds(billion) == pytest.approx(2.0)
    assert found.rate("product 64").seconds(billion) == pytest.approx(4.0)
    assert found.rate("generator").seconds(billion) == pytest.approx(3.0), (
        "not measured: as the others together"
    )
    assert (found.name, found.date) == ("auto", date.today().isoformat()) and found.hardware


def test_messages_are_as_much_slower_as_queries_were() -> None:
    measured = _Measured({"elementwise": 1.0}, exchange_s=2 * (10 * 1e-3 + 1e-3))
    found = machine.adapted(BASE, measured)  # type: ignore[arg-type]
    assert found.round_s == pytest.approx(2e-3) and found.message_bytes_per_s == pytest.approx(5e8)


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measure(progress: object = None) -> Device:
        calls.append(1)
        return replace(machine.load("cpu"), name="auto", date="2020-02-02")

    monkeypatch.setattr(machine, "measure", measure)
    first, second = machine.device("auto"), machine.device()
    assert calls == [1] and first == second and first.date == "2020-02-02"
    assert second.file == str(machine.path()) and second.source()["file"] == second.file
    cost = cost_models.Cost
    assert cost is not None and calls == [1]


def test_another_number_of_cores_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.path()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert machine.path() != before


def test_a_broken_profile_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine.path().parent.mkdir(parents=True)
    machine.path().write_text("work: nothing\n")
    monkeypatch.setattr(machine, "measure", lambda progress=None: machine.load("cpu"))
    assert machine.device().work and "measured again" in caplog.text


def test_measuring_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(machine, "measure", lambda progress=None: machine.load("cpu"))
    machine.device()
    assert "measuring this machine once" in caplog.text and str(machine.path()) in caplog.text


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(machine, "measure", lambda progress=None: machine.load("cpu"))
    assert machine.device().work and "cannot be kept" in caplog.text


@pytest.mark.usefixtures("forked_roles")
def test_the_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, with as little as possible: every kind of the shipped profile has a rate, and work takes time."""
    monkeypatch.setattr(machine, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(machine, "BUDGET_S", 0.0)
    small = Workload("a layer", nn.Sequential(nn.Linear(16, 16), nn.GELU()), (4, 16), exchanged=True)
    monkeypatch.setattr(machine, "_workloads", lambda: [small])
    shown: list[tuple[int, int]] = []
    found = machine.measure(lambda done, total, message: shown.append((done, total)))
    assert set(found.work) == set(machine.load("cpu").work)
    assert all(rate.seconds(Work(1, 1000, 1000)) > 0 for rate in found.work.values())
    assert found.round_s > 0 and found.step_s >= 0 and shown[-1][0] == shown[-1][1]


def test_its_programs_do_most_kinds_of_work_and_exchange_messages() -> None:
    done: set[str] = set()
    for workload in machine._workloads():
        program = secure_eval.capture(workload.module.eval(), (torch.zeros(workload.shape),))
        for protocol in map(secure_eval.protocols.get, workload.protocols):
            for phase in secure_eval.count(program, protocol).roles.values():
                done |= {kind for counts in phase.values() for kind in counts.work}
    known = set(machine.load("cpu").work)
    assert len(done & known) >= 0.8 * len(known), known - done
    assert any(workload.exchanged for workload in machine._workloads())
