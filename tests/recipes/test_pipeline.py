"""A whole run on a tiny model: every stage for real, resumed after SIGKILL at every place, and used afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import forked

ROOT = Path(__file__).resolve().parents[2]

STAGES = ("data", "teacher", "calibrate", "search", "distill", "choice", "verify", "export", "report")
FOLDERS = {"choice": ("verify",), "export": ("export", "model"), "report": ()}

DRIVER = """
import dataclasses, os, signal, sys
from recipes import cli, rundir

stage, moment, *arguments = sys.argv[1:]
original = rundir.RunDirectory.run

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def run(self, step, progress):
    calls = 0
    def counted(done, total, message):
        nonlocal calls
        calls += 1
        if calls == (2 if moment == "middle" else int(moment) if moment.isdigit() else 0):
            die()
        progress(done, total, message)
    if not f"{step.name}/".startswith(f"{stage}/"):
        return original(self, step, progress)
    if moment == "begun":
        step = dataclasses.replace(step, work=die)
    if moment == "unmarked":
        work = step.work
        step = dataclasses.replace(step, work=lambda callback: (work(callback), die()))
    return original(self, step, counted)

rundir.RunDirectory.run = run
sys.argv = ["sordino", *arguments]
cli.main()
"""
"""The command, killed by SIGKILL in a stage: before its first step's work, amid it (at a step's second report of progress, or
at the one of the number given), or before it is marked as done."""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def sordino(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forked.run(forked.COMMAND, *map(str, arguments), env=environment(), cwd=cwd)


def killed(stage: str, moment: str, *arguments: str | Path) -> None:
    """Run the command until it kills itself in `stage`."""
    result = forked.run(DRIVER, stage, moment, *map(str, arguments), env=environment())
    assert result.returncode == -9, f"not killed in {stage} ({moment}):\n{result.stdout}{result.stderr}"


def record_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "record.json").read_text())
    return found


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record must not depend on whether, or where, the run was killed."""

    def costs(model: dict[str, Any]) -> dict[str, Any]:
        measured = {phase: model["measured"][phase]["bytes"] for phase in ("setup", "offline", "online")}
        scores = {"accuracy": model["accuracy"], "secure": model["secure"]["accuracy"]}
        return {"id": model["id"], "architecture": model["architecture"], "measured": measured, **scores}

    models = [record["teacher"], *record["baselines"].values()]
    models += [model for model in record["candidates"] if model["id"] == record["chosen"]]
    front = [(point["id"], round(point["proxy"]["kl"], 6)) for point in record["front"]]
    return {"models": [costs(model) for model in models], "front": front, "chosen": record["chosen"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, make_recipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "near.yaml").write_text("round_trip_s: 0.002\nbandwidth_bytes_per_s: 1e7\n")
    path: Path = make_recipe(
        folder, verify__max_drop=0.5, verify__emulate=["near.yaml"], verify__emulated_samples=1
    )
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run directory of an uninterrupted run, and how the command ended."""
    out = recipe.parent / "out"
    result = sordino("run", recipe, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result


@pytest.fixture
def copy(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished run directory, free to be changed."""
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out"


def test_the_run_leaves_what_it_promises(finished: tuple[Path, Any]) -> None:
    out, result = finished
    for name in ("record.json", "report.html", "report.md", "model/README.md", "model/model.safetensors"):
        assert (out / name).stat().st_size > 0, name
    for text in ("teacher", "MPCFormer as published", "chosen student", "online bytes", "predicted WAN"):
        assert text in result.stdout, text
    assert not (out / ".lock").exists()
    assert not list(out.glob("**/*.tmp")) and not (out / "distill/.teacher").exists()


def test_predicted_counts_are_the_measured_ones(finished: tuple[Path, Any]) -> None:
    record = record_of(finished[0])
    verified = [record["teacher"], *record["baselines"].values()]
    verified += [model for model in record["candidates"] if model["measured"]]
    assert len(verified) >= 3
    for model in verified:
        assert model["equal"] is True
        for phase in ("setup", "offline", "online"):
            for count in ("bytes", "rounds"):
                assert model["predicted"][phase][count] == model["measured"][phase][count], (
                    model["id"],
                    phase,
                )
        assert model["measured"]["constant"] is True
        assert model["secure"]["max_logit_error"] < 0.1


def test_emulated_seconds_stand_beside_the_predicted(finished: tuple[Path, Any], recipe: Path) -> None:
    record = record_of(finished[0])
    network = str(recipe.parent / "near.yaml")
    verified = [record["teacher"], *record["baselines"].values()]
    verified += [model for model in record["candidates"] if model["measured"]]
    for model in record["candidates"]:
        assert bool(model["emulated"]) == bool(model["measured"])
    for model in verified:
        found = model["emulated"][network]
        assert (found["round_trip_s"], found["bandwidth_bytes_per_s"]) == (0.002, 1e7)
        assert found["equal"] is True and found["queries"] == 1
        online, counted = found["online"], model["measured"]["online"]
        least = counted["rounds"] * 0.001
        assert online["measured"] >= least and online["predicted"] >= least + counted["bytes"] / 1e7
        assert online["deviation"] == pytest.approx(online["measured"] / online["predicted"] - 1)
        assert online["least"] == online["measured"] == online["most"], "one query"
    assert "Over emulated networks" in finished[1].stdout
    for name in ("report.html", "report.md"):
        assert "Seconds on emulated networks" in (finished[0] / name).read_text()


def test_emulated_queries_go_on_after_a_kill(copy: Path, recipe: Path) -> None:
    """More of them are asked for: the verified models stay, and a kill loses no query that was answered."""
    changed = yaml.safe_load(recipe.read_text())
    changed["verify"]["emulated_samples"] = 3
    other = recipe.with_name("emulated.yaml")
    other.write_text(yaml.safe_dump(changed))
    gone = copy / "verify" / "emulated" / "near" / "a student of an earlier front"
    gone.mkdir(parents=True)
    killed("verify/emulated", "3", "run", other, "--out", copy)
    logs = list((copy / "verify" / "emulated").glob("*/teacher/queries.jsonl"))
    assert len(logs) == 1
    answered = logs[0].read_text()
    assert answered.count("\n") == 2
    result = sordino("run", other, "--out", copy)
    assert result.returncode == 0, result.stderr
    for line in ("predict and choose", "verify teacher", "verify MPCFormer as published"):
        assert f"{line}: done before" in result.stderr
    assert logs[0].read_text().startswith(answered) and logs[0].read_text().count("\n") == 3
    assert not gone.exists()
    for model in record_of(copy)["teacher"], record_of(copy)["baselines"]["mpcformer"]:
        (found,) = model["emulated"].values()
        assert found["queries"] == 3 and found["equal"] is True


def test_the_choice_keeps_to_its_limits(finished: tuple[Path, Any]) -> None:
    record = record_of(finished[0])
    chosen = next(model for model in record["candidates"] if model["id"] == record["chosen"])
    compared = json.loads((finished[0] / "verify/choice.json").read_text())["compared"]
    assert chosen["within_limits"] is True and chosen["ranges"]["fits"] is True
    for figure in ("bytes", "rounds"):
        assert compared[chosen["id"]][figure] <= compared["mpcformer"][figure]


def test_only_verified_models_have_seen_the_test_split(finished: tuple[Path, Any]) -> None:
    record = record_of(finished[0])
    for model in record["candidates"]:
        assert (model["accuracy"]["test"] is not None) == (model["id"] == record["chosen"])


def test_the_teacher_learned(finished: tuple[Path, Any]) -> None:
    """Labels follow from the first word, so a run that trains, splits and scores rightly is nearly perfect."""
    record = record_of(finished[0])
    assert record["teacher"]["accuracy"]["test"] >= 0.95
    assert record["teacher"]["training"], "the training log is in the record"
    assert record["contract"]["met"] is True


def test_run_again_it_does_nothing(finished: tuple[Path, Any], recipe: Path) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    started = time.monotonic()
    result = sordino("run", recipe, "--out", out)
    assert result.returncode == 0 and "Nothing to do" in result.stderr
    assert time.monotonic() - started < 20
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_a_change_runs_again_only_what_it_touches(copy: Path, recipe: Path, tmp_path: Path) -> None:
    changed = yaml.safe_load(recipe.read_text())
    changed["verify"]["samples"] = 3
    other = recipe.with_name("other.yaml")
    other.write_text(yaml.safe_dump(changed))
    result = sordino("run", other, "--out", copy)
    assert result.returncode == 0, result.stderr
    for line in (
        "data",
        "teacher",
        "calibrate",
        "search",
        "distill MPCFormer as published",
        "predict and choose",
    ):
        assert f"{line}: done before" in result.stderr
    assert "verify teacher: done in" in result.stderr
    assert record_of(copy)["teacher"]["secure"]["samples"] == 3


def test_a_missed_contract_keeps_the_results(copy: Path, recipe: Path) -> None:
    """The verdict of a finished run is said again: exit code 1, results kept."""
    noted = json.loads((copy / ".state" / "finished.json").read_text())
    noted["contract"] |= {"met": False, "text": "a drop of 0.9"}
    (copy / ".state" / "finished.json").write_text(json.dumps(noted))
    result = sordino("run", recipe, "--out", copy)
    assert result.returncode == 1
    assert "accuracy contract missed: a drop of 0.9" in result.stderr and "chosen student" in result.stdout


def test_two_runs_in_one_directory_are_refused(copy: Path, recipe: Path) -> None:
    from recipes.lock import Lock

    (copy / ".state" / "finished.json").unlink()
    with Lock(copy / ".lock"):
        result = sordino("run", recipe, "--out", copy)
    assert result.returncode == 2 and f"in use by process {os.getpid()}" in result.stderr


def test_the_exported_model_needs_no_sordino(finished: tuple[Path, Any], tmp_path: Path) -> None:
    """Loaded elsewhere, offline, without this package, saved again and loaded again: the student's own logits."""
    import torch

    import distill

    model = shutil.copytree(finished[0] / "model", tmp_path / "model")
    chosen = record_of(finished[0])["chosen"]
    student = distill.restore(finished[0] / f"distill/{chosen}/model")
    ids = torch.tensor([[2, 4, 7, 8, 3, 0], [2, 5, 9, 10, 11, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = student(input_ids=ids, attention_mask=mask).logits
    code = f"""
import sys, torch
from transformers import AutoModelForSequenceClassification as Auto
first = Auto.from_pretrained({str(model)!r}, trust_remote_code=True)
first.save_pretrained({str(tmp_path / "again")!r})
for place in ({str(model)!r}, {str(tmp_path / "again")!r}):
    loaded = Auto.from_pretrained(place, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = loaded(input_ids=torch.tensor({ids.tolist()}), attention_mask=torch.tensor({mask.tolist()})).logits
    print(logits.double().tolist())
assert "distill" not in sys.modules
"""
    alone = {k: v for k, v in environment().items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=alone, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[[")]
    assert len(lines) == 2
    for line in lines:
        assert torch.allclose(torch.tensor(line, dtype=torch.float64), expected.double(), atol=1e-5)


def test_verify_command(finished: tuple[Path, Any]) -> None:
    out = finished[0]
    result = sordino("verify", out / "model", "--samples", "2", "--parties", "threads", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["protocol"], found["parties"], found["samples"]) == ("dealer2pc", "threads", 2)
    assert {"predicted", "measured", "max_logit_error", "agreement", "accuracy"} <= found.keys()
    assert found["emulated"] == {}
    assert found["accuracy"].keys() == {"plaintext", "secure"}
    for phase in ("setup", "offline", "online"):
        assert found["predicted"][phase]["bytes"] == found["measured"][phase]["bytes"]
    record = record_of(out)
    chosen = next(model for model in record["candidates"] if model["id"] == record["chosen"])
    assert found["predicted"]["online"]["bytes"] == chosen["predicted"]["online"]["bytes"]


def test_verify_command_over_an_emulated_network(finished: tuple[Path, Any]) -> None:
    command = ["verify", finished[0] / "model", "--samples", "1", "--parties", "threads"]
    command += ["--emulate", "lan", "--emulate", "loopback", "--emulated-samples", "2"]
    result = sordino(*command, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found["emulated"]) == ["lan", "loopback"]
    lan = found["emulated"]["lan"]
    assert lan["queries"] == 2 and lan["equal"] is True
    assert lan["online"]["least"] >= found["measured"]["online"]["rounds"] * 0.00025
    table = sordino(*command)
    assert table.returncode == 0, table.stderr
    assert "Over emulated networks" in table.stdout and "deviation" in table.stdout


def test_report_and_cost_and_export_commands(
    finished: tuple[Path, Any], copy: Path, recipe: Path, tmp_path: Path
) -> None:
    (copy / "report.html").unlink()
    result = sordino("report", copy)
    assert result.returncode == 0, result.stderr
    assert (copy / "report.html").read_text() == (finished[0] / "report.html").read_text()
    record = record_of(copy)
    chosen = next(model for model in record["candidates"] if model["id"] == record["chosen"])
    result = sordino("cost", copy / "model", "--sequence-length", "12", "--json")
    assert result.returncode == 0, result.stderr
    # A question about a model knows no certificate.
    compared = json.loads((finished[0] / "verify/choice.json").read_text())["compared"][chosen["id"]]
    assert json.loads(result.stdout)["online"]["rounds"] == compared["rounds"]
    result = sordino("export", recipe, "--out", copy, "--to", tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "config.json").is_file()


def rewind(out: Path, stage: str) -> None:
    """Take a finished run back to where `stage` has not begun."""
    (out / ".state" / "finished.json").unlink()
    for later in STAGES[STAGES.index(stage) :]:
        for marker in (out / ".state").glob(f"{later}*.json"):
            marker.unlink()
        for folder in FOLDERS.get(later, (later,)):
            shutil.rmtree(out / folder, ignore_errors=True)
    for name in ("record.json", "report.html", "report.md"):
        (out / name).unlink(missing_ok=True)


KILLS = [
    pytest.param("verify", "middle"),
    pytest.param("export", "unmarked"),
    *(
        pytest.param(stage, moment, marks=pytest.mark.long)
        for stage in STAGES
        for moment in ("begun", "middle", "unmarked")
        # Two of them are in the quick set above; data has no second progress call to be killed at.
        if (stage, moment) not in {("verify", "middle"), ("export", "unmarked"), ("data", "middle")}
    ),
]


@pytest.mark.parametrize(("stage", "moment"), KILLS)
def test_killed_and_started_again(
    copy: Path, finished: tuple[Path, Any], recipe: Path, stage: str, moment: str
) -> None:
    expected = lasting(record_of(finished[0]))
    rewind(copy, stage)
    killed(stage, moment, "run", recipe, "--out", copy)
    result = sordino("run", recipe, "--out", copy)
    assert result.returncode == 0, result.stderr
    assert lasting(record_of(copy)) == expected
    for earlier in STAGES[: STAGES.index(stage)]:
        if earlier in ("data", "teacher", "calibrate", "search"):
            assert f"{earlier}: done before" in result.stderr


@pytest.mark.long
def test_parties_as_processes_and_a_program(copy: Path, recipe: Path) -> None:
    changed = yaml.safe_load(recipe.read_text())
    changed["verify"] |= {"parties": "processes", "candidates": 2}
    changed["export"] = {"formats": ["transformers", "torch_export"]}
    other = recipe.with_name("processes.yaml")
    other.write_text(yaml.safe_dump(changed))
    result = sordino("run", other, "--out", copy)
    assert result.returncode == 0, result.stderr
    record = record_of(copy)
    assert record["teacher"]["measured"]["parties"] == "processes"
    assert record["teacher"]["equal"] is True

    import torch

    import distill

    student = distill.restore(copy / f"distill/{record['chosen']}/model")
    inputs = {
        name: torch.ones(1, 12, dtype=torch.long)
        for name in ("attention_mask", "input_ids", "token_type_ids")
    }
    program = torch.export.load(copy / "model" / "program.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(**inputs).logits, student(**inputs).logits, atol=1e-5)
