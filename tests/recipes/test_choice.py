"""The choice: paired tests against the teacher on validation data, the cheapest that keeps the contract, and the contract."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipes.paired import Comparison, bootstrap_bounds, false_acceptance
from recipes.record import contract
from recipes.stages import search as search_stage
from recipes.stages import verify


def test_bounds_without_disagreement_are_those_of_the_closed_form() -> None:
    """z²/(n + z²): with nobody ever right alone the score test has this solution."""
    for items in (20, 133, 1000):
        z = 1.6448536269514722
        assert Comparison(items, 0, 0).upper(0.95) == pytest.approx(z * z / (items + z * z), rel=1e-9)
    assert Comparison(132, 0, 0).upper(0.95) > 0.02 > Comparison(133, 0, 0).upper(0.95)


def test_bounds_enclose_the_drop_and_mirror() -> None:
    pair = Comparison(200, 9, 4)
    assert pair.lower(0.95) < pair.drop < pair.upper(0.95) < pair.upper(0.99)
    assert pair.lower(0.95) == pytest.approx(-Comparison(200, 4, 9).upper(0.95))
    assert Comparison(200, 12, 4).upper(0.95) > pair.upper(0.95) > Comparison(200, 9, 6).upper(0.95)
    assert Comparison.of([True, True, False, False], [True, False, True, False]) == Comparison(4, 1, 1)
    with pytest.raises(ValueError, match="paired"):
        Comparison.of([True], [])


@pytest.mark.parametrize("items", [30, 64, 200])
@pytest.mark.parametrize("allowed", [0.02, 0.05])
def test_a_student_that_misses_is_seldom_accepted(items: int, allowed: float) -> None:
    rates = [false_acceptance(items, allowed, 0.95, better) for better in (0.0, 0.01, 0.03, 0.05, 0.1, 0.2)]
    assert max(rates) < 0.056 and max(rates) > 0.01


def test_bootstrap_bounds() -> None:
    values = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap_bounds(lambda items: sum(values[i] for i in items) / len(items), 100, 0.95, seed=0)
    assert 0.4 < low < 0.45 and 0.55 < high < 0.6


LABELS = torch.arange(400) % 2


def logits(wrong: int, start: int = 0) -> torch.Tensor:
    """Predictions that are wrong on `wrong` items from `start` on."""
    predicted = LABELS.clone()
    predicted[start : start + wrong] = 1 - predicted[start : start + wrong]
    return torch.nn.functional.one_hot(predicted, 2).float()


def context_of(answers: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Any:
    """A run in which these models were trained; `seconds` on the network are 1, 2, 3, … in this order."""
    import cost_models
    import distill

    given = {"latency_s": None, "online_bytes": None, "rounds": None, "baseline": None, **limits}
    names = list(answers)

    def tokens(split: str) -> str:
        assert split == "validation", "the choice looks at no other data"
        return split

    context = SimpleNamespace(
        recipe=SimpleNamespace(
            secure=SimpleNamespace(network="wan"),
            search=SimpleNamespace(limits=SimpleNamespace(**given)),
            verify=SimpleNamespace(max_drop=0.02, level=0.95),
            seed=0,
        ),
        splits=SimpleNamespace(kind="classification"),
        teacher="teacher",
        tokens=tokens,
    )
    trained = [name for name in names if name != "teacher"]
    monkeypatch.setattr(
        verify.distill_stage, "results", lambda _: {name: {"validation": 0.5} for name in trained}
    )
    monkeypatch.setattr(verify.distill_stage, "baselines", lambda _: ["mpcformer"])
    context.trained = lambda name: name
    monkeypatch.setattr(
        verify.certify_stage,
        "result",
        lambda _, name: {
            "fits": name != "does not fit",
            "violations": ["a square of 2^31"],
            "cost": name,
            "captured_cost": name,
        },
    )
    monkeypatch.setattr(cost_models.Cost, "from_dict", lambda name: name)
    monkeypatch.setattr(
        verify,
        "predicted_figures",
        lambda name, _: {
            "seconds": {"wan": {"total": float(1 + trained.index(name)) if name in trained else 9.0}},
            "online": {"bytes": 1, "rounds": 1},
        },
    )
    monkeypatch.setattr(distill, "evaluate", lambda model, data: answers[model])
    monkeypatch.setattr(distill, "labels_of", lambda data: LABELS)
    return context


def quiet(done: int, total: int, message: str) -> None:
    """No progress."""


def test_the_cheapest_that_keeps_the_contract_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the cheapest of all, and not the most accurate."""
    answers = {
        "teacher": logits(10),
        "mpcformer": logits(10),
        "cheap and bad": logits(30),
        "cheap and good": logits(11),
        "dear and best": logits(0),
    }
    found = verify.choose(context_of(answers, monkeypatch), quiet)
    assert found["chosen"] == "cheap and good" and found["kept"] is True
    assert found["ranking"] == ["cheap and good", "dear and best", "cheap and bad"]
    test = found["tests"]["cheap and bad"]
    assert test["drop"] == pytest.approx(0.05) and not test["kept"] and test["missed_by"] > 0.03
    assert (test["worse"], test["better"], test["items"]) == (20, 0, 400)
    assert test["level"] == pytest.approx(1 - 0.05 / 3), "the level holds for the choice among all three"
    assert "The cheapest that keeps the contract" in found["reason"]


