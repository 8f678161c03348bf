"""The command: help with examples, JSON in the promised shape, one message and an exit code for wrong input."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from transformers.activations import ACT2FN
from typer.testing import CliRunner

from recipes.cli import app
from recipes.run import shipped

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "run search distill verify export report cost calibrate doctor recipes".split()
runner = CliRunner()


def sordino(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "recipes.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=240)


def plain(text: str) -> str:
    """Without terminal colours and frames, white space made even."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def test_every_command_is_listed() -> None:
    text = plain(runner.invoke(app, ["--help"]).output)
    for name in COMMANDS:
        assert f" {name} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str) -> None:
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: sordino {name}" in plain(result.output).replace("`", "")


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes import run

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "run", full)
    result = runner.invoke(app, ["run", "quickstart"])
    assert result.exit_code == 2
    assert "No space left on device; make room and start the same command again" in plain(result.output)


def test_ctrl_c_says_that_it_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes import run

    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", stopped)
    result = runner.invoke(app, ["run", "quickstart"])
    assert result.exit_code == 130 and "goes on where it was" in plain(result.output)


def test_start_up_is_quick() -> None:
    """Help loads no model library; the best of three, because other programs run beside."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        assert sordino("--help").returncode == 0
        times.append(time.monotonic() - started)
    assert min(times) < 3


def test_no_traceback_unless_asked(tmp_path: Path) -> None:
    result = sordino("run", tmp_path / "nothing.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no recipe") and "quickstart" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in sordino("--debug", "run", tmp_path / "nothing.yaml").stderr


def test_unknown_command_and_option() -> None:
    assert runner.invoke(app, ["rum"]).exit_code == 2
    assert runner.invoke(app, ["run", "quickstart", "--outt", "x"]).exit_code == 2


def test_recipes_are_listed() -> None:
    result = runner.invoke(app, ["recipes", "--json"])
    found = json.loads(result.stdout)
    assert found.keys() == shipped().keys()
    assert all(entry["about"] and Path(entry["path"]).is_file() for entry in found.values())


def test_doctor() -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert {"versions", "hardware", "gpu", "extras", "problems"} == found.keys()
    assert found["versions"]["torch"] and found["hardware"]["cores"] >= 1
    assert result.exit_code == (1 if found["problems"] else 0)


def test_doctor_sees_a_foreign_package(tmp_path: Path) -> None:
    """A distribution that installs a top-level package of the same name is named."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "__init__.py").write_text("")
    info = tmp_path / "other_results-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-results\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("results\n")
    (info / "RECORD").write_text("results/__init__.py,,\n")
    code = "import recipes.doctor as d; print('\\n'.join(d.clashes()))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert "'results' is also installed by other-results" in result.stdout, result.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small BERT as nothing but a config.json."""
    path = tmp_path / "config.json"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    described = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 50}
    path.write_text(json.dumps(described | small))
    return path


def test_cost_of_a_config(config: Path) -> None:
    arguments = ["cost", str(config), "--batch", "2", "--sequence-length", "8", "--network", "lan", "--json"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"] == str(config)
    assert (found["protocol"], found["network"], found["device"]) == ("dealer2pc", "lan", "auto")
    assert found["setup"].keys() == {"bytes", "rounds"} and found["offline"].keys() == {"bytes"}
    assert found["online"].keys() == {"bytes", "rounds", "macs"} and found["online"]["bytes"] > 0
    seconds = found["seconds"]
    assert seconds["total"] == pytest.approx(seconds["compute"] + seconds["network"])
    sites = {entry["site"]: entry for entry in found["by_site"]}
    assert any("attention" in site for site in sites)
    assert runner.invoke(app, arguments[:-1]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--protocol", "dealer"], "did you mean 'dealer2pc'"),
        (["--network", "wam"], "wan"),
        (["--device", "nothing"], "cpu"),
        (["--sequence-length", "9999"], "at most 512 tokens"),
    ],
)
def test_cost_refuses_what_it_does_not_know(config: Path, arguments: list[str], expected: str) -> None:
    result = runner.invoke(app, ["cost", str(config), *arguments])
    assert result.exit_code == 2
    assert expected.lower() in result.output.lower()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("./nowhere", None, "no such directory"),
        ("package:no-such-thing/model", None, "is not installed"),
        ("config.json", "{", "does not load"),
        ("config.json", "{}", "names no model_type"),
        ("config.json", '{"model_type": "no_such_family"}', "does not load"),
    ],
)
def test_cost_of_what_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    result = runner.invoke(app, ["cost", name])
    assert result.exit_code == 2, result.output
    assert expected in result.output


def test_report_needs_a_record(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2 and "run the recipe first" in result.output


def test_export_does_not_overwrite(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    result = runner.invoke(app, ["export", str(write_recipe()), "--to", str(tmp_path)])
    assert result.exit_code == 2 and "it is there already" in result.output


def test_verify_needs_to_know_the_data(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = runner.invoke(app, ["verify", str(tmp_path / "model")])
    assert result.exit_code == 2 and "--recipe RECIPE" in result.output


def test_verify_knows_the_networks(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    (tmp_path / "model").mkdir()
    recipe = write_recipe()
    result = runner.invoke(
        app, ["verify", str(tmp_path / "model"), "--recipe", str(recipe), "--emulate", "wann"]
    )
    assert result.exit_code == 2
    assert "--emulate: no network profile 'wann'. Did you mean 'wan'?" in plain(result.output)


def test_a_broken_profile_fails_before_any_work(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(verify__emulate=["mine.yaml"])
    (tmp_path / "mine.yaml").write_text("round_trip_s: 0.1\n")
    result = runner.invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "at $.verify.emulate" in result.output and "bandwidth_bytes_per_s" in result.output
    assert not (tmp_path / "out" / "data").exists()


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"distill__epohcs": 3}, ["at $.distill.epohcs", "allowed: layerwise_epochs"]),
    ({"search__sites": {"softmax": ["2quat"]}}, ["at $.search.sites", "did you mean '2quad'?"]),
    ({"secure__protocol": "delaer2pc"}, ["at $.secure.protocol", "did you mean 'dealer2pc'?"]),
    ({"teacher__checkpoint": "./missing"}, ["at $.teacher.checkpoint", "no such directory", "missing"]),
    ({"teacher__checkpoint": "package:nope/x"}, ["at $.teacher.checkpoint", "'nope' is not installed"]),
    ({"teacher__task__data__text": "sentence"}, ["at $.teacher.task.data", "'sentence'", "question, kind"]),
    ({"teacher__task__data__source": "gone.csv"}, ["at $.teacher.task.data", "no such file", "gone.csv"]),
    ({"secure__sequence_length": 64}, ["at $.secure.sequence_length", "at most 32"]),
    ({"verify__samples": 5000}, ["at $.verify.samples", "the test split has only"]),
    ({"verify__emulate": ["lan", "wann"]}, ["at $.verify.emulate", "did you mean 'wan'?"]),
    (
        {"verify__emulate": ["lan"], "verify__emulated_samples": 5000},
        ["at $.verify.emulated_samples", "the test split has only"],
    ),
    ({"teacher__train__epochs": 0}, ["at $.teacher", "has no head"]),
    ({"search__only": {"*.layer.7.*": ["exact"]}}, ["at $.search", "*.layer.7.*", "bert.encoder.layer.0"]),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_wrong_input_fails_before_any_work(
    write_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    result = runner.invoke(app, ["run", str(write_recipe(**changes)), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    for text in expected:
        assert text in result.output, result.output
    assert not (tmp_path / "out" / "data").exists()
    assert "Traceback" not in result.output


def test_faults_that_need_the_files_come_together(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(teacher__checkpoint="./missing", teacher__task__data__label="class")
    result = runner.invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert "at $.teacher.checkpoint" in result.output and "at $.teacher.task.data" in result.output


def test_a_line_that_does_not_match_is_named(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(
        teacher__task__data__format="lines", teacher__task__data__pattern="(?P<label>[A-Z]+):(?P<text>.+)"
    )
    result = runner.invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "data.csv:1: the line does not match" in result.output


class Floor(nn.Module):
    """An activation without a secure form."""

    def forward(self, x: Tensor) -> Tensor:
        return x.floor()


def test_unsupported_operations_are_all_listed(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reported with the module it stands in."""
    monkeypatch.setitem(ACT2FN, "floor", Floor)
    recipe = write_recipe()
    path = tmp_path / "checkpoint" / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"hidden_act": "floor"}))
    result = runner.invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "at $.teacher.checkpoint" in result.output and "aten.floor" in result.output
    assert "bert.encoder.layer.0.intermediate" in result.output


def test_a_limit_that_nothing_meets_says_what_can_be_had(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        search__limits={"rounds": 1},
        search__sites={"softmax": ["2quad"], "activation": ["quad"]},
    )
    result = runner.invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "at $.search.limits" in result.output and "cannot be met" in result.output
    assert re.search(r"has \d+", result.output), result.output
    assert not (tmp_path / "out" / "teacher").exists()


def test_an_output_directory_that_is_a_file(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = runner.invoke(app, ["run", str(write_recipe()), "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2 and "cannot be written to" in result.output
