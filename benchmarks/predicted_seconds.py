"""Predicted against measured seconds: real models, on loopback and on the emulated LAN and WAN, roles as processes of this machine.

    python -m benchmarks.predicted_seconds [--calibrate] [--models NAME ...] [--networks NAME ...] [--queries 5] [--json FILE]

Models are of stock configurations with random weights: neither bytes nor seconds depend on a weight's value. Each network starts the
processes anew; after the warm-up queries, the queries are timed, and the median is held against the prediction for the device
profile. Counted bytes and rounds have to equal the predicted ones, else the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BertConfig, BertModel

import cost_models
import distill
import secure_eval
from results.record import hardware, versions

WARM_UP_S = 3.0
"""Queries are answered, at least one, for so long before any is timed: until memory is in use, a machine is slower."""


def _bert(**sizes: int) -> Any:
    torch.manual_seed(0)
    model = BertModel._from_config(BertConfig(**sizes), attn_implementation="eager")
    return model.eval()


def _squared(model: Any) -> Any:
    """The model with MPCFormer's Quad and 2Quad everywhere."""
    variants = {"softmax": "2quad", "activation": "quad"}
    sites = {site.name: variants[site.kind] for site in distill.find_sites(model) if site.kind in variants}
    return distill.apply(model, distill.Architecture(sites))


_MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "MiniLM-L6, exact, 32 tokens": (lambda: _bert(**_MINILM), 32),
    "MiniLM-L6, Quad + 2Quad, 32 tokens": (lambda: _squared(_bert(**_MINILM)), 32),
    "BERT-base, exact, 128 tokens": (lambda: _bert(), 128),
    "BERT-base, Quad + 2Quad, 128 tokens": (lambda: _squared(_bert()), 128),
}
"""Name -> the model, and the tokens of a query."""


def measure(
    name: str, networks: list[str], device: cost_models.Device, protocol: str, queries: int
) -> Iterator[dict[str, Any]]:
    """One model on every network in turn: a row each with predicted and measured seconds of the online and the offline phase."""
    build, tokens = MODELS[name]
    model = build()
    inputs: dict[str, Tensor] = {
        "input_ids": torch.ones(1, tokens, dtype=torch.long),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long),
    }
    program = secure_eval.capture(model, inputs)
    cost = cost_models.predict(program, protocol=protocol)
    for network in networks:
        profile = cost_models.network_profile(network)
        link = None if network == "loopback" else profile.link()
        taken: dict[str, list[float]] = {"online": [], "offline": []}
        with secure_eval.compile(program, protocol=protocol, parties="processes", network=link) as secure:
            warm = 0.0
            while warm < WARM_UP_S:
                warm += sum(_seconds(secure, inputs).values())
            for _ in range(queries):
                for phase, seconds in _seconds(secure, inputs).items():
                    taken[phase].append(seconds)
            if secure.measurement.communication() != cost.communication:
                raise RuntimeError(f"{name} on {network}: counted bytes or rounds differ from the predicted")
        row: dict[str, Any] = {"model": name, "network": network, "protocol": protocol, "queries": queries}
        row |= {"bytes": int(cost.online.bytes), "rounds": int(cost.online.rounds)}
        for phase, found in taken.items():
            predicted = cost_models.seconds(cost, network, device, phase)
            row[phase] = predicted.to_dict() | {
                "measured": median(found),
                "least": min(found),
                "most": max(found),
                "deviation": predicted.total / median(found) - 1,
            }
        yield row


def _seconds(secure: secure_eval.SecureModel, inputs: dict[str, Tensor]) -> dict[str, float]:
    secure(**inputs)
    found = secure.measurement
    assert found.online.seconds is not None and found.offline.seconds is not None
    return {"online": found.online.seconds, "offline": found.offline.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--networks", nargs="+", default=["loopback", "lan", "wan"])
    parser.add_argument("--device", default="cpu", help="device profile")
    parser.add_argument("--calibrate", action="store_true", help="calibrate this machine first, instead")
    parser.add_argument("--protocol", default="dealer2pc")
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.queries < 1:
        parser.error(f"--queries {options.queries}: allowed are whole numbers from 1")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    device = cost_models.calibrate() if options.calibrate else cost_models.device_profile(options.device)
    rows: list[dict[str, Any]] = []
    for name in options.models:
        for row in measure(name, options.networks, device, options.protocol, options.queries):
            rows.append(row)
            found = {
                "command": shlex.join(["python", "-m", "benchmarks.predicted_seconds", *sys.argv[1:]]),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "hardware": hardware(),
                "versions": versions(("torch", "transformers")),
                "load_before": os.getloadavg()[0],
                "device": device.to_dict(),
                "rows": rows,
            }
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
            show([row], console)
    show(rows, console)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows as a table: a deviation above 0 % says that the prediction is too high."""
    table = Table()
    for column in ("model", "network", "phase", "predicted s", "measured s", "least to most s", "deviation"):
        table.add_column(column, justify="left" if column in ("model", "network", "phase") else "right")
    for row in rows:
        for phase in ("online", "offline"):
            one = row[phase]
            spread = f"{one['least']:.3g} to {one['most']:.3g}"
            figures = [f"{one['total']:.3g}", f"{one['measured']:.3g}", spread, f"{one['deviation']:+.1%}"]
            table.add_row(row["model"], row["network"], phase, *figures)
    console.print(table)


if __name__ == "__main__":
    main()
