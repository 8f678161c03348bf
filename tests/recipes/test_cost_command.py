"""`sordino cost`: one answer, two side by side, a sweep with its page, money, and other systems' estimates."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cost_models
from cost_models import peers
from cost_models.peers.estimate import Estimate, NotPriced
from recipes import cost_printing, costing, sweep_printing, sweeping
from recipes.cli import app
from recipes.errors import RecipeError
from recipes.subjects import Subject

runner = CliRunner()
SHAPE = ["--sequence-length", "8", "--batch", "2"]


def write_config(path: Path, **changes: Any) -> Path:
    """A small BERT as nothing but a config.json."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    described = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 50}
    path.write_text(json.dumps(described | small | changes))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_config(tmp_path_factory.mktemp("model") / "config.json"))


def ask(*arguments: str | Path) -> dict[str, Any]:
    result = runner.invoke(app, ["cost", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def tell(*arguments: str | Path) -> str:
    """What people read, white space made even."""
    result = runner.invoke(app, ["cost", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(re.sub(r"[│┃┏┓┗┛━┡┩┳╇└┘┴─]", " ", result.stdout).split())


def without(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    """An answer less some keys, and less memory, which may differ by a few bytes from one count to the next, and where profiles lie."""
    kept = {key: value for key, value in found.items() if key not in (*keys, "memory", "device_profile")}
    kept["phases"] = {
        name: {k: v for k, v in phase.items() if k != "peak_memory_bytes"}
        for name, phase in found["phases"].items()
    }
    return kept


@pytest.fixture(scope="module")
def one(config: str) -> dict[str, Any]:
    return ask(config, *SHAPE, "--prices", "cloud", "--queries-per-setup", "1000")


def test_an_answer_is_the_cost_model_s(config: str, one: dict[str, Any]) -> None:
    shaped = costing.Models().shaped(config, 2, 8)
    cost = cost_models.predict(shaped.program, protocol="dealer2pc")
    assert one["setup"] == {"bytes": cost.setup.bytes, "rounds": cost.setup.rounds}
    assert one["online"] == {
        "bytes": cost.online.bytes,
        "rounds": cost.online.rounds,
        "macs": cost.online.macs,
    }
    assert one["offline"] == {"bytes": cost.offline.bytes}
    for phase in ("setup", "offline", "online"):
        expected = cost_models.seconds(cost, "wan", "cpu", phase).to_dict()
        assert one["phases"][phase]["seconds"] == pytest.approx(expected)
        assert one["phases"][phase]["bytes"] == getattr(cost, phase).bytes
        parties = [memory for role, memory in cost.memory.items() if role.startswith("party")]
        most = max(getattr(memory, f"{phase}_peak_bytes") for memory in parties)
        assert one["phases"][phase]["peak_memory_bytes"] == pytest.approx(most, rel=0.01) and most > 0
    assert one["memory"]["peak_bytes"] == pytest.approx(cost.peak_memory_bytes, rel=0.01)
    assert one["memory"]["stored_bytes"] == pytest.approx(cost.stored_bytes, rel=0.01)
    assert one["seconds"] == one["phases"]["online"]["seconds"]
    assert one["link"] == {"round_trip_s": 0.04, "bandwidth_bytes_per_s": 50e6}
    sums = [sum(entry["bytes"] for entry in one[table]) for table in ("by_site", "by_operation")]
    assert sums[0] == sums[1] > 0
    gelu = next(entry for entry in one["by_operation"] if entry["operation"] == "gelu")
    expected = cost_models.seconds(cost.by_operation["gelu"], "wan", "cpu").to_dict()
    assert gelu["seconds"] == pytest.approx(expected) and gelu["seconds"]["network"] > 0
    money = cost_models.money(cost, "wan", "cpu", "cloud", queries_per_setup=1000)
    assert one["money"] == json.loads(json.dumps(money.to_dict()))


def test_people_read_the_same(config: str, one: dict[str, Any]) -> None:
    text = tell(config, *SHAPE, "--prices", "cloud", "--queries-per-setup", "1000")
    assert f"set-up, once a model {cost_printing.wording.size(one['setup']['bytes'])}" in text
    assert (
        "offline, a query" in text
        and "gelu" in text
        and "bert.encoder.layer.*.attention.output.dense" in text
    )
    assert "set-up, for 1,000 queries" in text and "US$ 0.2 a machine-hour" in text
    assert cost_printing.cents(one["money"]["total"]["total_cents"]) in text
    assert "round figures" in text  # whose prices these are
    assert f"One online query: {cost_printing.wording.seconds(one['seconds']['total'])}" in text


def test_two_protocols_side_by_side(config: str, one: dict[str, Any]) -> None:
    arguments = [config, *SHAPE, "--compare", "dealer2pc", "replicated3pc", "--prices", "cloud"]
    found = ask(*arguments)
    first, second = found["compare"]
    assert (first["protocol"], second["protocol"]) == ("dealer2pc", "replicated3pc")
    assert without(first, "money") == without(one, "money")
    alone = ask(config, *SHAPE, "--protocol", "replicated3pc", "--prices", "cloud")
    assert without(second) == without(alone)
    ratios = found["ratios"]
    assert ratios["online"]["bytes"] == second["online"]["bytes"] / first["online"]["bytes"]
    assert ratios["seconds"]["total"] == second["seconds"]["total"] / first["seconds"]["total"]
    assert ratios["offline"]["bytes"] == 0 and ratios["setup"]["macs"] is None
    total = [answer["money"]["total"]["total_cents"] for answer in (first, second)]
    assert ratios["money"]["total_cents"] == total[1] / total[0]
    text = tell(*arguments)
    rounds = [answer["online"]["rounds"] for answer in (first, second)]
    ratio = cost_printing.wording.times(rounds[1] / rounds[0])
    assert f"online, rounds {rounds[0]} {rounds[1]} {ratio}" in text
    assert "dealer2pc replicated3pc second / first" in text


def test_two_models_side_by_side(config: str, tmp_path: Path) -> None:
    wider = str(write_config(tmp_path / "wider.json", intermediate_size=64))
    found = ask("--compare", config, wider, *SHAPE)
    assert [answer["model"] for answer in found["compare"]] == [config, wider]
    assert without(found["compare"][1]) == without(ask(wider, *SHAPE))
    assert found["ratios"]["online"]["bytes"] > 1
    mixed = ask(config, "--compare", "replicated3pc", wider, *SHAPE)
    assert [(a["model"], a["protocol"]) for a in mixed["compare"]] == [
        (config, "replicated3pc"),
        (wider, "dealer2pc"),
    ]


def test_a_sweep_of_shapes_asks_each_question(config: str) -> None:
    found = ask(config, "--sweep", "sequence_length=16,8", "--batch", "2")
    assert found["sweep"] == {"parameter": "sequence_length", "values": [16, 8]}
    for point, length in zip(found["points"], (16, 8), strict=True):
        alone = ask(config, "--batch", "2", "--sequence-length", str(length))
        assert without(point) == without(alone, "by_site")
    batches = ask(config, "--sweep", "batch=1,3", "--sequence-length", "8")["points"]
    assert batches[0]["online"]["bytes"] < batches[1]["online"]["bytes"]


def test_a_sweep_of_the_network_counts_once(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    predict = cost_models.predict
    monkeypatch.setattr(cost_models, "predict", lambda *a, **k: counted.append(1) or predict(*a, **k))
    found = ask(config, *SHAPE, "--sweep", "round_trip_s=0.001,0.041")
    near, far = found["points"]
    assert len(counted) == 1 and near["online"] == far["online"]
    assert far["seconds"]["network"] - near["seconds"]["network"] == pytest.approx(
        near["online"]["rounds"] * 0.02
    )
    assert near["link"]["round_trip_s"] == 0.001
    slow, fast = ask(config, *SHAPE, "--sweep", "bandwidth_bytes_per_s=1e5,1e6")["points"]
    assert slow["seconds"]["network"] - fast["seconds"]["network"] == pytest.approx(
        slow["phases"]["online"]["path_bytes"] * (1e-5 - 1e-6)
    )


def page_figures(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found.group(1))
    return figures


def test_a_sweep_is_drawn(config: str, tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    arguments = [config, "--sweep", "sequence_length=16,8,4", "--prices", "cloud"]
    arguments += ["--compare", "dealer2pc", "replicated3pc"]
    found = ask(*arguments, "--plot", page)
    text = page.read_text(encoding="utf-8")
    assert "Plotly" in text and not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", text)
    figures = page_figures(page)
    assert figures.keys() == {"seconds", "bytes", "cents"}
    curves = {trace["name"]: trace for trace in figures["seconds"]["data"]}
    for series in found["compare"]:
        ordered = series["points"][::-1]
        drawn = curves[series["protocol"]]
        assert drawn["x"] == [4, 8, 16]
        assert drawn["y"] == pytest.approx([point["seconds"]["total"] for point in ordered])
        parts = curves[f"{series['protocol']}, compute only"]
        assert parts["y"] == pytest.approx([point["seconds"]["compute"] for point in ordered])
    assert {trace["name"] for trace in figures["bytes"]["data"]} == {
        "dealer2pc, online",
        "dealer2pc, offline",
        "replicated3pc, online",  # it sends nothing offline
    }
    shown = tell(*arguments)
    assert shown.count("░") > 40 and shown.count("sequence_length") == 2
    assert cost_printing.wording.size(found["compare"][1]["points"][0]["online"]["bytes"]) in shown


def test_layers_are_added_up() -> None:
    seconds = {"compute": 1.0, "network": 2.0, "total": 3.0}
    entries = [
        {"site": site, "bytes": 5, "rounds": 2, "seconds": seconds}
        for site in ("layer.0.norm", "layer.11.norm", "norm2", "layer.3")
    ]
    found = {entry["site"]: entry for entry in cost_printing.alike(entries, "site")}
    assert found.keys() == {"layer.*.norm", "norm2", "layer.*"}
    both = {"places": 2, "bytes": 10, "rounds": 4, "seconds": {k: 2 * v for k, v in seconds.items()}}
    assert found["layer.*.norm"] == {"site": "layer.*.norm"} | both
    assert entries[0]["seconds"] == {"compute": 1.0, "network": 2.0, "total": 3.0}


def test_only_language_models_generate(config: str) -> None:
    found = runner.invoke(app, ["cost", config, *SHAPE, "--new-tokens", "4"])
    assert found.exit_code == 2 and "keeps no keys and values" in found.output


def test_generation_token_by_token(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    described = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 20, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(described | {"bos_token_id": 0, "eos_token_id": 0}))
    place = (str(tmp_path), "--sequence-length", "6", "--new-tokens", "3")
    told = ask(*place)["generation"]
    bytes_of = {name: told[name]["online"]["bytes"] for name in ("prefill", "first", "last", "total")}
    assert bytes_of["prefill"] > bytes_of["last"] > bytes_of["first"] > 0
    assert bytes_of["total"] == bytes_of["prefill"] + bytes_of["first"] + bytes_of["last"]
    printed = runner.invoke(app, ["cost", *place]).output
    assert "all 3 new tokens" in printed and "first further token" in printed


def test_bars_are_to_scale() -> None:
    assert sweep_printing.bar({"compute": 1.0, "network": 3.0, "total": 4.0}, 4.0) == "█" * 9 + "░" * 27
    assert sweep_printing.bar({"compute": 1.0, "network": 1.0, "total": 2.0}, 4.0) == "█" * 9 + "░" * 9
    assert sweep_printing.bar({"compute": 0.0, "network": 0.0, "total": 0.0}, 0.0) == ""


@pytest.fixture
def made_up_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two systems with made-up figures: one whose seconds are known, and one whose aren't."""

    def estimate(program: Any, system: str) -> Estimate:
        known = system == "swift"
        return Estimate(
            system,
            "made up",
            parties=2,
            servers=2,
            setup_bytes=10,
            offline_bytes=2_000_000,
            online_bytes=len(program.nodes) * 1_000_000,
            rounds=7,
            key_storage_bytes=0,
            machine="gpu" if known else "cpu",
            compute_s=1.5 if known else None,
            compute_hardware="an abacus" if known else "",
            not_priced=() if known else (NotPriced("sort", 2, 10, "head"),),
            notice="Only <estimates> of others.",
        )

    monkeypatch.setattr(peers, "names", lambda: ["swift", "silent"], raising=False)
    monkeypatch.setattr(peers, "estimate", estimate, raising=False)


def test_other_systems_are_estimates_in_every_output(
    config: str, made_up_systems: None, tmp_path: Path
) -> None:
    found = ask(config, *SHAPE, "--systems", "--prices", "cloud")
    swift, silent = found["systems"]
    assert (swift["system"], silent["system"]) == ("swift", "silent")
    waiting = 7 * 0.02 + swift["online_bytes"] / 50e6
    assert swift["seconds"] == pytest.approx({"compute": 1.5, "network": waiting, "total": 1.5 + waiting})
    assert swift["money"]["accelerated"] and swift["money"]["total"]["total_cents"] > 0
    assert silent["seconds"]["total"] is None and silent["money"]["total"]["total_cents"] is None
    assert swift["notice"] == silent["notice"] == "Only <estimates> of others."
    text = tell(config, *SHAPE, "--systems", "--prices", "cloud")
    assert "swift (estimate)" in text and "dealer2pc (counted)" in text
    assert text.count("Only <estimates> of others.") == 1 and "not in its figures: 2 × sort" in text
    assert "compute on an abacus" in text
    page = tmp_path / "page.html"
    swept = [config, "--system", "swift", "--sweep", "batch=1,2", "--sequence-length", "8", "--plot", page]
    text = tell(*swept)
    assert "swift (estimate)" in text and "Only <estimates> of others." in text and "silent" not in text
    curve = next(t for t in page_figures(page)["seconds"]["data"] if t["name"] == "swift (estimate)")
    assert curve["line"]["dash"] == "dash" and len(curve["y"]) == 2
    assert html.escape("Only <estimates> of others.") in page.read_text(encoding="utf-8")
    compared = tell(config, *SHAPE, "--compare", "dealer2pc", "replicated3pc", "--system", "silent")
    assert "Only <estimates> of others." in compared and "silent (estimate)" in compared


def test_the_systems_there_are(config: str) -> None:
    """Every one answers, and says that it is an estimate."""
    found = ask(config, *SHAPE, "--system", "all")
    assert tuple(entry["system"] for entry in found["systems"]) == peers.names()
    for entry in found["systems"]:
        assert "stimate" in entry["notice"] and entry["online_bytes"] > 0
        assert entry["seconds"]["network"] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--sweep", "sequence_lenth=8,16"],
            "'sequence_lenth' cannot be swept, did you mean 'sequence_length'",
        ),
        (["--sweep", "batch"], "--sweep 'batch': NAME=VALUE"),
        (["--sweep", "batch=1,two"], "--sweep batch: 'two' is not allowed: a whole number, 1 or more"),
        (["--sweep", "batch=0,1"], "'0' is not allowed"),
        (["--sweep", "batch=4"], "one value; two or more"),
        (["--sweep", "batch=4,4"], "4 is given twice"),
        (["--sweep", "round_trip_s=-1,1"], "'-1' is not allowed: a number, 0 or more"),
        (["--sweep", "bandwidth_bytes_per_s=0,1"], "'0' is not allowed: a number above 0"),
        (["--sweep", "bandwidth_bytes_per_s=nan,1"], "'nan' is not allowed"),
        (["--plot", "x.html"], "--plot x.html: draws a sweep"),
        (["--sweep", "batch=1,2", "--plot", "x.png"], "its name ends in .html"),
        (["--prices", "clod"], "Did you mean 'cloud'"),
        (["--network", "wam"], "Did you mean 'wan'"),
        (["--protocol", "dealer"], "--protocol: protocol 'dealer' is not known, did you mean 'dealer2pc'"),
        (["--compare", "dealer2pc", "replicated3p"], "--compare: 'replicated3p' is neither a protocol"),
        (["--compare", "plain", "plain"], "both are the same"),
        (["--compare", "other/a", "other/b"], "names two models; leave one of the three out"),
        (
            ["--system", "swft"],
            "'swft' is no comparison system, did you mean 'swift'? allowed: swift, silent, all",
        ),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    config: str,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    made_up_systems: None,
    tmp_path: Path,
) -> None:
    def work(name: str) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(costing, "skeleton", work)
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["cost", config, *arguments])
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, []), result.output
    assert expected in result.output, result.output


def test_a_shape_that_does_not_fit_is_refused_before_the_others_are_counted(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_models, "predict", lambda *a, **k: pytest.fail("something was counted"))
    result = runner.invoke(app, ["cost", config, "--sweep", "sequence-length=8,9999"])
    assert result.exit_code == 2
    assert "--sweep sequence_length:" in result.output and "at most 512 tokens" in result.output


def test_a_model_is_needed(config: str) -> None:
    for arguments, expected in (
        ([], "MODEL is missing"),
        (["--compare", "plain", "dealer2pc"], "--compare plain: a protocol needs a MODEL"),
    ):
        result = runner.invoke(app, ["cost", *arguments])
        assert result.exit_code == 2 and expected in result.output


def test_a_model_without_tokens_has_no_sequence_length(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    path.write_text(
        json.dumps(
            {"model_type": "vit", "architectures": ["ViTModel"], "image_size": 16, "patch_size": 8} | small
        )
    )
    wanted = sweeping.parse("sequence_length=8,16")
    setting = costing.Setting.named("lan", "cpu")
    with pytest.raises(RecipeError, match="takes no tokens"):
        subject = Subject(str(path), "dealer2pc")
        sweeping.sweep(costing.Models(), [subject], setting, wanted, lambda *_: None)


Say = Callable[[float | None], str]


def test_a_curve_with_nothing_to_show_is_left_out() -> None:
    from results.sweep_plot import Curve, figure

    say: Say = str
    curves = [Curve("zeros", [0, 0], "red"), Curve("unknown", [None, None], "red")]
    assert figure("batch", [1, 2], curves, say) is None
    drawn = figure("batch", [1, 2], [*curves, Curve("some", [None, 3.0], "red", estimate=True)], say)
    assert drawn is not None and [trace["name"] for trace in drawn["data"]] == ["some"]
