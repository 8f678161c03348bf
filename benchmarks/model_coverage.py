"""Of transformers' model classes, which the engine captures as they are, and of which what it computes is right.

    python -m benchmarks.model_coverage --into survey.jsonl [--head sequence image] [--only bert llama] [--again wrong operations]
    python -m benchmarks.model_coverage --into survey.jsonl --table [--before earlier.jsonl] [--json results/benchmarks/model-coverage.json]

Every class of an AutoModel mapping is built from its default configuration with small sizes that are demanding (heads of an odd width, one
head, grouped heads; see coverage/small.py) and random weights of the size of trained ones, captured for rows without padding, padded on the
left and on the right, run under `plain`, and compared with the float model where there is no padding. Each model runs in a process of its
own with a bound on time and memory; every outcome is a line of the file, and classes that are in it already are left out, so that a survey
that was interrupted goes on. An outcome is one of:

    right         no element of an output is further from the float model's than 1 % of the output's largest
    refused       captured, and refused because values of the example leave the ranges of the operations that they meet
    wrong         captured, and neither
    operations    operations on secrets without a rule: all of them are known
    export        torch.export cannot trace it, or not in time: its Python code reads a value, or needs what is not installed
    engine        the engine fails on what it captured: a bug
    build         it cannot be built, or called, from its default configuration, or needs more parameters than are run here
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

from benchmarks.coverage.table import report
from benchmarks.coverage.trial import OUTCOMES, Found, isolated, warm_up
from results.record import hardware

HEADS = {
    "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "tokens": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "questions": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "embedding": auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    "image embedding": auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
    "audio": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "speech": auto.MODEL_FOR_CTC_MAPPING_NAMES,
}


def classes(head: str, only: list[str]) -> Iterator[tuple[str, str]]:
    """(model type, class name) of a mapping, each class once; those whose name contains one of `only`, if given."""
    seen: set[str] = set()
    for model_type, names in HEADS[head].items():
        for name in (names,) if isinstance(names, str) else names:
            if name not in seen and (not only or any(word.lower() in name.lower() for word in only)):
                seen.add(name)
                yield model_type, name


def survey(
    into: Path,
    heads: list[str],
    only: list[str],
    timeout: float,
    gigabytes: float,
    price: bool,
    most: int | None,
) -> None:
    """Examines the classes that `into` does not know yet, and adds a line for each."""
    known = {(f.head, f.name) for f in stored(into)}
    warm_up()
    for head in heads:
        for model_type, name in classes(head, only):
            if (head, name) in known:
                continue
            if most is not None and not most:
                return
            most = most and most - 1
            found = isolated(head, model_type, name, timeout, gigabytes, price)
            with into.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            detail = found.reason or "; ".join(found.operations)
            error = "" if found.error is None else f"{found.error:.2g} "
            print(
                f"{head} {name}: {found.outcome} {error}{detail} ({found.seconds:.1f} s)",
                file=sys.stderr,
                flush=True,
            )


def stored(path: Path) -> list[Found]:
    """The outcomes in a file, the last of a class that is there twice, in the order of the mappings."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {(f["head"], f["name"]): Found(**f) for f in map(json.loads, lines)}
    heads = list(HEADS)
    return sorted(found.values(), key=lambda f: heads.index(f.head))


def forget(path: Path, outcomes: list[str], only: list[str]) -> None:
    """Drops the lines of classes that are to be tried again."""
    kept = [
        f
        for f in stored(path)
        if f.outcome not in outcomes or only and not any(w.lower() in f.name.lower() for w in only)
    ]
    path.write_text("".join(json.dumps(asdict(f)) + "\n" for f in kept), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, required=True, help="file of JSON lines, one a class")
    parser.add_argument("--head", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--only", nargs="+", default=[], help="parts of model class names")
    parser.add_argument("--again", nargs="+", choices=OUTCOMES, default=[], help="outcomes to be tried again")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds a class")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="memory a class")
    parser.add_argument("--price", action="store_true", help="also count each class under dealer2pc")
    parser.add_argument("--most", type=int, help="stop after so many classes")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is in the file")
    parser.add_argument("--before", type=Path, help="an earlier survey, to stand beside")
    parser.add_argument("--json", type=Path, help="also write everything as one JSON file")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.again:
            forget(arguments.into, arguments.again, arguments.only)
        survey(
            arguments.into, arguments.head, arguments.only, arguments.timeout, arguments.gigabytes,
            arguments.price, arguments.most,
        )  # fmt: skip
    found = [f for f in stored(arguments.into) if f.head in arguments.head]
    before = stored(arguments.before) if arguments.before else []
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{versions}\n\n{report(found, before)}")
    if arguments.json:
        whole = {
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions,
            "hardware": hardware(),
            "found": [asdict(f) for f in found],
            "before": [asdict(f) for f in before],
        }
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
