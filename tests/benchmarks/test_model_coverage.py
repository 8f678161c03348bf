"""The survey of transformers' classes: what it calls right, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secure_eval
from benchmarks import model_coverage
from benchmarks.coverage import small, trial
from benchmarks.coverage.table import report
from benchmarks.coverage.trial import Found


def test_a_class_is_built_small_run_and_right() -> None:
    found = trial.examine("sequence", "albert", "AlbertForSequenceClassification")
    assert found.outcome == "right" and found.error is not None and 0 < found.error < trial.WITHIN
    assert found.sizes in small.STYLES


def test_a_model_that_comes_out_wrong_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose results are a twentieth off."""

    class Off:
        def __init__(self, program: Any, query: Any, protocol: str):
            self.secure = compile_(program, query, protocol)

        def __enter__(self) -> Any:
            return lambda **query: {k: v * 1.05 for k, v in small.outputs(self.secure(**query)).items()}

        def __exit__(self, *exception: object) -> None:
            self.secure.close()

    compile_ = secure_eval.compile
    monkeypatch.setattr(secure_eval, "compile", Off)
    assert trial.examine("sequence", "albert", "AlbertForSequenceClassification").outcome == "wrong"


def test_outputs_that_are_all_alike_are_no_proof() -> None:
    with pytest.raises(ValueError, match="all alike"):
        trial._check_varied({"logits": torch.full((3, 4), 2.0)})
    with pytest.raises(ValueError, match="not finite"):
        trial._check_varied({"logits": torch.tensor([1.0, float("nan")])})


def test_errors_count_where_there_is_no_padding() -> None:
    wanted, mask = (
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[1, 1, 0], [1, 1, 1]]),
    )
    got = wanted.clone()
    got[0, 2] = 50.0
    assert trial._error({"x": got}, {"x": wanted}, mask) == 0
    got[1, 2, 0] += 0.5 * float(wanted.abs().max())
    kept: Tensor = wanted[mask == 1]
    assert trial._error({"x": got}, {"x": wanted}, mask) == pytest.approx(
        0.5 * float(wanted.abs().max()) / float(kept.abs().max())
    )


def test_a_survey_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def isolated(head: str, model_type: str, name: str, *rest: Any) -> Found:
        asked.append(name)
        return Found(head, name, "right" if name.startswith("Bert") else "wrong", error=0.5, meaning=0.0)

    monkeypatch.setattr(model_coverage, "isolated", isolated)
    into = tmp_path / "found.jsonl"
    model_coverage.survey(into, ["masked"], ["BertForMaskedLM"], 1.0, 1.0, False, 1)
    model_coverage.survey(into, ["masked"], ["BertForMaskedLM"], 1.0, 1.0, False, None)
    names = [f.name for f in model_coverage.stored(into)]
    assert asked == names and len(set(names)) == len(names) > 3
    model_coverage.forget(into, ["wrong"], [])
    assert {f.outcome for f in model_coverage.stored(into)} == {"right"}
    assert all(json.loads(line)["head"] == "masked" for line in into.read_text().splitlines())


def test_the_tables_have_both_surveys() -> None:
    after = [
        Found("sequence", "A", "right", error=0.001, meaning=0.0),
        Found("sequence", "B", "operations", operations=["aten.x"]),
        Found("tokens", "A", "right", error=0.001, meaning=0.0),
        Found("tokens", "C", "build", "no such library"),
        Found("image", "D", "wrong", error=0.5, meaning=0.0),
    ]
    before = [Found("sequence", "A", "wrong", error=0.2, meaning=0.0), Found("sequence", "E", "right")]
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in report(after, before).splitlines()
        if "|" in line
    }
    assert [c.strip() for c in rows["sequence"]] == ["2", "2", "1", "1", "50 %", "1", "1", "1", "0"]
    assert [c.strip() for c in rows["text"]] == ["4", "3", "2", "2", "67 %", "1", "1", "1", "0"]
    assert [c.strip() for c in rows["tokens"]] == ["2", "1", "1", "1", "100 %", "0", "0", "0", "0"]
    assert [c.strip() for c in rows["image"]] == ["1", "1", "1", "0", "0 %", "0", "0", "0", "0"]
    assert any("aten.x | 1 | 0 | B" in line for line in report(after, before).splitlines())
    assert "audio" not in rows


@pytest.mark.parametrize(
    ("model_type", "name", "sizes"),
    [
        ("nemotron", "NemotronForSequenceClassification", {"num_key_value_heads": 4, "head_dim": 16}),
        (
            "deepseek_v2",
            "DeepseekV2ForSequenceClassification",
            {"n_routed_experts": 4, "num_experts_per_tok": 2},
        ),
        ("xmod", "XmodForSequenceClassification", {"default_language": "en_XX"}),
        ("perceiver", "PerceiverForSequenceClassification", {"d_latents": 64, "num_latents": 16}),
        ("emu3", "Emu3TextModel", {"hidden_size": 64}),
    ],
)
def test_what_a_configuration_leaves_open_is_settled(
    model_type: str, name: str, sizes: dict[str, Any]
) -> None:
    config_class, _ = small.classes_of(model_type, name)
    changed = small._changes(config_class(), small.STYLES["plain"], None)
    assert sizes.items() <= changed.items()


def test_queries_are_scaled_where_scores_are_not() -> None:
    config_class, model_class = small.classes_of("t5", "T5ForSequenceClassification")
    _, model = next(small.builds(config_class, model_class))
    small.randomise(model)
    attention = model.transformer.encoder.block[0].layer[0].SelfAttention
    ratio = float(attention.k.weight.std() / attention.q.weight.std())
    assert ratio == pytest.approx(attention.key_value_proj_dim**0.5, rel=0.1)


def test_random_weights_differ_and_keep_the_size_of_what_goes_through() -> None:
    config_class, model_class = small.classes_of("bert", "BertForSequenceClassification")
    _, model = next(small.builds(config_class, model_class))
    small.randomise(model)
    (query, *_) = small.inputs(model, "sequence")
    assert {tuple(row) for row in query["attention_mask"].tolist()} == {
        (1,) * 7, (0, 0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 0, 0, 0)
    }  # fmt: skip
    with torch.no_grad():
        logits = model(**query).logits
    assert float(logits.std()) > 0.05
    assert all(float(p.std()) > 0.05 for p in model.parameters() if p.numel() > 8)


def test_statistics_of_batch_norms_are_those_of_what_goes_through() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    small.randomise(model)
    x = 50 * torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = float(model(x).std())
        small.settle(model, {"input": x})
        assert float(model(x).std()) < 2 < before / 5
    assert not any(m.training for m in model.modules())
