"""What the stages do with a checkpoint, with data and with settings: decided before the work, and part of the keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import distill
from distill import mpcformer
from recipes import preflight
from recipes.context import Context
from recipes.errors import RecipeError
from recipes.files import write_json
from recipes.gains import gains
from recipes.progress import Reporter, silent
from recipes.reading import parse
from recipes.run import run
from recipes.rundir import RunDirectory, Step
from recipes.stages import distill as distill_stage
from recipes.stages import search as search_stage
from recipes.stages import teacher as teacher_stage
from results.record import Candidate, Score

Write = Callable[..., Path]


def context_of(path: Path, said: list[str] | None = None) -> Context:
    directory = RunDirectory(path.parent / "out", "1.0")
    directory.prepare()
    recipe = parse(path.read_text(), str(path))
    return Context(recipe, directory, path, path.read_text(), "", [].append if said is None else said.append)


def refused(path: Path) -> str:
    """What the check before any work says of a recipe."""
    with pytest.raises(RecipeError) as error:
        preflight.check(context_of(path), silent)
    return str(error.value)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory, make_recipe: Write) -> Path:
    """A folder with the tiny recipe, its data, and in `teacher` a classifier that was trained on them."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    path = make_recipe(folder, search__limits={})
    run(path, folder / "out", until="teacher", reporter=Reporter(quiet=True))
    shutil.copytree(folder / "out/teacher/model", folder / "teacher")
    return folder


@pytest.fixture
def with_head(fine_tuned: Path, tmp_path: Path, write_recipe: Write) -> Callable[..., Path]:
    """Writes the tiny recipe with a copy of the classifier as its checkpoint; `classes` renames its outputs."""

    def write(classes: list[str] | None = None, **changes: Any) -> Path:
        target = tmp_path / "classifier"
        shutil.copytree(fine_tuned / "teacher", target)
        described = json.loads((target / "config.json").read_text())
        if classes is not None:
            described["id2label"] = {str(index): name for index, name in enumerate(classes)}
            described["label2id"] = {name: index for index, name in enumerate(classes)}
            (target / "config.json").write_text(json.dumps(described))
        return write_recipe(
            **({"teacher__checkpoint": "classifier", "teacher__train": ..., "search__limits": {}} | changes)
        )

    return write


def teacher_of(path: Path) -> Context:
    """Run up to the teacher, in this process."""
    run(path, path.parent / "out", until="teacher", reporter=Reporter(quiet=True))
    return context_of(path)


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = (distill.restore(place).state_dict() for place in (first, second))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_fine_tuned_model_is_used_as_it_is(with_head: Callable[..., Path]) -> None:
    path = with_head()
    context = teacher_of(path)
    assert context.given and same_weights(path.parent / "classifier", context.run / "teacher/model")
    scores = json.loads((context.run / "teacher/scores.json").read_text())
    assert scores["validation"] > 0.95 and scores["history"] == []


def test_it_is_fine_tuned_again_where_that_is_asked(with_head: Callable[..., Path]) -> None:
    path = with_head(teacher__train={"epochs": 1, "lr": 1e-3})
    context = teacher_of(path)
    assert not context.given
    assert not same_weights(path.parent / "classifier", context.run / "teacher/model")


def test_the_datas_classes_are_numbered_as_the_model_numbers_them(
    fine_tuned: Path, with_head: Callable[..., Path]
) -> None:
    """The classifier's rows are turned about together with their names: nothing is lost."""
    path = with_head(["num", "HUM", "loc"])
    target = path.parent / "classifier"
    model = distill.restore(target)
    for name in ("classifier.weight", "classifier.bias"):
        parameter = model.get_parameter(name)
        parameter.data = parameter.data[[2, 0, 1]].clone()
    model.save_pretrained(target)
    context = teacher_of(path)
    assert context.splits.label_names == ("NUM", "HUM", "LOC")
    assert json.loads((context.run / "teacher/scores.json").read_text())["validation"] > 0.95


def test_a_model_whose_classes_are_in_another_order_is_refused(with_head: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="most frequent class alone .* are they in the same order"):
        teacher_of(with_head(["LOC", "NUM", "HUM"]))


def test_a_head_for_other_classes_is_refused_by_name(with_head: Callable[..., Path]) -> None:
    message = refused(with_head(["a", "b", "c"]))
    assert (
        "the model's classes are a, b, c and the data's HUM, LOC, NUM: they must be the same names" in message
    )
    assert "`teacher.train` with epochs trains a new head" in message