def test_equal_accuracy_is_not_enough_where_the_examples_show_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Teacher and student are right on equally many items, but never on the same ones of sixty."""
    answers = {"teacher": logits(30), "student": logits(30, start=100)}
    found = verify.choose(context_of(answers, monkeypatch), quiet)
    test = found["tests"]["student"]
    assert test["drop"] == 0.0 and test["upper"] > 0.02 and not found["kept"]


def test_where_none_keeps_it_the_closest_is_taken_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"teacher": logits(4), "worst": logits(60), "closest": logits(24), "middle": logits(40)}
    found = verify.choose(context_of(answers, monkeypatch), quiet)
    assert found["ranking"] == ["closest", "middle", "worst"] and found["kept"] is False
    assert "None of" in found["reason"]
    for name in ("worst", "closest", "middle"):
        assert f"{name[:6]} by {found['tests'][name]['missed_by']:.4f}" in found["reason"]


def test_what_fixed_point_cannot_hold_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """However cheap and close it is."""
    from recipes.errors import RecipeError

    answers = {"teacher": logits(4), "does not fit": logits(4), "fits": logits(4)}
    found = verify.choose(context_of(answers, monkeypatch), quiet)
    assert found["ranking"] == ["fits"] and found["tests"].keys() == {"fits"}
    del answers["fits"]
    with pytest.raises(RecipeError, match="2\\^31"):
        verify.choose(context_of(answers, monkeypatch), quiet)


def test_limits_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.errors import RecipeError

    answers = {"teacher": logits(4), "cheap": logits(60), "dear": logits(4)}
    found = verify.choose(context_of(answers, monkeypatch, latency_s=1.5), quiet)
    assert found["ranking"] == ["cheap"] and not found["kept"]
    with pytest.raises(RecipeError, match="within search.limits"):
        verify.choose(context_of(answers, monkeypatch, latency_s=0.5), quiet)


@pytest.mark.parametrize(
    ("wrong", "kept", "met"), [(0, True, True), (1, True, True), (20, True, False), (0, False, False)]
)
def test_the_contract(tmp_path: Path, wrong: int, kept: bool, met: bool) -> None:
    """Missed where validation could not show it, and where the answers under MPC refute it."""
    answers = [True] * (64 - wrong) + [False] * wrong
    for name, secure in (("teacher", [True] * 64), ("student", answers)):
        folder = tmp_path / "verify" / name
        folder.mkdir(parents=True)
        (folder / "right.json").write_text(json.dumps({"plaintext": [True] * 64, "secure": secure}))
        figures = {"samples": 64, "accuracy": sum(secure) / 64, "plaintext": 1.0}
        (folder / "result.json").write_text(json.dumps({"secure": figures}))
    chosen = {"chosen": "student", "kept": kept, "reason": "Because."}
    (tmp_path / "verify/choice.json").write_text(json.dumps(chosen))
    recipe = SimpleNamespace(verify=SimpleNamespace(max_drop=0.02, level=0.95))
    found = contract(SimpleNamespace(run=tmp_path, recipe=recipe))  # type: ignore[arg-type]
    assert found["met"] is met and found["drop"] == pytest.approx(wrong / 64)
    assert "Because." in found["text"]


def test_the_search_is_scored_on_validation_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import distill
    import nas
    from recipes.schema import Search, Secure

    asked: list[str] = []
    given: dict[str, Any] = {}
    rows = [[1, 2, 3], [4, 5], [6]] * 8

    def tokens(split: str) -> Any:
        asked.append(split)
        return distill.Tokens({"input_ids": rows}, None, {"input_ids": 0}, 8)

    search = Search(
        objectives=["kl", "online_bytes"], fixed_point_samples=20, validation_samples=10, trials=3
    )
    context = SimpleNamespace(
        recipe=SimpleNamespace(search=search, secure=Secure(sequence_length=8), seed=5),
        run=SimpleNamespace(path=tmp_path),
        tokens=tokens,
        sequence_length=8,
        tokenizer=None,
        teacher="teacher",
        calibration="calibration",
        sites=[],
        example_inputs=lambda: {},
    )
    monkeypatch.setattr(
        search_stage, "section", lambda *_: {"search": {"candidates": 1}, "secure": {"networks": []}}
    )
    monkeypatch.setattr(search_stage, "profiles", lambda _: {})
    monkeypatch.setattr(search_stage, "price_table", lambda *_: None)
    monkeypatch.setattr(nas, "search", lambda *arguments, **named: given.update(named, batches=arguments[2]))
    (step,) = search_stage.steps(context)  # type: ignore[arg-type]
    assert {"teacher", "calibrate"} <= set(step.needs), "another calibration is another search"
    step.work(quiet)
    assert asked == ["validation"]
    assert list(given["objectives"]) == ["kl", "online_bytes"] and given["seed"] == 5
    assert sum(len(batch["input_ids"]) for batch in given["batches"]) == 10
    assert {tuple(batch["input_ids"].shape) for batch in given["fixed_point"]} == {(16, 8)}
    assert len(given["fixed_point"]) == 2
