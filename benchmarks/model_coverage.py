"""Which of transformers' model classes the engine captures as they are, and which operations would unlock most of the others.

    python benchmarks/model_coverage.py [--mapping sequence image causal] [--only bert llama] [--json found.json] [--again found.json]

Every class of an AutoModel mapping is built from its default configuration, with no more than two layers of a kind, without weights (on
the meta device), captured for a batch of two, and counted under dealer2pc. Sizes are the defaults: on the meta device they cost nothing,
and a configuration that is made smaller field by field often contradicts itself. Each model runs in a process of its own, so that one that
hangs or dies costs no other. What a model is not captured for is one of:

    operations    operations on secrets without a rule: all of them are known
    export        torch.export cannot trace it: its Python code reads a value, or needs something that is not installed
    build         it cannot be built, or called, from its default configuration: says nothing about the engine
    engine        the engine fails on what it captured: a bug

The table of operations is sorted by the models that each would unlock alone; an operation that is one of several that a model lacks
counts under "with others". docs/engine.md has the figures of the last run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

import secure_eval
from secure_eval import protocols

MAPPINGS = {
    "sequence": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
}
BATCH, LENGTH, LAYERS = 2, 16, 2
OUTCOMES = ("captured", "operations", "export", "build", "engine")

_DEPTHS = {
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_n_layers",
    "num_block_layers",
    "num_hidden_blocks",
    "num_attention_blocks",
}
"""Fields of a configuration that count equal layers."""


@dataclass
class Found:
    """What became of one model class."""

    mapping: str
    name: str
    outcome: str
    reason: str = ""
    operations: list[str] = field(default_factory=list)
    nodes: int = 0
    megabytes: float = 0.0
    rounds: float = 0
    seconds: float = 0.0


def _fewer_layers(config: PretrainedConfig) -> dict[str, Any]:
    """Arguments that make a configuration like this one with at most LAYERS layers of a kind, in its parts as well."""
    changed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name in _DEPTHS and isinstance(value, int) and value > LAYERS:
            changed[name] = LAYERS
        elif isinstance(value, PretrainedConfig) and (parts := _fewer_layers(value)):
            changed[name] = parts
    return changed


def _build(config_class: type[PretrainedConfig], model_class: type[PreTrainedModel]) -> PreTrainedModel:
    default = config_class()
    try:
        config = config_class(**_fewer_layers(default))
        with torch.device("meta"):
            model = model_class._from_config(config)
    except Exception:  # a list with an entry a layer, say: then all its layers
        config = default
        with torch.device("meta"):
            model = model_class._from_config(config)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
    return model.eval().to("meta")


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    config = model.config
    if model.main_input_name == "input_ids":
        ids = torch.zeros(BATCH, LENGTH, dtype=torch.long, device="meta")
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        # Sequence classifiers of both halves make the decoder's input themselves.
        return inputs
    if model.main_input_name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        return {"pixel_values": torch.zeros(BATCH, channels, height, width, device="meta")}
    raise ValueError(f"no input is made here for {model.main_input_name!r}")


def examine(mapping: str, config_class: Any, model_class: Any) -> Found:
    """Builds, captures and counts one model class."""
    found = Found(mapping, model_class.__name__, "build")
    start = time.monotonic()
    try:
        model = _build(config_class, model_class)
        inputs = _inputs(model)
        with torch.no_grad():
            found.outcome = "export"
            program = secure_eval.capture(model, inputs)
            found.outcome = "engine"
            counted = secure_eval.count(program, protocols.get("dealer2pc"))
        found.outcome, found.nodes = "captured", len(program.nodes)
        found.megabytes, found.rounds = counted.online.bytes / 1e6, counted.online.rounds
    except secure_eval.UnsupportedOperations as error:
        found.outcome = "operations"
        found.operations = sorted({f"{u.operation}: {u.reason}".rstrip(": ") for u in error.operations})
    except Exception as error:
        if found.outcome == "export" and _raised_by_us(error):
            found.outcome = "engine"
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        found.reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
        if (
            found.outcome == "export"
            and "DataDependent" not in found.reason
            and not _runs(config_class, model_class)
        ):
            found.outcome = "build"
    found.seconds = time.monotonic() - start
    return found


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error left torch.export behind: its innermost frame of ours is past the export."""
    files = []
    trace = error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return not any("torch/export" in f or "transformers/models" in f for f in files)


