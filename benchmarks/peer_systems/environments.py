"""Environments of the peer systems: pinned packages from the registry, each system in its own virtual environment, made once."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = Path.home() / ".cache" / "sordino" / "peers"
PYTHON = "3.11"
"""SPU 0.9.5 has no build for a later version. Sordino itself may run on another."""


class PeerInstallError(RuntimeError):
    """A peer's environment can't be made."""


@dataclass(frozen=True)
class Environment:
    """What is installed. `alone` are packages installed without what they ask for."""

    name: str
    pins: tuple[str, ...]
    alone: tuple[str, ...] = ()

    def folder(self, root: Path) -> Path:
        """Where it lives: another set of pins is another folder."""
        text = "\n".join((PYTHON, *self.pins, "--no-deps", *self.alone))
        return root / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


ENVIRONMENTS = {
    # CrypTen also asks for torchvision, tensorboard, pandas, scipy, onnx and "sklearn", which can't be installed any more. Nothing that
    # is measured imports them. torch is the version in constraints.txt, so that both compute with the same kernels.
    "crypten": Environment(
        "crypten",
        ("torch==2.13.0", "numpy==2.4.6", "omegaconf==2.4.0", "PyYAML==6.0.3"),
        ("crypten==0.4.1",),
    ),
    "spu": Environment(
        "spu",
        (
            "spu==0.9.5",
            "jax==0.4.34",
            "jaxlib==0.4.34",
            "numpy==1.26.4",
            "scipy==1.17.1",
            "ml_dtypes==0.5.4",
            "opt_einsum==3.4.0",
            "cachetools==8.0.1",
            "cloudpickle==3.1.2",
            "dill==0.4.1",
            "multiprocess==0.70.19",
            "termcolor==3.3.0",
        ),
    ),
}


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_python(given: str | None = None) -> str:
    """An interpreter of the version that the peers need. Raises PeerInstallError."""
    candidates = [given] if given else [sys.executable, f"python{PYTHON}"]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path and _version(path) == PYTHON:
            return path
    raise PeerInstallError(
        f"the peer systems need Python {PYTHON}; tried {', '.join(candidates)}. Name one: --python PATH"
    )


def ensure(name: str, root: Path = DEFAULT_FOLDER, python: str | None = None) -> str:
    """The path of the environment's interpreter; installs it first where it isn't there yet.

    Raises PeerInstallError with the installer's last lines, KeyError for an unknown name.
    """
    environment = ENVIRONMENTS[name]
    folder = environment.folder(root)
    interpreter, done = folder / "bin" / "python", folder / "complete"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{folder.name}.lock").open("w") as lock:  # two runs at once wait for one installation
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return str(interpreter)
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(interpreter), "-m", "pip", "install", "--disable-pip-version-check"]
        steps = [[find_python(python), "-m", "venv", str(folder)], [*pip, *environment.pins]]
        if environment.alone:
            steps.append([*pip, "--no-deps", *environment.alone])
        for step in steps:
            made = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if made.returncode:
                tail = "\n".join(made.stdout.splitlines()[-15:])
                raise PeerInstallError(f"{' '.join(step)}\nfailed ({made.returncode}):\n{tail}")
        done.touch()
    return str(interpreter)
