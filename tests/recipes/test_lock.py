"""One run at a time: a live holder is respected, a dead one is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.errors import Locked
from recipes.lock import Lock, alive, start_of

HOLD = """
import sys, time
from pathlib import Path
from recipes.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_released_at_the_end(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_live_holder_is_named(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock")
    try:
        with pytest.raises(Locked, match=f"in use by process {process.pid}"), Lock(tmp_path / "lock"):
            pass
    finally:
        process.kill()
        process.communicate()


def test_a_killed_holder_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "lock").exists()
    with Lock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_used_again_is_no_holder(tmp_path: Path) -> None:
    if start_of(os.getpid()) is None:
        pytest.skip("needs /proc")
    holder = {"pid": os.getpid(), "started": "1", "host": os.uname().nodename, "token": "x"}
    (tmp_path / "lock").write_text(json.dumps(holder))
    with Lock(tmp_path / "lock"):
        pass


def test_a_holder_on_another_host_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "started": "1", "host": "elsewhere", "token": "x"}))
    with pytest.raises(Locked, match="elsewhere"), Lock(tmp_path / "lock"):
        pass


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = start_of(process.pid)
    deadline = time.monotonic() + 20
    while alive(process.pid, started) and time.monotonic() < deadline:
        time.sleep(0.05)  # it ends, and stays a zombie until it is waited for
    assert not alive(process.pid, started)
    process.wait()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(
        json.dumps({"pid": 2**22 + 1, "started": "1", "host": os.uname().nodename})
    )
    inside, most, refused = 0, 0, 0
    guard, barrier = threading.Lock(), threading.Barrier(8)

    def attempt() -> None:
        nonlocal inside, most, refused
        barrier.wait()
        try:
            with Lock(tmp_path / "lock"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.05)
                with guard:
                    inside -= 1
        except Locked:
            with guard:
                refused += 1

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and refused <= 7
    assert list(tmp_path.iterdir()) == []
