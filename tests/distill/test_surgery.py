from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill import (
    Architecture,
    Calibration,
    CalibrationMissing,
    UnsupportedModel,
    apply,
    architecture_of,
    calibrate,
    find_sites,
    restore,
    save,
)
from distill.errors import DistillError

Build = Callable[[str], PreTrainedModel]
CHEAP = {"softmax": "power4", "activation": "quad_channel"}
MPCFORMER = {"softmax": "2quad", "activation": "quad"}


def fitting(family: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that `family` takes."""
    if family == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    taken = {"bert", "albert"}
    return {k: v for k, v in inputs.items() if k != "token_type_ids" or family in taken}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "gpt2", "llama", "vit"])
def test_an_exact_student_is_the_teacher(family: str, build: Build, inputs: dict[str, Tensor]) -> None:
    model, batch = build(family), fitting(family, inputs)
    student = apply(model, Architecture())
    assert type(student) is type(model)
    torch.testing.assert_close(student(**batch).logits, model(**batch).logits)
    assert list(student.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("choice", [CHEAP, MPCFORMER, {"softmax": "2relu", "activation": "relu"}])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "vit"])
def test_students_run_and_export(
    family: str, choice: dict[str, str], build: Build, inputs: dict[str, Tensor]
) -> None:
    model, batch = build(family), fitting(family, inputs)
    architecture = Architecture.uniform(model, choice)
    student = apply(model, architecture, [batch])
    logits = student(**batch).logits
    assert torch.isfinite(logits).all()
    assert (logits - model(**batch).logits).abs().max() > 1e-5
    assert architecture_of(student) == architecture
    if family == "gpt2" and choice is not CHEAP:
        return  # one export of each family and all of BERT's are enough
    if family in ("gpt2", "llama"):
        batch["use_cache"] = False  # a cache is not a tensor that a program could return
    program = torch.export.export(student, (), batch)
    torch.testing.assert_close(program.module()(**batch).logits, logits)
    paths = {
        path for node in program.graph.nodes for path, _ in (node.meta.get("nn_module_stack") or {}).values()
    }
    assert {site.name for site in find_sites(model)} <= paths


def test_export_has_the_variant_and_no_softmax(teacher: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    student = apply(teacher, Architecture.uniform(teacher, MPCFORMER))
    targets = {str(node.target) for node in torch.export.export(student, (), inputs).graph.nodes}
    assert not {t for t in targets if "softmax" in t or "gelu" in t}
    exact = {
        str(n.target) for n in torch.export.export(apply(teacher, Architecture()), (), inputs).graph.nodes
    }
    assert {"aten.softmax.int", "aten.gelu.default"} <= exact


@pytest.mark.parametrize("choice", [CHEAP, MPCFORMER, {"softmax": "2relu"}, {}])
def test_padding_changes_nothing(
    choice: dict[str, str], teacher: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    student = apply(teacher, Architecture.uniform(teacher, choice), [inputs])
    padded = student(**inputs).logits[1:]
    alone = student(**{k: v[1:, :5] for k, v in inputs.items()}).logits
    # 2relu's ε/n sees the padded length; everything else is equal up to rounding.
    torch.testing.assert_close(
        padded, alone, atol=0.05 if choice.get("softmax") == "2relu" else 1e-5, rtol=1e-4
    )


def test_left_padding_of_a_decoder_stays_finite(build: Build) -> None:
    model = build("llama")
    student = apply(model, Architecture.uniform(model, MPCFORMER))
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1]]),
    }
    assert torch.isfinite(student(**batch).logits).all()
    exact = apply(model, Architecture())
    torch.testing.assert_close(exact(**batch).logits, model(**batch).logits)


def test_the_teacher_is_left_alone_and_weights_can_be_shared(
    teacher: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    before = teacher(**inputs).logits
    own = apply(teacher, Architecture.uniform(teacher, MPCFORMER))
    shared = apply(teacher, Architecture.uniform(teacher, MPCFORMER), share_weights=True)
    weight = "bert.encoder.layer.0.output.dense.weight"
    assert shared.get_parameter(weight) is teacher.get_parameter(weight)
    assert own.get_parameter(weight) is not teacher.get_parameter(weight)
    torch.testing.assert_close(own(**inputs).logits, shared(**inputs).logits)
    torch.testing.assert_close(teacher(**inputs).logits, before)
    assert teacher.config._attn_implementation == "eager" and not hasattr(teacher.config, "sordino")


def test_calibration_is_needed_and_checked(teacher: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    architecture = Architecture.uniform(teacher, CHEAP)
    with pytest.raises(CalibrationMissing, match="attention.self.softmax"):
        apply(teacher, architecture)
    with pytest.raises(CalibrationMissing, match="no statistics"):
        apply(teacher, architecture, Calibration({}))
    with pytest.raises(UnsupportedModel, match="original teacher"):
        apply(apply(teacher, Architecture()), Architecture())
    with pytest.raises(DistillError, match="at least one batch"):
        calibrate(teacher, [])


def test_calibration_sees_real_tokens_only_and_round_trips(
    teacher: PreTrainedModel, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    calibration = calibrate(teacher, [inputs])
    changed = {**inputs, "input_ids": torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 7)}
    again = calibrate(teacher, [changed])
    for name, statistics in calibration.statistics.items():
        assert set(statistics) == set(again.statistics[name])
        if "moments" in statistics:
            assert statistics["moments"][0, 0] == 14
            torch.testing.assert_close(statistics["moments"], again.statistics[name]["moments"])
        if "scores" in statistics:
            # Rows of real tokens only, and of them what is kept.
            assert len(statistics["scores"]) == 14
            for kept in (calibration, again):
                mask = kept.statistics[name]["keep"][:, None].bool()
                kept.statistics[name]["scores"] = kept.statistics[name]["scores"].masked_fill(~mask, 0.0)
            torch.testing.assert_close(
                calibration.statistics[name]["scores"], again.statistics[name]["scores"]
            )
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert loaded.ranges == calibration.ranges and len(calibration.ranges) == 8
    architecture = Architecture.uniform(teacher, CHEAP)
    torch.testing.assert_close(
        apply(teacher, architecture, loaded)(**inputs).logits,
        apply(teacher, architecture, calibration)(**inputs).logits,
    )


def test_calibration_improves_on_the_published_start(
    teacher: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    reference = teacher(**inputs).logits.detach()
    errors = []
    for choice in (MPCFORMER, CHEAP):
        student = apply(teacher, Architecture.uniform(teacher, choice), [inputs])
        errors.append(float((student(**inputs).logits.detach() - reference).norm()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("choice", [{}, CHEAP, {"softmax": "2quad"}])
def test_save_and_restore(
    choice: dict[str, str], teacher: PreTrainedModel, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    model = apply(teacher, Architecture.uniform(teacher, choice), [inputs]) if choice else teacher
    save(model, tmp_path / "m")
    save(model, tmp_path / "m")
    loaded = restore(tmp_path / "m")
    assert type(loaded) is type(model) and architecture_of(loaded) == architecture_of(model)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    with pytest.raises(DistillError, match="no config.json"):
        restore(tmp_path / "nothing")
