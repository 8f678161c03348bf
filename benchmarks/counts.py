"""Frozen counts: what models cost, to the byte, and what they compute, to the bit, to be the same before and after a redesign.

`--json` writes bytes, rounds, messages, multiply-accumulates and memory of every role and phase for whole models on every protocol, which
needs no weights; and digests of the logits of small models of the same kinds under `plain`. `--same` compares with such a file and says
where it differs. Counts are the same on every machine; digests only on one, since functions' constants are fitted with its linear algebra.

    python -m benchmarks.counts --json results/benchmarks/counts.json
    python -m benchmarks.counts --same results/benchmarks/counts.json [--digests]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import cost_models
import distill
import secure_eval
from secure_eval.measurement import PHASES

LABELS = 2
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NUMBERS = ("bytes", "rounds", "messages", "path_bytes", "handled_bytes")


def text(tokens: int, vocabulary: int) -> dict[str, Tensor]:
    """One text of that many tokens, none of them padding."""
    ids = torch.arange(tokens).remainder(vocabulary)[None]
    return {"input_ids": ids, "attention_mask": torch.ones(1, tokens, dtype=torch.int64)}


def bert(small: bool, **changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    shape: dict[str, Any] = {"num_labels": LABELS}
    if small:
        shape |= {**SMALL, "vocab_size": 99}
    shape |= changes
    config = transformers.BertConfig(**shape)
    return transformers.BertForSequenceClassification(config), text(8 if small else 128, config.vocab_size)


def bert_of_squares(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    model, inputs = bert(small)
    variants = {"softmax": "2quad", "activation": "quad"}
    found = {site.name: variants[site.kind] for site in distill.find_sites(model) if site.kind in variants}
    return distill.apply(model, distill.Architecture(found)), inputs


def minilm(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    if small:
        return bert(True, num_labels=6, hidden_size=48, num_attention_heads=4)
    changes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_labels": 6}
    model, _ = bert(False, **changes)
    return model, text(32, 30522)


def gpt2(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    shape: dict[str, Any] = {"num_labels": LABELS, "pad_token_id": 0}
    if small:
        shape |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    config = transformers.GPT2Config(**shape)
    return transformers.GPT2ForSequenceClassification(config), text(8 if small else 128, config.vocab_size)


def llama(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Grouped heads: four heads of queries share one of keys."""
    width, layers = (32, 2) if small else (512, 4)
    config = transformers.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=3 * width,
        vocab_size=99 if small else 32000,
        num_labels=LABELS,
        pad_token_id=0,
    )
    return transformers.LlamaForSequenceClassification(config), text(8 if small else 64, config.vocab_size)


def vit(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    shape: dict[str, Any] = {"num_labels": 10}
    if small:
        shape |= {**SMALL, "image_size": 32}
    config = transformers.ViTConfig(**shape)
    pixels = torch.linspace(-1, 1, 3 * config.image_size**2).view(1, 3, config.image_size, config.image_size)
    return transformers.ViTForImageClassification(config), {"pixel_values": pixels}


MODELS: Mapping[str, Callable[[bool], tuple[nn.Module, dict[str, Tensor]]]] = {
    "BERT-base, exact, 128 tokens": bert,
    "BERT-base, Quad + 2Quad, 128 tokens": bert_of_squares,
    "MiniLM, 6 layers, 32 tokens": minilm,
    "GPT-2, 128 tokens": gpt2,
    "Llama, 4 layers of 512, grouped heads, 64 tokens": llama,
    "ViT-base, 224 x 224": vit,
}


def counts(name: str, protocol: str) -> dict[str, Any]:
    """Of every phase and role, and what each role holds in memory."""
    with torch.device("meta"):
        model, inputs = MODELS[name](False)
    cost = cost_models.predict(model.eval(), inputs, protocol)
    found: dict[str, Any] = {
        phase: {
            role: {number: getattr(count, number) for number in NUMBERS}
            | {"macs": {str(bits): macs for bits, macs in sorted(count.macs_by_bits.items())}}
            for role, count in sorted(cost.roles.get(phase, {}).items())
        }
        for phase in PHASES
    }
    data = cost.to_dict()["memory"]
    return found | {"memory": {role: data[role] for role in sorted(data)}}


def digest(name: str) -> str:
    """Of the logits of a small model of that kind under `plain`, weights drawn from seed 0."""
    torch.manual_seed(0)
    model, inputs = MODELS[name](True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight + 0.05 * torch.randn(weight.shape, generator=generator))
    with secure_eval.compile(model.eval(), inputs, protocol="plain") as secure:
        logits = secure(**inputs).logits
    return hashlib.blake2b(logits.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def table(digests: bool) -> dict[str, Any]:
    """Everything, by model and protocol."""
    protocols = secure_eval.protocols.names()
    found = {}
    for name in MODELS:
        found[name] = {protocol: counts(name, protocol) for protocol in protocols}
        print(f"counted {name}", file=sys.stderr, flush=True)
    drawn = {name: digest(name) for name in MODELS} if digests else {}
    return {"counts": found, "logits": drawn}


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two tables differ: the place, what was and what is."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{place} / {key}" if place else key)
    elif before != after:
        yield f"{place}: {before} before, {after} now"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table")
    parser.add_argument(
        "--same", type=Path, metavar="FILE", help="compare with a table, exit 1 where it differs"
    )
    parser.add_argument(
        "--digests", action="store_true", help="with --same: of logits as well (the same machine)"
    )
    arguments = parser.parse_args()
    found = table(digests=arguments.json is not None or arguments.digests)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.same:
        before = json.loads(arguments.same.read_text())
        if not arguments.digests:
            before["logits"] = {}
        wrong = list(differences(before, found))
        print("\n".join(wrong) if wrong else "all the same")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
