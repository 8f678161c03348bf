"""record.json: what it holds, that it survives a round trip, and that it refuses what it doesn't know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

import results
from results.record import Record, hardware, versions

PROMISED = (
    "recipe versions hardware seeds task teacher baselines front candidates chosen export".split()
)  # the public interface: other programs read these


def test_round_trip(record: Record, tmp_path: Path) -> None:
    results.write(record, tmp_path / "record.json")
    assert results.read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_promised_fields(record: Record) -> None:
    data = json.loads(record.model_dump_json())
    assert set(PROMISED) <= set(data)
    candidate = data["candidates"][0]
    assert {"id", "architecture", "accuracy", "predicted", "measured", "secure"} <= set(candidate)
    assert set(candidate["accuracy"]) == {"validation", "test"}
    assert {"samples", "accuracy", "agreement", "max_logit_error"} <= set(candidate["secure"])
    assert {"id", "architecture", "proxy", "predicted"} <= set(data["front"][0])


def test_unknown_field_is_refused(record: Record) -> None:
    with pytest.raises(ValidationError, match="trainig"):
        Record.model_validate(record.model_dump() | {"trainig": 1})


def test_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the recipe first"):
        results.read(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="not a record"):
        results.read(tmp_path / "record.json")


def test_find_and_headline(record: Record) -> None:
    assert [model.id for model in record.headline()] == ["teacher", "mpcformer", "c0"]
    assert record.find("c1").title == "student c1"
    with pytest.raises(KeyError, match="c0"):
        record.find("nobody")


def test_the_machine_is_described() -> None:
    machine = hardware()
    assert machine["cores"] >= 1 and machine["processor"]
    assert versions(["pydantic", "no-such-distribution"]).keys() == {"python", "pydantic"}
