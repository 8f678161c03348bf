"""A recipe is read strictly: every fault is found at once, named by its path, with what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import recipes
from recipes.errors import RecipeError
from recipes.reading import parse
from recipes.run import find, shipped
from recipes.schema import Recipe, dump, section


def base() -> dict[str, Any]:
    return {"teacher": {"checkpoint": "somewhere", "task": {"data": {"source": "data.csv"}}}}


def fault(data: Any) -> str:
    text = data if isinstance(data, str) else yaml.safe_dump(data)
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    return str(caught.value)


def test_only_the_teacher_is_required() -> None:
    recipe = parse(yaml.safe_dump(base()), "r.yaml")
    assert recipe.secure.protocol == "dealer2pc"
    assert recipe.verify.parties == "processes"
    assert recipe.baselines.mpcformer is not None


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("distill", {"epohcs": 3}, ["at $.distill.epohcs", "unknown key", "layerwise_epochs"]),
        (
            "distill",
            {"layerwise_epoch": 3},
            ["at $.distill.layerwise_epoch", "did you mean 'layerwise_epochs'?"],
        ),
        ("serach", {}, ["at $.serach", "did you mean 'search'?", "allowed: name, seed, teacher"]),
        ("search", {"limits": {"latency": 5}}, ["at $.search.limits.latency", "did you mean 'latency_s'?"]),
        (
            "search",
            {"sites": {"softmax": ["2quat"]}},
            ["at $.search.sites", "did you mean '2quad'?", "allowed: exact"],
        ),
        (
            "search",
            {"sites": {"sofmax": ["exact"]}},
            ["unknown kind of site 'sofmax'", "did you mean 'softmax'?"],
        ),
        ("search", {"sites": {}}, ["no kind of site is named"]),
        ("search", {"objectives": ["kl"]}, ["at $.search.objectives", "'kl' first"]),
        ("search", {"trials": 0}, ["at $.search.trials", "greater than or equal to 1"]),
        ("secure", {"protocol": "dealer2p"}, ["at $.secure.protocol", "did you mean 'dealer2pc'?", "plain"]),
        ("secure", {"network": "wlan"}, ["at $.secure.network", "unknown network profile 'wlan'", "lan"]),
        ("secure", {"networks": ["lan", "moon"]}, ["at $.secure.networks", "unknown network profile 'moon'"]),
        ("secure", {"network": "mine.yaml"}, ["at $.secure.network", "no network profile file", "mine.yaml"]),
        ("secure", {"device": "gpu9"}, ["at $.secure.device", "unknown device profile 'gpu9'"]),
        ("secure", {"sequence_length": "128"}, ["at $.secure.sequence_length", "integer", "'128'"]),
        ("secure", [1], ["at $.secure", "a mapping with the keys protocol"]),
        ("verify", {"parties": "process"}, ["at $.verify.parties", "did you mean 'processes'?"]),
        ("verify", {"max_drop": 1.5}, ["at $.verify.max_drop", "less than 1"]),
        (
            "verify",
            {"emulate": ["lan", "wann"]},
            ["at $.verify.emulate", "unknown network profile 'wann'", "did you mean 'wan'?"],
        ),
        ("verify", {"emulate": ["mine.yaml"]}, ["at $.verify.emulate", "no network profile file"]),
        ("verify", {"emulated_samples": 0}, ["at $.verify.emulated_samples", "greater than or equal to 1"]),
        ("export", {"formats": ["onnx"]}, ["at $.export.formats[0]", "allowed: transformers, torch_export"]),
        ("name", "a/b", ["at $.name", "only letters"]),
        ("baselines", {"mpcfromer": {}}, ["at $.baselines.mpcfromer", "did you mean 'mpcformer'?"]),
        ("baselines", {"mpcformer": {"epochs": 1}}, ["at $.baselines.mpcformer.epochs", "layerwise_epochs"]),
    ],
)
def test_a_fault_says_where_and_what_is_allowed(key: str, value: Any, expected: list[str]) -> None:
    message = fault(base() | {key: value})
    assert message.startswith("r.yaml: not a valid recipe")
    for text in expected:
        assert text in message, message


def test_every_fault_in_one_message() -> None:
    data = base() | {
        "distill": {"epohcs": 3},
        "secure": {"protocol": "nope"},
        "search": {"sites": {"softmax": ["x"]}},
    }
    data["teacher"]["task"]["data"]["lable"] = "l"
    message = fault(data)
    for place in ("$.distill.epohcs", "$.secure.protocol", "$.search.sites", "$.teacher.task.data.lable"):
        assert place in message, message


def test_missing_key() -> None:
    assert "at $.teacher: required" in fault({"seed": 1})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"format": "lines"}, "needs a `pattern`"),
        ({"format": "lines", "pattern": "(?P<text>.+)"}, "no group (?P<label>…)"),
        ({"format": "lines", "pattern": "("}, "not a regular expression"),
        ({"pattern": "(?P<text>.)(?P<label>.)"}, "`pattern` is for format 'lines'"),
        ({"validation": 0.5, "test": 0.5}, "less than a tenth"),
        ({"text_pair": "b"}, "give `text`, the first, as well"),
        ({"splits": {"dev": "x"}}, "$.teacher.task.data.splits"),
    ],
)
def test_data_that_contradicts_itself(data: dict[str, Any], expected: str) -> None:
    recipe = base()
    recipe["teacher"]["task"]["data"] |= data
    message = fault(recipe)
    assert "$.teacher.task.data" in message and expected in message


def test_a_limit_on_a_baseline_that_is_left_out() -> None:
    data = base() | {"baselines": {"mpcformer": None}, "search": {"limits": {"baseline": "mpcformer"}}}
    assert "baselines.mpcformer is null" in fault(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("teacher:\n  a: [1,\n  b: 2\n", "while parsing a flow sequence that began in line 2"),
        (
            "teacher: {}\nsecure: {}\nteacher: {}\n",
            "line 3, column 1: the key 'teacher' is given twice, first in line 1",
        ),
        ("teacher:\n\tcheckpoint: x\n", "line 2"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("1: x\n", "the key 1 is no text"),
    ],
)
def test_syntax_errors_have_a_line(text: str, expected: str) -> None:
    assert expected in fault(text)


def test_exponents_without_a_point_are_numbers() -> None:
    text = yaml.safe_dump(base()) + "distill: {lr: 5e-5, prediction_lr: 1E-5}\n"
    recipe = parse(text, "r.yaml")
    assert (recipe.distill.lr, recipe.distill.prediction_lr) == (5e-5, 1e-5)


def test_profile_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("round_trip_s: 0.01\nbandwidth_bytes_per_s: 1000000\n")
    recipe = parse(yaml.safe_dump(base() | {"secure": {"network": "mine.yaml"}}), str(tmp_path / "r.yaml"))
    assert recipe.secure.priced == ["lan", "wan", str(profile)]
    emulating = base() | {"verify": {"emulate": ["wan", "mine.yaml", "wan"]}}
    recipe = parse(yaml.safe_dump(emulating), str(tmp_path / "r.yaml"))
    assert recipe.verify.emulate == ["wan", str(profile)]


def test_sections_are_independent() -> None:
    one = parse(yaml.safe_dump(base()), "r.yaml")
    two = parse(yaml.safe_dump(base() | {"verify": {"samples": 3}}), "r.yaml")
    assert section(one, "search", "secure") == section(two, "search", "secure")
    assert section(one, "verify") != section(two, "verify")
    assert Recipe.model_validate(dump(one)) == one


def test_every_key_says_what_it_means_or_takes() -> None:
    """docs/recipe_schema.md is written from the descriptions: a section's summary or each key has one."""
    schema = Recipe.model_json_schema()
    for name, definition in schema["$defs"].items():
        if "properties" in definition:
            assert definition.get("description"), name


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_are_valid(name: str) -> None:
    path = find(name)
    recipe = parse(path.read_text(encoding="utf-8"), str(path))
    assert recipe.name == name


EXAMPLES = sorted((Path(recipes.__file__).parent / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_recipes_are_valid(path: Path) -> None:
    recipe = parse(path.read_text(encoding="utf-8"), str(path))
    assert recipe.name == path.stem.replace("_", "-")


def test_there_are_examples_of_both_ways_to_a_teacher() -> None:
    """By fine-tuning and as it is: see what `recipe.teacher.train` says."""
    trains = {parse(path.read_text(encoding="utf-8"), str(path)).teacher.train is None for path in EXAMPLES}
    assert trains == {True, False}


def test_the_tiny_recipe_is_valid(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    assert parse(path.read_text(), str(path)).name == "tiny"
