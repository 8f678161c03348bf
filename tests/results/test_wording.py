"""Numbers and architectures read the same everywhere."""

from __future__ import annotations

import pytest

from results import wording
from results.record import Record


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (85_000_000_000, "85 GB"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert wording.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (2e-5, "20 µs"),
        (0.0123, "12.3 ms"),
        (1.5, "1.5 s"),
        (49.14, "49.1 s"),
        (200, "3 min 20 s"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert wording.seconds(value) == text


def test_a_network_from_a_file_reads_as_its_name() -> None:
    assert wording.network_title("wan") == "WAN"
    assert wording.network_title("/home/me/two sites.yaml") == "TWO SITES"


def test_ratios_never_divide_by_zero() -> None:
    assert wording.ratio(1.0, 0.0) is None
    assert wording.times(wording.ratio(14.2, 2.0)) == "7.1×"
    assert wording.times(None) == "–"


def test_architecture_summary(record: Record) -> None:
    chosen = record.find("c0")
    text = wording.architecture_summary(chosen.architecture, record.task["sites"])
    assert text == "softmax: power4 ×5, 2quad ×1 · activation: quad_channel ×6"
    assert (
        wording.architecture_summary({}, record.task["sites"]) == "softmax: exact ×6 · activation: exact ×6"
    )
    assert wording.architecture_summary({"elsewhere": "relu"}, []) == "other: relu ×1"


def test_summary_has_a_row_for_each_headline_model(record: Record) -> None:
    header, rows = wording.summary(record)
    assert [row[0] for row in rows] == ["teacher", "MPCFormer (Quad + 2Quad)", "chosen student (c0)"]
    assert all(len(row) == len(header) for row in rows)
    assert {"online bytes", "rounds", "predicted LAN", "predicted WAN", "measured loopback"} <= set(header)


def test_what_was_checked_is_a_column_only_where_models_differ(record: Record) -> None:
    """The same words in each row made the table wider than the page."""
    assert "values checked" not in wording.summary(record)[0]
    assert wording.summary_note(record).endswith(f"was checked: {record.teacher.secure.checked}.")
    secure = record.teacher.secure.model_copy(update={"checked": "not checked"})
    other = record.model_copy(update={"teacher": record.teacher.model_copy(update={"secure": secure})})
    header, rows = wording.summary(other)
    assert header[-1] == "values checked" and rows[0][-1] == "not checked" != rows[1][-1]
    assert wording.summary_note(other) == wording.SUMMARY_NOTE


def test_summary_of_a_run_that_verified_nothing(record: Record) -> None:
    bare = record.teacher.model_copy(
        update={"predicted": None, "measured": None, "secure": None, "emulated": {}}
    )
    header, rows = wording.summary(record.model_copy(update={"teacher": bare}))
    assert rows[0][2:] == ["–"] * (len(header) - 2)


def test_emulated_seconds_read_beside_the_predicted(record: Record) -> None:
    online, offline = wording.emulation(record.find("c0").emulated)
    assert len(online) == len(offline) == len(wording.EMULATION_HEADER)
    assert online[:2] == ["WAN", "online"] and online[-3:] == ["+3.6 %", "3", "yes"]
    assert offline[1:4] == ["offline", "0 s", "12 ms"] and offline[4] == "11 ms to 13 ms"
    assert offline[5] == "–", "nothing predicted, so no deviation"


def test_comparison_marks_a_difference(record: Record) -> None:
    assert all(row["equal"] for row in wording.comparison(record))
    student = record.candidates[0]
    assert student.measured is not None
    online = student.measured.online.model_copy(update={"bytes": student.measured.online.bytes + 8})
    wrong = student.model_copy(update={"measured": student.measured.model_copy(update={"online": online})})
    rows = wording.comparison(record.model_copy(update={"candidates": [wrong]}))
    assert [(row["model"], row["phase"]) for row in rows if not row["equal"]] == [(wrong.title, "online")]


def test_grid_has_layers_as_rows(record: Record) -> None:
    kinds, rows = wording.grid(record, record.find("c0").architecture)
    assert kinds == ["softmax", "activation"]
    assert rows[0] == ("layer 0", ["power4", "quad_channel"])
    assert rows[5] == ("layer 5", ["2quad", "quad_channel"])


def test_headline_without_a_choice(record: Record) -> None:
    text = wording.headline(record.model_copy(update={"chosen": None, "choice": {"reason": "latency"}}))
    assert "No student met the limits" in text and "latency" in text


def test_natural_order() -> None:
    assert sorted(["layer 10", "layer 2"], key=wording.natural) == ["layer 2", "layer 10"]
