"""A link is measured: an emulated one is found to be what it is, real ones on loopback by threads and by two commands."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cost_models import network_profile
from cost_models.network_calibration import (
    _GREETING,
    LEADER,
    SERVER,
    LinkMeasurement,
    _greet,
    accept,
    connect,
    lead,
    serve,
)
from recipes.cli import app
from secure_eval.network.emulation import Emulated, Link
from secure_eval.network.links import Credentials, issue, listen
from secure_eval.network.transport import Tcp, Transport, TransportError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ends() -> Iterator[tuple[Transport, Transport]]:
    """A leader's and a server's transport, connected."""
    a, b = socket.socketpair()
    with a, b:
        yield Tcp(LEADER, {SERVER: a}), Tcp(SERVER, {LEADER: b})


@contextmanager
def serving(transport: Transport) -> Iterator[None]:
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, transport)
        yield
        served.result(60)


def test_an_emulated_link_is_found(ends: tuple[Transport, Transport]) -> None:
    """An emulated link delivers nothing early, so these bounds hold below however busy the machine is; above there is room for it."""
    link = Link(round_trip_s=0.02, bandwidth_bytes_per_s=20e6)
    leader, server = (Emulated(end, link) for end in ends)
    steps: list[tuple[int, int, str]] = []
    with serving(server):
        found = lead(leader, 0.2, lambda done, total, message: steps.append((done, total, message)))
    assert 0.02 <= found.round_trip_s < 0.04
    for rate in (found.to_server, found.to_leader, found.at_once):
        assert 10e6 < rate < 22e6
    assert found.bandwidth_bytes_per_s == min(found.to_server, found.to_leader, found.at_once)
    assert [done for done, _, _ in steps] == [0, 1, 2, 3, 4] and steps[-1] == (4, 4, "done")


class Slow(Emulated):
    """An emulated link whose other direction, which this end receives, is ten times slower."""

    def __init__(self, inner: Transport, link: Link):
        super().__init__(inner, replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / 10))


def test_the_slower_direction_decides(ends: tuple[Transport, Transport]) -> None:
    link = Link(round_trip_s=0.002, bandwidth_bytes_per_s=100e6)
    leader, server = ends
    with serving(Emulated(server, link)):
        found = lead(Slow(leader, link), 0.1)
    assert found.to_leader < 11e6 < 30e6 < found.to_server
    assert found.bandwidth_bytes_per_s == min(found.to_leader, found.at_once)


@pytest.mark.parametrize("encrypted", [False, True])
def test_sockets_with_and_without_tls(encrypted: bool) -> None:
    mine: Credentials | None = None
    theirs: Credentials | None = None
    if encrypted:
        made = issue([LEADER, SERVER])
        mine, theirs = made[LEADER], made[SERVER]
    with listen() as listener, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(accept, listener, theirs, 20)
        leader = connect("127.0.0.1", listener.getsockname()[1], mine, 20)
        server = waiting.result(30)
        with serving(server):
            found = lead(leader, 0.02)
        leader.close()
        server.close()
    assert found.encrypted == encrypted
    profile = found.network("mine")
    assert profile.round_trip_s > 0 and profile.bandwidth_bytes_per_s > 0
    assert ("mutual TLS 1.3" in profile.note) == encrypted
    assert torch.__version__ in profile.versions and "other end" not in profile.versions and profile.date


def test_the_profile_says_what_was_measured() -> None:
    trips = tuple(i * 1e-3 for i in range(1, 21))
    found = LinkMeasurement(trips, 30e6, 20e6, 10e6, True, "torch 1; other end torch 2").network("link")
    assert found.round_trip_s == pytest.approx(10.5e-3) and found.bandwidth_bytes_per_s == 10e6
    assert "20 round trips" in found.note and "30, 20, 10 MB/s" in found.note
    assert found.versions == "torch 1; other end torch 2"


@pytest.mark.parametrize("request_", [[2, 1, 1 << 40], [2, 1 << 40, 1], [9, 1, 1], [1, -1, 1]])
def test_a_server_does_only_what_a_measurement_needs(
    ends: tuple[Transport, Transport], request_: list[int]
) -> None:
    leader, server = ends
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, server)
        _greet(leader, SERVER)
        leader.exchange({SERVER: [torch.tensor(request_)]}, {})
        with pytest.raises(TransportError, match="asks for"):
            served.result(30)


def test_another_program_at_the_other_end_is_refused(ends: tuple[Transport, Transport]) -> None:
    leader, server = ends
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(
            server.exchange, {LEADER: [torch.zeros(96, dtype=torch.uint8)]}, {LEADER: [_GREETING]}
        )
        with pytest.raises(TransportError, match="does not measure links"):
            lead(leader)
        other.result(30)


def sordino(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "recipes.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=cwd)


def test_two_commands_measure_a_link_over_tls(tmp_path: Path) -> None:
    listening = sordino("calibrate", "--network", "listen", "--port", "0", "--tls", "link.tls", cwd=tmp_path)
    assert listening.stdout is not None
    said = ""
    for line in listening.stdout:
        said += line
        if found := re.search(r"--network THIS_HOST:(\d+) --tls link.tls", line):
            port = found.group(1)
            break
    else:
        pytest.fail(f"the command ended: {said} {listening.communicate()}")
    assert "copy it to the other host" in said
    assert (tmp_path / "link.tls").stat().st_mode & 0o077 == 0
    leading = sordino(
        "calibrate",
        "--network",
        f"localhost:{port}",
        "--tls",
        "link.tls",
        "--output",
        "mine.yaml",
        cwd=tmp_path,
    )
    out, err = leading.communicate(timeout=240)
    rest, _ = listening.communicate(timeout=60)
    assert (leading.returncode, listening.returncode) == (0, 0), out + err + rest
    assert "sordino cost MODEL --network mine.yaml" in out and "Done" in rest
    profile = network_profile(tmp_path / "mine.yaml")
    assert profile.name == "mine" and profile.round_trip_s > 0 and profile.bandwidth_bytes_per_s > 0
    assert profile.date and "torch" in profile.versions and "mutual TLS 1.3" in profile.note
    text = (tmp_path / "mine.yaml").read_text()
    assert "localhost" not in text and "127.0.0.1" not in text and socket.gethostname() not in text
    assert set(yaml.safe_load(text)) == {
        "name",
        "round_trip_s",
        "bandwidth_bytes_per_s",
        "message_overhead_s",
        "one_machine",
        "versions",
        "date",
        "note",
    }


def _free_port() -> int:
    with listen() as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--network", "somewhere"], "allowed: listen, or HOST:PORT"),
        (["--network", "host:99999"], "a port from 1 to 65535"),
        (["--network", "host:"], "allowed: listen, or HOST:PORT"),
        (["--network", "127.0.0.1:1", "--output", "x.json"], "its name ends in .yaml"),
        (["--network", "listen", "--output", "x.yaml"], "written by the other end"),
        (["--network", "127.0.0.1:1", "--port", "5"], "goes with `--network listen`"),
        (["--tls", "x"], "goes with --network"),
        (["--network", "127.0.0.1:1", "--tls", "missing"], "--tls missing: no such file; the listening host"),
        (["--network", "127.0.0.1:1", "--tls", "junk"], "--tls junk: holds no credentials"),
    ],
)
def test_wrong_input_is_one_message(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk").write_text("[1, 2]")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    assert result.exit_code == 2 and expected in result.output, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["junk"]


def test_nobody_there_says_what_to_start() -> None:
    port = _free_port()
    result = CliRunner().invoke(app, ["calibrate", "--network", f"127.0.0.1:{port}"])
    assert result.exit_code == 2
    assert (
        f"run `sordino calibrate --network listen --port {port}`" in result.output
        and "refused" in result.output
    )
