"""Export: a model directory that loads with transformers alone, without this package and without a network.

The modelling file is put together from the source of the very classes and functions that trained the model,
so there is no second definition that could drift. The model has a type of its own ("sordino_bert"): with the
family's type, loading it without `trust_remote_code=True` would silently give the family's softmax and
activation with weights that were trained for others.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from distill import attention, errors, variants
from distill.checkpoints import replace_directory, saved_beside
from distill.errors import UnsupportedModel
from distill.variants.softmax_exact import ExactSoftmax

FILE = "modeling_sordino"

HEADER = '''"""{base} with replacements that are cheap under secure multi-party computation.

Written by Sordino; Apache-2.0. Needs only torch and transformers. The replacements and where they stand are
listed in config.json under "sordino".
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, {imported}, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_KEY = "{key}"
'''

FOOTER = '''class Sordino{config}({config}):
    """{base}'s, with a model type of its own, so that the replacements cannot be left out by mistake."""

    model_type = "sordino_{model_type}"


{core_source}class Sordino{base}({base}):
    """{base} with the replacements of `config.sordino` installed."""

    config_class = Sordino{config}

    def __init__(self, config: Sordino{config}, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        install_modules(self, {{cls.__name__: cls for cls in ({classes},)}})


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_KEY, attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_KEY, attention_mask)
'''

CORE = '''class Sordino{core}({core}):
    """The core of the model; families that build it by the type of the configuration find it here."""

    config_class = Sordino{config}


AutoModel.register(Sordino{config}, Sordino{core}, exist_ok=True)


'''


def export(student: PreTrainedModel, tokenizer: Any, out_dir: str | os.PathLike[str], card: str) -> None:
    """Write safetensors, config.json, tokenizer, README.md (`card`) and, for a student, one self-contained
    modelling file.

    `AutoModelFor….from_pretrained(out_dir, trust_remote_code=True)` then gives the student's logits. A model
    without variants is written as plain Hugging Face files. What is at `out_dir` is replaced in one step.

    Args:
        student: from `apply`, `train` or `restore`; or a teacher.
        tokenizer: saved along; None saves none.
        card: text of README.md.

    Raises:
        UnsupportedModel: the student's class is not one of transformers' own.
    """
    target = Path(out_dir)
    temporary = saved_beside(student, target, tokenizer)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    if getattr(student.config, "sordino", None) is not None:
        _write_code(student, temporary)
    replace_directory(temporary, target)


def modelling_source(student: PreTrainedModel) -> str:
    """Text of the self-contained modelling file of a student."""
    base, config = type(student).__name__, type(student.config).__name__
    if getattr(transformers, base, None) is not type(student):
        raise UnsupportedModel(
            f"{base} is not a class of transformers, so an exported model could not import it"
        )
    used: dict[str, type[nn.Module]] = {}
    for entry in student.config.sordino["modules"].values():
        module = variants.get(entry["kind"], entry["variant"]).module
        assert module is not None
        used[module.__name__] = module
    functions: list[Callable[..., Any]] = [
        attention.attention_forward,
        attention.attention_mask,
        attention.is_attention,
        attention.attach,
        attention.install_modules,
    ]
    definitions: list[type] = [errors.DistillError, errors.UnsupportedModel]
    installed: list[type] = [ExactSoftmax, *used.values()]
    for cls in installed:
        # Bases that are ours come first; bases of torch are imported.
        own: list[type] = [
            base_class
            for base_class in reversed(inspect.getmro(cls))
            if base_class.__module__.startswith("distill.")
        ]
        definitions += [base_class for base_class in own if base_class not in definitions]
    sources = [_source(definition) for definition in [*definitions, *functions]]
    # The key names the code: two exported models in one process must not take each other's attention
    # function.
    digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]
    classes = ", ".join(used) if used else "ExactSoftmax"
    found = modeling_auto.MODEL_MAPPING_NAMES.get(student.config.model_type)
    core = found if isinstance(found, str) and found != base else None
    names = {
        "base": base,
        "config": config,
        "imported": ", ".join(sorted({base, config, *([core] if core else [])})),
        "core_source": CORE.format(core=core, config=config) if core else "",
        "model_type": student.config.model_type,
        "classes": classes,
    }
    return "\n\n".join(
        [
            HEADER.format(key=f"sordino_{digest}", **names),
            *(source + "\n" for source in sources),
            FOOTER.format(**names),
        ]
    )


def _source(definition: Any) -> str:
    """Source of a class or function without decorators (they register it in this package)."""
    lines = inspect.getsource(definition).rstrip().split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith(("class ", "def ")))
    return "\n".join(lines[first:])


def _auto_classes(model: PreTrainedModel) -> list[str]:
    """Names of the Auto classes under which transformers would load a model of this class and config."""
    found = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or mapping is None or name.startswith("_"):
            continue
        try:
            entry = mapping[type(model.config)]
        except KeyError:
            continue
        if type(model) in (entry if isinstance(entry, (list, tuple)) else (entry,)):
            found.append(name)
    return sorted(found)


def _write_code(student: PreTrainedModel, directory: Path) -> None:
    """The modelling file, and the entries of config.json that lead to it."""
    base, config = type(student).__name__, type(student.config).__name__
    (directory / f"{FILE}.py").write_text(modelling_source(student), encoding="utf-8")
    path = directory / "config.json"
    described = json.loads(path.read_text())
    described["model_type"] = f"sordino_{student.config.model_type}"
    described["architectures"] = [f"Sordino{base}"]
    described["auto_map"] = {
        "AutoConfig": f"{FILE}.Sordino{config}",
        **{name: f"{FILE}.Sordino{base}" for name in _auto_classes(student)},
    }
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