def _runs(config_class: Any, model_class: Any) -> bool:
    """Whether the model can be called at all without values: a default configuration may contradict itself."""
    try:
        model = _build(config_class, model_class)
        with torch.no_grad():
            model(**_inputs(model))
    except NotImplementedError:  # it reads a value, which the meta device has none of
        return True
    except Exception as error:
        return "meta" in str(error)
    return True


def _isolated(mapping: str, config_class: Any, model_class: Any, timeout: float) -> Found:
    """`examine` in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(examine(mapping, config_class, model_class))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            found: Found = receiver.recv()
            return found
        return Found(
            mapping, model_class.__name__, "export", f"not traced in {timeout:.0f} s", seconds=timeout
        )
    except EOFError:
        return Found(mapping, model_class.__name__, "engine", "the process died")
    finally:
        process.kill()
        process.join()


def classes(mapping: str, only: list[str]) -> Iterator[tuple[Any, Any]]:
    """(configuration class, model class) of a mapping; those whose name contains one of `only`, if given."""
    seen: set[type] = set()
    for config_class, model_classes in MAPPINGS[mapping].items():
        for model_class in model_classes if isinstance(model_classes, tuple) else (model_classes,):
            assert model_class is not None
            chosen = not only or any(word.lower() in model_class.__name__.lower() for word in only)
            if chosen and model_class not in seen:
                seen.add(model_class)
                yield config_class, model_class


def report(found: list[Found]) -> str:
    """Tables of outcomes, of missing operations, and of why export fails, in Markdown."""
    lines = ["| mapping | tried | " + " | ".join(OUTCOMES) + " |", "|---|---|" + "---|" * len(OUTCOMES)]
    for mapping in dict.fromkeys(f.mapping for f in found):
        part = [f for f in found if f.mapping == mapping]
        counts = Counter(f.outcome for f in part)
        lines.append(f"| {mapping} | {len(part)} | " + " | ".join(str(counts[o]) for o in OUTCOMES) + " |")
    alone, others, where = Counter[str](), Counter[str](), dict[str, list[str]]()
    for f in found:
        for operation in f.operations:
            (alone if len(f.operations) == 1 else others)[operation] += 1
            where.setdefault(operation, []).append(f.name)
    lines += ["", "| missing operation | unlocks alone | with others | for example |", "|---|---|---|---|"]
    for operation in sorted(where, key=lambda o: (-alone[o], -others[o], o)):
        lines.append(
            f"| {operation} | {alone[operation]} | {others[operation]} | {', '.join(where[operation][:3])} |"
        )
    for outcome in ("export", "engine", "build"):
        lines += ["", f"{outcome}:"]
        lines += [f"  {f.name}: {f.reason}" for f in found if f.outcome == outcome]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mapping", nargs="+", choices=MAPPINGS, default=list(MAPPINGS))
    parser.add_argument("--only", nargs="+", default=[], help="parts of model class names")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a model")
    parser.add_argument(
        "--again",
        type=Path,
        help="a file of --json: what it says of captured models and of those that cannot be built is kept",
    )
    parser.add_argument("--json", type=Path, help="also write every model's outcome here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found: list[Found] = []
    before = [Found(**f) for f in json.loads(arguments.again.read_text())] if arguments.again else []
    kept = {(f.mapping, f.name): f for f in before if f.outcome in ("captured", "build")}
    for mapping in arguments.mapping:
        for config_class, model_class in classes(mapping, arguments.only):
            if known := kept.get((mapping, model_class.__name__)):
                found.append(known)
                continue
            found.append(_isolated(mapping, config_class, model_class, arguments.timeout))
            last = found[-1]
            detail = last.reason or "; ".join(last.operations)
            print(f"{last.name}: {last.outcome} {detail} ({last.seconds:.1f} s)", file=sys.stderr, flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n\n{report(found)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(f) for f in found], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
