"""This machine's own device profile, measured where it is wanted for the first time, in view of the user."""

from __future__ import annotations

from pathlib import Path

from recipes.progress import Reporter


def ready(device: str, reporter: Reporter) -> None:
    """Measures this machine where `device` is "auto" and that was not done before."""
    from cost_models import AUTO, machine

    if device == AUTO and not machine.path().is_file():
        measure(reporter)


def measure(reporter: Reporter) -> Path:
    """Measures this machine now, whatever was kept before; the file in which its profile is kept."""
    from cost_models import machine

    with reporter.step("measure this machine") as progress:
        machine.keep(machine.measure(progress), machine.path())
    return machine.path()
