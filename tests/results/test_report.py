"""The report's text: everything a reader needs, nothing from outside the file, and nothing a record could break."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import results
from results import figures, wording
from results.front import front
from results.record import Record


def page_without_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def test_page_is_self_contained(record: Record) -> None:
    html = results.render_html(record)
    page = page_without_scripts(html)
    assert not re.search(r"(src|href)=['\"](?!#|data:)", page), "the page refers to another file"
    assert "@import" not in page and "url(http" not in page
    assert html.count("Plotly.react(") == 1, "the page's own script is there once"


def test_page_says_what_matters(record: Record) -> None:
    page = page_without_scripts(results.render_html(record))
    for text in (
        "94.9 %",
        "13.6 s",
        "They are, in every row.",
        "semi-honest",
        "sordino run quickstart",
        "A CPU, 2 cores",
    ):
        assert text in page, text
    for section in (
        "summary",
        "front",
        "architecture",
        "cost",
        "checked",
        "training",
        "visible",
        "reproduce",
    ):
        assert f'id="{section}"' in page, section


def test_reports_have_the_seconds_of_emulated_networks(record: Record) -> None:
    page, text = page_without_scripts(results.render_html(record)), results.render_markdown(record)
    row = [record.candidates[0].title, *wording.emulation(record.candidates[0].emulated)[0]]
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "| " + " | ".join(row) + " |" in text
    bare = [model.model_copy(update={"emulated": {}}) for model in record.models()]
    without = record.model_copy(
        update={"teacher": bare[0], "baselines": {"mpcformer": bare[1]}, "candidates": bare[2:]}
    )
    for rendered in (results.render_html(without), results.render_markdown(without)):
        assert "Seconds on emulated networks" not in rendered


def test_names_from_a_record_are_escaped(record: Record) -> None:
    nasty = "</script><b>x</b>"
    html = results.render_html(
        record.model_copy(update={"name": nasty, "title": nasty, "recipe_text": nasty})
    )
    assert nasty not in html
    candidate = record.candidates[0].model_copy(update={"title": nasty})
    html = results.render_html(record.model_copy(update={"candidates": [candidate]}))
    assert nasty not in html


def test_protocol_speaks_for_itself(record: Record) -> None:
    page = results.render_html(record.model_copy(update={"disclosure": ["to the dealer: nothing"]}))
    assert "to the dealer: nothing" in page


@pytest.mark.parametrize("parties", ["processes", "threads"])
def test_a_report_says_which_simulation_it_was(record: Record, parties: str) -> None:
    measured = record.teacher.measured
    assert measured is not None
    teacher = record.teacher.model_copy(
        update={"measured": measured.model_copy(update={"simulation": "all at home"})}
    )
    told = record.model_copy(update={"teacher": teacher, "secure": {**record.secure, "parties": parties}})
    for page in (results.render_html(told), results.render_markdown(told)):
        assert "These runs were simulations (all at home)" in page and "protects nothing" in page


def test_figures_of_a_full_record(record: Record) -> None:
    made = figures.all_figures(record)
    assert list(made) == ["front", "trained", "operations", "layers", "training"]
    names = [trace["name"] for trace in made["front"]["data"]]
    assert names == ["tried", "front", "distilled", "named baselines", "chosen"]
    hover = made["front"]["data"][-1]["text"][0]
    assert "power4 ×5" in hover and "quad_channel ×6" in hover


def test_stacked_bars_add_up_to_the_prediction(record: Record) -> None:
    """Operations: each model's bar is as long as its predicted online traffic."""
    figure = figures.operations(record)
    assert figure is not None
    bars = [trace for trace in figure["data"] if trace["meta"] == "bytes"]
    for position, model in enumerate(record.headline()):
        assert model.predicted is not None
        total = sum(float(_values(trace["x"])[position]) for trace in bars)
        assert total == pytest.approx(model.predicted.online.bytes / 1e6)


def test_the_front_reads_by_rising_cost(record: Record) -> None:
    """Whatever the order in which the search found its points."""
    turned = record.model_copy(update={"front": list(reversed(record.front))})
    pages = [results.render_markdown(one).split("## The front")[1].split("##")[0] for one in (record, turned)]
    assert len(record.front) > 1 and pages[0] == pages[1]


def test_equal_accuracies_are_shown_from_near(record: Record) -> None:
    """All right on every example: the axis must not run to 200 %."""
    alike = record.model_copy(deep=True)
    for model in alike.models():
        model.accuracy.test = 1.0
    low, high = figures.trained(alike)["layout"]["yaxis"]["range"]
    assert 0.9 < low < 1.0 < high < 1.1
    assert "range" not in figures.trained(record)["layout"]["yaxis"]


def test_a_figure_without_data_is_left_out(record: Record) -> None:
    bare: dict[str, Any] = {
        "predicted": None,
        "measured": None,
        "secure": None,
        "emulated": {},
        "training": [],
    }
    empty = record.model_copy(
        update={
            "teacher": record.teacher.model_copy(update=bare),
            "baselines": {},
            "front": [],
            "trials": [],
            "candidates": [c.model_copy(update=bare) for c in record.candidates],
        }
    )
    assert figures.all_figures(empty) == {}
    html = results.render_html(empty)
    assert "plot-" not in page_without_scripts(html).split("</style>")[1]
    assert results.render_markdown(empty)


def test_kl_of_zero_has_a_place_on_the_log_axis(record: Record) -> None:
    figure = front(record)
    assert figure is not None
    assert all(min(_values(trace["y"])) > 0 for trace in figure["data"])


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("bert.encoder.layer.3.attention.self.softmax", ("layer 3", "attention.self.softmax")),
        ("bert.embeddings.LayerNorm", ("embeddings", "LayerNorm")),
        ("classifier", ("classifier", "classifier")),
        ("", ("inputs", "inputs")),
        ("h.11", ("layer 11", "layer")),
    ],
)
def test_sites_group_by_layer(site: str, expected: tuple[str, str]) -> None:
    assert figures.split_site(site) == expected


def test_markdown_tables_are_well_formed(record: Record) -> None:
    text = results.render_markdown(record)
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(widths) == 1, block
    assert "| chosen student (c0) | online |" in text


def test_reports_are_written_whole(record: Record, tmp_path: Path) -> None:
    written = results.write_reports(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_card_has_front_matter_the_hub_reads(record: Record) -> None:
    text = results.model_card(record)
    _, front, body = text.split("---\n", 2)
    described = yaml.safe_load(front)
    assert described["library_name"] == "transformers"
    assert described["pipeline_tag"] == "text-classification"
    assert described["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(0.949)
    assert "base_model" not in described, "a package's path is no repository of the hub"
    assert "trust_remote_code=True" in body and "power4" in body


def test_card_of_a_model_from_the_hub_names_its_base(record: Record) -> None:
    teacher = {"teacher": {"checkpoint": "hub:google-bert/bert-base-uncased"}}
    text = results.model_card(record.model_copy(update={"recipe": teacher}))
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "google-bert/bert-base-uncased"


def test_card_needs_a_choice(record: Record) -> None:
    with pytest.raises(ValueError, match="chosen"):
        results.model_card(record.model_copy(update={"chosen": None}))


def _values(axis: object) -> list[float]:
    """Values of a plotly array, which may be packed."""
    if isinstance(axis, dict):
        import base64

        import numpy as np

        return [float(v) for v in np.frombuffer(base64.b64decode(axis["bdata"]), dtype=axis["dtype"])]
    return [float(v) for v in json.loads(json.dumps(axis))]
