"""What benchmarks/peers.py does without the peers: workloads, references, arithmetic, options, and Sordino's own runner."""

from __future__ import annotations

import argparse
import ast
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

import cost_models
from benchmarks import peers
from benchmarks.peer_systems import comparison, environments, reference, sordino_runner, workloads
from benchmarks.peer_systems.workloads import WORKLOADS, Workload

TINY = Workload("tiny", "tiny", "bert", {"x": (4, 16)}, layers=1, width=16, inner=32, heads=2)


# Workloads and references -----------------------------------------------------------------------------------


def test_workloads_are_those_of_bert_base() -> None:
    assert [w.name for w in WORKLOADS.values()] == list(WORKLOADS)
    shapes = {name: list(w.inputs.values()) for name, w in WORKLOADS.items()}
    assert shapes["mul"] == [(128, 3072), (128, 3072)]
    assert shapes["softmax"] == shapes["2quad"] == [(12, 128, 128)]
    layer = WORKLOADS["bert-layer-exact"].weight_arrays()
    assert sum(a.size for a in layer.values()) == 7_087_872  # of one layer of bert-base-uncased
    assert WORKLOADS["bert-12-layers-quad"].layers == 12
    assert set(workloads.QUICK) <= set(WORKLOADS)


def test_inputs_and_weights_are_the_same_every_time() -> None:
    for arrays in (Workload.input_arrays, Workload.weight_arrays):
        first, again = arrays(TINY), arrays(TINY)
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert all(a.dtype == np.float32 for a in first.values())


def _expected(kind: str, x: Any, y: Any) -> Any:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    squares = (x + 5) ** 2
    return {
        "mul": x * y,
        "relu": np.maximum(x, 0),
        "gelu": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "softmax": exponentials / exponentials.sum(-1, keepdims=True),
        "quad": 0.125 * x**2 + 0.25 * x + 0.5,
        "2quad": squares / squares.sum(-1, keepdims=True),
    }[kind]


@pytest.mark.parametrize("kind", ["mul", "relu", "gelu", "softmax", "quad", "2quad"])
def test_the_file_holds_inputs_and_the_float64_result(kind: str, tmp_path: Path) -> None:
    names = ("x", "y") if kind == "mul" else ("x",)
    workload = Workload("w", "w", kind, dict.fromkeys(names, (3, 5)), spread=2.0)
    reference.write(workload, tmp_path / "w.npz")
    specification, inputs, weights, expected = reference.read(tmp_path / "w.npz")
    assert specification == json.loads(json.dumps(workload.specification())) and not weights
    assert expected.dtype == np.float64
    x, y = (inputs[n].astype(np.float64) for n in (names[0], names[-1]))
    np.testing.assert_allclose(expected, _expected(kind, x, y), atol=1e-12)


