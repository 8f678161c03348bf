"""A tiny random BERT with sharp scores, a sample, and a price table, each made once.

The prices are made up, so that no test waits for the engine; test_pricing.py checks a table against real
predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import cost_models
import distill
import nas
from secure_eval.measurement import Work

#: (bytes, rounds) online of one site.
PRICES: dict[str, dict[str, tuple[int, int]]] = {
    "softmax": {"exact": (90_000, 30), "2quad": (20_000, 9), "2relu": (35_000, 14), "power4": (24_000, 11)},
    "activation": {
        "exact": (60_000, 12),
        "quad": (4_000, 1),
        "quad_channel": (4_000, 1),
        "relu": (21_000, 7),
    },
}
SPACE: dict[str, list[str]] = {
    "softmax": ["exact", "2quad", "power4"],
    "activation": ["exact", "quad", "quad_channel"],
}


@pytest.fixture(scope="session")
def teacher() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        max_position_embeddings=16,
        initializer_range=0.4,
    )
    model = BertForSequenceClassification(config).eval()
    model.config._attn_implementation = "eager"
    return model


@pytest.fixture(scope="session")
def batches() -> list[dict[str, torch.Tensor]]:
    """Eight batches of eight sentences, 4 to 11 tokens, some padded."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(8):
        length = 4 + index
        mask = torch.ones(8, length, dtype=torch.long)
        mask[:3, -2:] = 0
        made.append(
            {
                "input_ids": torch.randint(0, 60, (8, length), generator=generator),
                "attention_mask": mask,
                "labels": torch.zeros(8, dtype=torch.long),
            }
        )
    return made


@pytest.fixture(scope="session")
def calibration(teacher: Any, batches: list[dict[str, torch.Tensor]]) -> distill.Calibration:
    return distill.calibrate(teacher, batches)


@pytest.fixture(scope="session")
def example_inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.zeros(1, 6, dtype=torch.long),
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
    }


@pytest.fixture(scope="session")
def space() -> nas.SearchSpace:
    return nas.SearchSpace(SPACE)


def made_up_cost(student: Any, example_inputs: Any, protocol: str) -> cost_models.Cost:
    """What `cost_models.predict` would give if `PRICES` were true, at six tokens."""
    carried = distill.architecture_of(student)
    tokens = example_inputs["input_ids"].shape[1]
    priced = [PRICES[site.kind][carried.variant(site.name)] for site in distill.find_sites(student)]
    online = cost_models.Phase(
        bytes=100_000 + sum(of_site[0] for of_site in priced) * tokens // 6,
        rounds=20 + sum(of_site[1] for of_site in priced),
        path_bytes=100_000 + sum(of_site[0] for of_site in priced) * tokens // 6,
        work={"product 64": Work(1, 1e6)},
    )
    return cost_models.Cost(
        cost_models.Phase(bytes=5_000, rounds=1), cost_models.Phase(bytes=10, rounds=1), online
    )


@pytest.fixture(scope="session")
def made_up_prices() -> Any:
    """Stands in for the module `cost_models` in `nas.pricing`; seconds stay the real ones."""
    return SimpleNamespace(predict=made_up_cost, seconds=cost_models.seconds)


@pytest.fixture(scope="session")
def table(
    teacher: Any,
    calibration: distill.Calibration,
    space: nas.SearchSpace,
    example_inputs: dict[str, torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
    made_up_prices: Any,
) -> nas.CostTable:
    run_dir = tmp_path_factory.mktemp("prices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.pricing.cost_models", made_up_prices)
        return nas.build_cost_table(teacher, calibration, space, example_inputs, run_dir=run_dir)


@pytest.fixture(scope="session")
def make_evaluator(
    teacher: Any,
    calibration: distill.Calibration,
    batches: list[dict[str, torch.Tensor]],
    space: nas.SearchSpace,
) -> Callable[..., nas.Evaluator]:
    def make(**changes: Any) -> nas.Evaluator:
        sites = distill.find_sites(teacher)
        return nas.Evaluator(teacher, calibration, batches, space.options(sites), **changes)

    return make


@pytest.fixture
def run_search(
    teacher: Any,
    calibration: distill.Calibration,
    batches: list[dict[str, torch.Tensor]],
    space: nas.SearchSpace,
    table: nas.CostTable,
) -> Callable[..., nas.Front]:
    """`nas.search` on the tiny model with the ready table: run_search(run_dir, trials=…, …)."""

    def run(run_dir: Path, **changes: Any) -> nas.Front:
        given = {"cost_table": table, "trials": 24, "space": space, **changes}
        return nas.search(teacher, calibration, batches, given.pop("space"), run_dir=run_dir, **given)

    return run
