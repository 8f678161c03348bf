import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distill import Architecture, UnsupportedModel, apply, architecture_of, export, restore
from distill.export import modelling_source

CHEAP = {"softmax": "power4", "activation": "quad_channel"}

RELOAD = """
import json, sys, torch
try:
    import distill
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported, so this would prove nothing")
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for name in sys.argv[2:]:
    case = torch.load(f"{sys.argv[1]}/{name}.pt")
    trusted = {"trust_remote_code": True} if name != "teacher" else {}
    place = f"{sys.argv[1]}/{name}"
    for step in range(2):
        model = AutoModelForSequenceClassification.from_pretrained(place, **trusted)
        with torch.no_grad():
            logits = model(**case["inputs"]).logits
        # A plain model comes back with the sdpa attention, which rounds differently; a student with its own.
        assert (logits - case["logits"]).abs().max() <= (0.0 if trusted else 1e-5), (name, step)
        if step == 0:
            tokenizer = AutoTokenizer.from_pretrained(place)
            assert tokenizer("w1 w2")["input_ids"] == [2, 5, 6, 3]
        place = f"{sys.argv[1]}/{name}-again-{step}"
        model.save_pretrained(place)
    if trusted:
        try:
            AutoModelForSequenceClassification.from_pretrained(f"{sys.argv[1]}/{name}",
            trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error)
        else:
            raise SystemExit("loaded without the replacements")
print("same")
"""


def test_exported_models_reload_without_the_package(
    build: Callable[[str], PreTrainedModel],
    inputs: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    cases: dict[str, PreTrainedModel] = {"teacher": build("bert")}
    for name, family, choice in [
        ("student", "bert", CHEAP),
        ("other", "distilbert", {"softmax": "2relu", "activation": "quad"}),
        ("decoder", "llama", CHEAP),
    ]:
        model = build(family)
        cases[name] = apply(
            model,
            Architecture.uniform(model, choice),
            [{k: v for k, v in inputs.items() if k != "token_type_ids"}],
        )
    for name, model in cases.items():
        batch = (
            inputs
            if model.config.model_type == "bert"
            else {k: inputs[k] for k in ("input_ids", "attention_mask")}
        )
        with torch.no_grad():
            torch.save({"inputs": batch, "logits": model(**batch).logits}, tmp_path / f"{name}.pt")
        export(model, tokenizer, tmp_path / name, f"# {name}\n")
        export(model, tokenizer, tmp_path / name, f"# {name}\n")  # a second time replaces the first
        assert (tmp_path / name / "README.md").read_text() == f"# {name}\n"
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
        assert ("modeling_sordino.py" in files) == (name != "teacher")
        assert not [path for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".old"))]
        loaded = restore(tmp_path / name)
        assert architecture_of(loaded) == architecture_of(model)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    # -I isolates: neither the working directory nor PYTHONPATH is searched. An installed copy is hidden too.
    hide = "import sys; sys.modules['distill'] = None\n"
    child = subprocess.run(
        [sys.executable, "-I", "-c", hide + RELOAD, str(tmp_path), *cases],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert child.stdout.strip().endswith("same"), child.stdout + child.stderr[-3000:]


def test_the_modelling_file_is_the_source_of_the_variants(
    teacher: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    student = apply(teacher, Architecture.uniform(teacher, CHEAP), [inputs])
    text = modelling_source(student)
    compile(text, "modeling_sordino.py", "exec")
    assert "import distill" not in text and "from distill" not in text and "@register" not in text
    assert "class PowerSoftmax(NormalisedWeights)" in text and "class TwoQuadSoftmax" not in text
    assert text == modelling_source(student)


def test_config_carries_the_choices(teacher: PreTrainedModel, tmp_path: Path) -> None:
    architecture = Architecture.uniform(teacher, {"softmax": "2quad"})
    export(apply(teacher, architecture), None, tmp_path / "m", "")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["sordino"]["architecture"]["sites"] == dict(architecture.sites)
    assert config["auto_map"]["AutoModelForSequenceClassification"].endswith(
        "SordinoBertForSequenceClassification"
    )


def test_only_transformers_classes_can_be_exported(teacher: PreTrainedModel) -> None:
    class Own(type(teacher)):  # type: ignore[misc]
        pass

    student = apply(teacher, Architecture.uniform(teacher, {"softmax": "2quad"}))
    student.__class__ = Own
    with pytest.raises(UnsupportedModel, match="not a class of transformers"):
        modelling_source(student)