def other_head(path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    folder = path.parent / "classifier"
    config = BertConfig.from_pretrained(folder)
    config.num_labels = 5
    BertForSequenceClassification(config).save_pretrained(folder)


def test_a_head_of_another_size_is_refused_unless_training_is_asked(with_head: Callable[..., Path]) -> None:
    path = with_head()
    other_head(path)
    message = refused(path)
    assert (
        "at $.teacher: the checkpoint has a head, so it is used as it is, but the model has 5 classes"
        in message
    )
    changed = yaml.safe_load(path.read_text())
    changed["teacher"]["train"] = {"epochs": 0.5}
    path.write_text(yaml.safe_dump(changed))
    context = teacher_of(path)
    assert context.teacher.config.num_labels == 3 and context.teacher.config.id2label[0] == "HUM"


def test_a_checkpoint_without_a_head_needs_training(write_recipe: Write) -> None:
    assert "is BertModel and has no head for this task" in refused(write_recipe(teacher__train={"epochs": 0}))
    assert not context_of(write_recipe(teacher__train=...)).given


def test_a_tokenizer_without_padding_is_settled_or_refused(write_recipe: Write) -> None:
    path = write_recipe()
    place = path.parent / "checkpoint" / "tokenizer_config.json"
    described = json.loads(place.read_text())
    described.pop("pad_token")
    place.write_text(json.dumps(described | {"eos_token": "[SEP]"}))
    model = path.parent / "checkpoint" / "config.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"pad_token_id": None}))
    said: list[str] = []
    assert context_of(path, said).tokenizer.pad_token_id == 3
    assert said == ["no padding token: '[SEP]' (3) pads"]
    place.write_text(json.dumps(described))
    assert "at $.teacher.checkpoint: the tokenizer" in refused(path)


def test_the_check_builds_no_weights_and_its_prices_are_the_searchs(
    write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is priced by its shapes: what the check found is the table of the search, entry by entry."""
    built = []
    original = preflight.build

    def noted(*arguments: Any) -> Any:
        model = original(*arguments)
        built.extend(parameter.device.type for parameter in model.parameters())
        return model

    monkeypatch.setattr(preflight, "build", noted)
    path = write_recipe()
    context = context_of(path)
    preflight.check(context, silent)
    assert set(built) == {"meta"}
    prices = (context.run / "search/prices.json").read_text()
    run(path, path.parent / "out", until="calibrate", reporter=Reporter(quiet=True))
    later = context_of(path)
    messages: list[str] = []
    search_stage.price_table(later, lambda done, total, message: messages.append(message))
    assert messages == ["prices known"] and (context.run / "search/prices.json").read_text() == prices


def pairs(folder: Path) -> None:
    """Pairs whose label is whether both texts begin with the same word, in three files of official splits."""
    from datasets import Dataset

    (folder / "pairs").mkdir()
    firsts = ["who", "where", "when"]
    for name, count in (("train", 240), ("validation", 60), ("test", 45)):
        rows = [
            {
                "premise": f"{firsts[i % 3]} is the {['city', 'king', 'war'][i // 9 % 3]} {i % 5 * 'old '}",
                "hypothesis": f"{firsts[i // 3 % 3]} was {['river', 'song'][i % 2]}",
                "label": ["same", "other"][i % 3 != i // 3 % 3],
            }
            for i in range(count)
        ]
        Dataset.from_list(rows).to_parquet(str(folder / "pairs" / f"{name}.parquet"))


def test_pairs_reach_the_model_as_pairs(write_recipe: Write, tmp_path: Path) -> None:
    pairs(tmp_path)
    data = {"source": "pairs", "hidden": []}
    context = teacher_of(write_recipe(teacher__task={"data": data}, search__limits={}))
    assert context.splits.train.column_names == ["text", "text_pair", "label"]
    row, tokens = context.splits.test[0], context.tokens("test")
    expected = context.tokenizer(row["text"], row["text_pair"], truncation=True, max_length=12)["input_ids"]
    assert list(tokens.columns["input_ids"][0]) == expected
    assert len(expected) > len(context.tokenizer(row["text"])["input_ids"])


# --- distillation ---------------------------------------------------------------------------------------------


class Planned(Context):
    """A context whose search has found one student, without any file of a run."""

    @property
    def front(self) -> Any:  # type: ignore[override]
        found = SimpleNamespace(id="s1", architecture=distill.Architecture(), scores={"kl": 0.1})
        return SimpleNamespace(baselines={}, select=lambda *_, **__: [found])

    def baseline(self, name: str) -> Any:
        return distill.Architecture({"x": "2quad"})


def planned(path: Path, examples: int = 4_300) -> Planned:
    known = context_of(path)
    write_json(known.run / "data/info.json", {"examples": {"train": examples}})
    return Planned(known.recipe, known.run, path, "", "")


def training(path: Path) -> dict[str, dict[str, Any]]:
    return {student.id: student.training for student in distill_stage.students(planned(path))}


PUBLISHED = {
    "losses": "two_stage",
    "units": "raw",
    "lr": 5e-5,
    "prediction_lr": 1e-5,
    "layerwise_warmup": 0.0,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "batch_size": 32,
    "hidden_weight": 1.0,
    "scores_weight": 1.0,
    "range_penalty": 0.0,
    "freeze_embeddings": False,
    "dropout": True,
    "precision": "float32",
    "clip": 1.0,
    "coefficient_lr": 1.0,
}
OTHER = {
    "losses": "joint",
    "lr": 3e-4,
    "prediction_lr": 2e-4,
    "batch_size": 8,
    "warmup": 0.3,
    "weight_decay": 0.5,
}


def test_a_published_baseline_is_trained_as_published(write_recipe: Write) -> None:
    """Whatever the recipe says of its own students; the other baseline is trained as they are."""
    common = {"layerwise_epochs": 2, "prediction_epochs": 1}
    for given in ({}, OTHER):
        found = training(write_recipe(distill=common | given))
        assert {name: found["mpcformer"][name] for name in PUBLISHED} == PUBLISHED
        assert found["mpcformer_form"] == found["s1"]
        assert {name: found["s1"][name] for name in given} == given
    for settings in found.values():
        distill.DistillConfig(**settings)


def test_published_epochs_follow_a_rule(write_recipe: Write) -> None:
    own = {"layerwise_epochs": 2, "prediction_epochs": 0}
    found = training(write_recipe(distill=own))["mpcformer"]
    first, second = found["layerwise_epochs"], found["prediction_epochs"]
    whole = mpcformer.epochs(4_300)
    assert first + second == pytest.approx(4 * 2) and first / second == pytest.approx(whole[0] / whole[1])
    found = training(write_recipe(distill=own, baselines={"mpcformer": {"budget": None}}))["mpcformer"]
    assert (found["layerwise_epochs"], found["prediction_epochs"]) == whole
    found = training(write_recipe(distill=own, baselines={"mpcformer": {"layerwise_epochs": 3}}))["mpcformer"]
    assert found["layerwise_epochs"] == 3
    # More texts, fewer epochs; within what was published; within a factor of 2.7 of each published number.
    sizes = sorted(mpcformer.PUBLISHED.values())
    rule = [mpcformer.epochs(size)[0] for size, _ in sizes]
    assert rule == sorted(rule, reverse=True) and all(5 <= value <= 100 for value in rule)
    assert all(1 / 2.7 < value / count < 2.7 for value, (_, count) in zip(rule, sizes, strict=True))
    assert mpcformer.epochs(10)[0] == 100 and mpcformer.epochs(10**8)[0] == 5


def test_a_baseline_that_is_null_is_left_out(write_recipe: Write) -> None:
    path = write_recipe(baselines={"mpcformer_form": None})
    assert list(training(path)) == ["mpcformer", "s1"]


def keys(path: Path, teacher: str = "t", calibration: str = "c") -> dict[str, str]:
    """Keys of the steps that distil, for the teacher and the calibration that were found."""
    context = planned(path)
    context.run.keys |= {"teacher": teacher, "calibrate": calibration, "data": "d"}
    return {step.name: context.run.key(step) for step in distill_stage.steps(context)}


def test_a_student_depends_on_teacher_calibration_and_settings(write_recipe: Write) -> None:
    path = write_recipe()
    before = keys(path)
    assert set(before) == {"distill/mpcformer", "distill/mpcformer_form", "distill/s1"}
    for changed in (keys(path, teacher="other"), keys(path, calibration="other"), keys(write_recipe(seed=1))):
        assert not set(before.values()) & set(changed.values())
    own = keys(write_recipe(distill__lr=2e-3))
    assert (
        own["distill/s1"] != before["distill/s1"] and own["distill/mpcformer"] == before["distill/mpcformer"]
    )
    assert keys(write_recipe(distill__checkpoint_seconds=5)) == before, "how often is no part of the result"
    stored = keys(write_recipe(distill__cache_bytes=0))
    assert not set(stored.values()) & set(before.values()), "stored outputs are rounded to float16"


def step_inputs(path: Path) -> dict[str, Any]:
    step: Step = teacher_stage.steps(context_of(path))[0]
    return dict(step.inputs)


def test_a_teacher_depends_on_its_checkpoint_data_and_training(write_recipe: Write) -> None:
    path = write_recipe()
    before = step_inputs(path)
    assert teacher_stage.steps(context_of(path))[0].needs == ("data",)
    assert step_inputs(write_recipe(teacher__train={"epochs": 1})) != before
    weights = path.parent / "checkpoint" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert step_inputs(write_recipe()) != before


def test_the_gains_of_training_and_of_calibration_are_told_apart() -> None:
    scores = {"mpcformer": 0.90, "mpcformer_form": 0.93, "s1": 0.94, "s2": 0.99}
    models = [
        Candidate(id=name, title=name, accuracy=Score(test=score, validation=0.5))
        for name, score in scores.items()
    ]
    found = gains(models, "s1")
    assert (found["training"], found["calibration"]) == pytest.approx((0.03, 0.01))
    assert "+4.0 points against MPCFormer as published: +3.0 from the training" in found["text"]
    assert "+1.0 from calibration and search" in found["text"]
    assert gains(models[1:], "s1") == {}, "one of the two baselines was left out"
