"""Predicted against measured seconds: real models, on loopback and on the emulated LAN and WAN, roles as processes of this machine.

    python -m benchmarks.predicted_seconds [--calibrate] [--models NAME ...] [--networks NAME ...] [--queries 7] [--json FILE]

Models are of stock configurations with random weights: neither bytes nor seconds depend on a weight's value. Each network starts the
processes anew; after the warm-up queries, the queries are timed, and the median is held against the prediction for the device
profile. A machine's speed drifts: with --calibrate, a round of the calibration is run before each query, so that both see the same
minutes. All roles share this machine's cores, on emulated networks too, and the prediction is for that. Counted bytes and rounds have to
equal the predicted ones, else the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
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
from cost_models.calibrate import WARM_UP as CALIBRATION_WARM_UP
from cost_models.calibrate import Calibration
from results.record import hardware, versions

WARM_UP = 2
"""Queries before any is timed: until memory is in use, a machine is slower."""


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
    name: str, calibration: Calibration | None, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One model on every network in turn: a row each with predicted and measured seconds of the online and the offline phase."""
    build, tokens = MODELS[name]
    model = build()
    inputs: dict[str, Tensor] = {
        "input_ids": torch.ones(1, tokens, dtype=torch.long),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long),
    }
    program = secure_eval.capture(model, inputs)
    cost = cost_models.predict(program, protocol=options.protocol)
    for network in options.networks:
        profile = cost_models.network_profile(network)
        link = None if network == "loopback" else profile.link()
        taken: dict[str, list[float]] = {"online": [], "offline": []}
        with secure_eval.compile(
            program, protocol=options.protocol, parties="processes", network=link
        ) as secure:
            for i in range(-WARM_UP, options.queries):
                if calibration:
                    if i == 0:
                        calibration.restart()
                    calibration.measure()
                for phase, seconds in _seconds(secure, inputs).items():
                    if i >= 0:
                        taken[phase].append(seconds)
            if secure.measurement.communication() != cost.communication:
                raise RuntimeError(f"{name} on {network}: counted bytes or rounds differ from the predicted")
            device = calibration.device() if calibration else cost_models.device_profile(options.device)
        row: dict[str, Any] = {"model": name, "network": network, "protocol": options.protocol}
        row |= {
            "queries": options.queries,
            "bytes": int(cost.online.bytes),
            "rounds": int(cost.online.rounds),
        }
        row["device"] = device.to_dict()
        here = replace(profile, one_machine=True)
        for phase, found in taken.items():
            predicted = cost_models.seconds(cost, here, device, phase)
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


def _keep(path: Path, row: dict[str, Any]) -> None:
    """Puts a row into a file of rows, in place of the one of the same model, network and protocol."""

    def of(row: dict[str, Any]) -> tuple[str, ...]:
        return row["model"], row["network"], row["protocol"]

    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row if of(old) == of(row) else old for old in rows]
    rows += [] if row in rows else [row]
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--networks", nargs="+", default=["loopback", "lan", "wan"])
    parser.add_argument("--device", default="cpu", help="device profile")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="calibrate this machine instead, a round between any two queries",
    )
    parser.add_argument("--protocol", default="dealer2pc")
    parser.add_argument("--queries", type=int, default=7)
    parser.add_argument(
        "--json",
        type=Path,
        help="also keep the figures in this file, in place of those of the same model and network",
    )
    options = parser.parse_args()
    if options.queries < 1:
        parser.error(f"--queries {options.queries}: allowed are whole numbers from 1")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with Calibration() if options.calibrate else nullcontext() as calibration:
        if calibration:
            for _ in range(CALIBRATION_WARM_UP):
                calibration.measure()
        _run(calibration, options, console)


def _run(calibration: Calibration | None, options: argparse.Namespace, console: Console) -> None:
    """Every model on every network; each row is shown, and kept, once it is there."""
    rows: list[dict[str, Any]] = []
    for name in options.models:
        for row in measure(name, calibration, options):
            row |= {
                "command": shlex.join(["python", "-m", "benchmarks.predicted_seconds", *sys.argv[1:]]),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "hardware": hardware(),
                "versions": versions(("torch", "transformers")),
            }
            rows.append(row)
            if options.json:
                _keep(options.json, row)
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