def test_the_layer_is_that_of_transformers() -> None:
    config = BertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, hidden_act="gelu_pytorch_tanh"
    )
    config._attn_implementation = "eager"
    theirs = BertLayer(config).double().eval()
    weights = {k.removeprefix("0."): torch.from_numpy(a) for k, a in TINY.weight_arrays().items()}
    names = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    theirs.load_state_dict(
        {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": w for k, w in weights.items()}
    )
    ours = reference.module(TINY.specification(), TINY.weight_arrays()).double()
    x = torch.from_numpy(TINY.input_arrays()["x"]).double()
    with torch.no_grad():
        found = theirs(x[None])
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(ours(x), found.reshape(4, 16), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["crypten_runner.py", "spu_runner.py"])
def test_a_peers_runner_imports_nothing_of_ours(name: str) -> None:
    path = Path(reference.__file__).with_name(name)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    theirs = {"crypten", "torch", "numpy", "spu", "jax"}
    assert found <= theirs | set(sys.stdlib_module_names)


# Figures ----------------------------------------------------------------------------------------------------


def _run(*totals: float, cpu: float = 1.0, sent: float = 100, online: float | None = None) -> dict[str, Any]:
    split = {} if online is None else {"online_s": online, "offline_s": totals[0] - online}
    return {
        "queries": [{"total_s": t, **split} for t in totals],
        "cpu_s": cpu,
        "online": {"bytes": sent, "rounds": 7},
        "offline": {},
        "setup": {"seconds": 3.0},
        "max_error": 0.25 * cpu,
        "memory_bytes": 5,
    }


def test_summary_takes_best_median_and_worst() -> None:
    s = comparison.summary([_run(4.0, 2.0, cpu=3.0), _run(6.0)])
    assert s["total_s"] == {"best": 2.0, "median": 4.0}
    assert s["online_s"] is None and s["offline_s"] is None
    assert s["cpu_s"] == {"best": 1.0, "median": 2.0}
    assert s["max_error"] == 0.75 and s["queries"] == 3
    assert s["online"] == {"bytes": 100, "rounds": 7}


def test_summary_takes_the_largest_count_and_tells_that_counts_vary() -> None:
    s = comparison.summary([_run(1.0), _run(1.0, sent=103)])
    assert s["online"]["bytes"] == 103
    assert s["varied"] == {"online bytes": [100, 103]}
    assert comparison.summary([_run(1.0), _run(2.0)])["varied"] == {}
    with pytest.raises(ValueError, match="no run"):
        comparison.summary([])


def test_ratios_are_of_the_best_to_sordinos() -> None:
    systems = {
        "crypten": comparison.summary([_run(8.0, 9.0, cpu=6.0, sent=400)]),
        "spu-aby3": {"error": "gone"},
        "sordino-a": comparison.summary([_run(2.0, 5.0, cpu=3.0, online=1.0)]),
        "sordino-b": comparison.summary([_run(4.0)]),
    }
    found = comparison.ratios(systems)
    assert found["crypten"]["sordino-a"] == {
        "total": 4.0,
        "total_to_online": 8.0,
        "online": None,
        "cpu": 2.0,
        "bytes": 4.0,
    }
    assert found["sordino-a"] == {
        "sordino-b": {"total": 0.5, "total_to_online": None, "online": None, "cpu": 3.0, "bytes": 1.0}
    }
    assert "spu-aby3" not in found and "sordino-a" not in found["sordino-a"]


def test_the_table_shows_ratios_and_failures() -> None:
    systems = {
        "crypten": comparison.summary([_run(8.0)]),
        "spu-aby3": {"error": "gone"},
        "sordino-a": comparison.summary([_run(2.0, online=1.0)]),
    }
    workload = {"title": "GELU", "systems": systems, "ratios": comparison.ratios(systems)}
    recorder = Console(width=200, file=io.StringIO(), record=True)
    recorder.print(comparison.table({"gelu": workload}, ["sordino-a"]))
    text = recorder.export_text()
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "4, 8" in lines["crypten"] and "8 (8)" in lines["crypten"]
    assert "failed" in lines["spu-aby3"]
    assert "GELU" in text and "x a" in text


# Options and runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workloads", "gelo"], "unknown workload 'gelo'. Did you mean 'gelu'? Allowed: matmul-768, "),
        (
            ["--systems", "cryptenn"],
            "unknown system 'cryptenn'. Did you mean 'crypten'? Allowed: crypten, spu-semi2k",
        ),
        (["--systems", "sordino-plain"], "unknown system 'sordino-plain'"),
        (["--repeats", "0"], "--repeats 0: allowed is 1 or more"),
        (["--warm-ups", "-1"], "--warm-ups -1: allowed is 0 or more"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_wrong_options_say_what_is_allowed(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        peers.arguments(options)
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_choose_in_the_order_of_the_tables() -> None:
    options = peers.arguments(
        ["--workloads", "gelu", "mul", "gelu", "--systems", "sordino-dealer2pc", "crypten"]
    )
    assert options.workloads == ["mul", "gelu"]
    assert options.systems == ["crypten", "sordino-dealer2pc"]
    quick = peers.arguments(["--quick"])
    assert quick.workloads == list(workloads.QUICK) and quick.repeats == 1
    assert "sordino-plain" not in quick.systems


def test_an_answer_is_the_last_line() -> None:
    code = "import sys; print('noise'); print('{\"a\": 1}')"
    assert peers.run_once([sys.executable, "-c", code], 60) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "timeout_s", "message"),
    [
        ("import sys; sys.exit('it broke')", 60, "exit status 1\nit broke"),
        ("print('hello')", 60, "the answer is no JSON: 'hello"),
        ("import time; time.sleep(600)", 0.2, "no answer within 0.2 s"),
    ],
)
def test_a_failed_run_says_why(code: str, timeout_s: float, message: str) -> None:
    with pytest.raises(peers.RunError, match=message):
        peers.run_once([sys.executable, "-c", code], timeout_s)


def test_systems_take_turns_and_a_failed_one_is_left_out(tmp_path: Path) -> None:
    log, script = tmp_path / "log", tmp_path / "answer.py"
    script.write_text(
        "import sys\n"
        f"open({str(log)!r}, 'a').write(sys.argv[1] + ' ')\n"
        f"print({json.dumps(_run(1.0))!r}) if sys.argv[1] != 'b' else sys.exit('no b')\n"
    )
    commands = {name: [sys.executable, str(script), name] for name in ("a", "b", "sordino-c")}
    options = argparse.Namespace(repeats=3, warm_ups=None, timeout=60.0)
    result = peers.compare(TINY, commands, options, Console(quiet=True))
    assert log.read_text().split() == ["a", "b", "sordino-c", "sordino-c", "a", "sordino-c", "a"]
    assert "no b" in result["systems"]["b"]["error"]
    assert result["ratios"]["a"]["sordino-c"]["total"] == 1.0
    assert json.loads(json.dumps(result)) == result


# Environments -----------------------------------------------------------------------------------------------


def test_another_pin_is_another_environment(tmp_path: Path) -> None:
    folders = {
        environments.Environment("p", pins, alone).folder(tmp_path)
        for pins, alone in ((("a==1",), ()), (("a==2",), ()), (("a==1",), ("b==1",)))
    }
    assert len(folders) == 3
    assert all("==" in pin for e in environments.ENVIRONMENTS.values() for pin in e.pins + e.alone)


def test_a_complete_environment_is_not_made_again(tmp_path: Path) -> None:
    folder = environments.ENVIRONMENTS["spu"].folder(tmp_path)
    folder.mkdir()
    (folder / "complete").touch()
    assert environments.ensure("spu", tmp_path, "/no/python") == str(folder / "bin" / "python")


def test_an_environment_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(environments.PeerInstallError, match="need Python 3.11; tried /no/python"):
        environments.ensure("spu", tmp_path, "/no/python")
    assert not (environments.ENVIRONMENTS["spu"].folder(tmp_path) / "complete").exists()


# Sordino's runner -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forked_roles")
def test_sordinos_runner_measures_what_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.write(TINY, tmp_path / "w.npz")
    command = peers.command_of("sordino-dealer2pc", tmp_path)
    assert command[1:3] == ["-m", sordino_runner.__name__]
    monkeypatch.setattr("sys.argv", [*command[2:], str(tmp_path / "w.npz"), "--queries", "2"])
    sordino_runner.main()
    result = json.loads(capsys.readouterr().out)
    specification, inputs, weights, _ = reference.read(tmp_path / "w.npz")
    example = tuple(torch.from_numpy(a) for a in inputs.values())
    predicted = cost_models.predict(reference.module(specification, weights), example, "dealer2pc")
    for phase in ("setup", "offline", "online"):
        counted = getattr(predicted, phase)
        assert (result[phase]["bytes"], result[phase]["rounds"]) == (counted.bytes, counted.rounds), phase
    assert result["max_error"] < 0.02
    assert len(result["queries"]) == 2
    for query in result["queries"]:
        assert query["total_s"] == pytest.approx(query["offline_s"] + query["online_s"])
    summary = comparison.summary([result])
    assert summary["online_s"] and summary["cpu_s"] and summary["memory_bytes"] > 0


def test_sordinos_runner_refuses_no_query(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="queries=0; allowed: 1 or more"):
        sordino_runner.measure(tmp_path / "w.npz", "dealer2pc", queries=0)
