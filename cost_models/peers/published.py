"""The published and measured figures that the formulas are held against, each with its source, and how far off they are.

One definition, for the tests, the documentation and `python -m cost_models.peers`. GiB are 2^30 bytes; several sources say GB and
mean those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cost_models.peers import bumblebee, cheetah, crypten, delphi, models, nexus, shaft, sigma, spu
from cost_models.peers.figure import (
    Deviation,
    Figure,
    activation,
    both_ways,
    key_bytes,
    layer,
    layers,
    linear,
    offline,
    online,
    pair,
    part,
    rounds_of,
    rows,
)
from cost_models.workload import Work

_GIB, _MB, _GB = 2**30, 10**6, 10**9

_RUN = "run with CrypTen 0.4.1 and SPU 0.9.5 on two cores, results/benchmarks, 2026-11-22"
_SIGMA_LOGS = "logs of SIGMA's release on two RTX 5090, repository of FuseFSS (ponyyuhan/SUF_new, results/*.json), 2026-01"
_SHAFT_LOGS = "run of SHAFT's release on RTX 5090, report of the same repository, 2026-01-22"
_LLAMA = "run of SIGMA's release on two RTX 5090, 128 tokens"
_DELPHI = (
    "Garimella et al., ASPLOS 2023, artifact: ResNet-18 on TinyImageNet, bytes written by DELPHI's release"
)
_CHEETAH = "run with SPU 0.9.5, Cheetah, on two cores, 2026-11"
_ISSUE = "reported for SPU with Cheetah, 128 tokens: 35.8 GB, of which 23.3 GB the embedding (compare issue 1366 of secretflow/spu)"
_NEXUS = "Zhang et al., NDSS 2025, abstract: 164 MB, 53.6 times less than BumbleBee"


def _crypten() -> list[Figure]:
    s, scores = crypten.SYSTEM, 12 * 128
    exact: list[tuple[str, Callable[[], Sequence[Work]], int, int]] = [
        ("product 128x768x768", linear(128, 768, 768), 5_505_024, 1),
        ("product 128x768x3072", linear(128, 768, 3072), 19_660_800, 1),
        ("ReLU 128x3072", activation("relu", 128 * 3072), 91_226_112, 9),
        ("GELU 128x3072", activation("gelu", 128 * 3072), 163_577_856, 26),
        ("softmax 12x128x128", rows("softmax", scores, 128), 146_313_216, 116),
        ("LayerNorm 128x768", rows("layer_norm", 128, 768, True), 2_390_016, 20),
        ("BERT-base layer", layer("bert-base"), 382_304_256, 190),
        ("BERT-base layer, Quad and 2Quad", layer("bert-base quad"), 79_183_872, 79),
        ("BERT-base", layers("bert-base"), 4_587_651_072, 2280),
        ("BERT-base, Quad and 2Quad", layers("bert-base quad"), 950_206_464, 948),
    ]
    return [f for what, works, size, rounds in exact for f in pair(s, what, works, size, rounds, source=_RUN)]


def _shaft() -> list[Figure]:
    s = shaft.SYSTEM
    encrypted = "SHAFT's example encrypts token types and mask, which are public here"
    found = [
        Figure(s, "GELU 128x3072: MiB both ways", activation("gelu", 128 * 3072), 354 * 2**20, both_ways, _SHAFT_LOGS, 2**20),
        Figure(s, "softmax of 128: MiB both ways", rows("softmax", 1, 128), 0.2383 * 2**20, both_ways, _SHAFT_LOGS, 1e-4 * 2**20),
        Figure(s, "softmax of 128: rounds", rows("softmax", 1, 128), 41, rounds_of, _SHAFT_LOGS),
        Figure(s, "BERT-base layer: bytes a party", layer("bert-base"), 450 * _MB, online, _RUN, _MB),
        Figure(s, "BERT-base layer: rounds", layer("bert-base"), 120, rounds_of, _RUN),
    ]  # fmt: skip
    for name, size, rounds in (("bert-base", 10.46, 1496), ("bert-large", 28.46, 2936)):

        def whole(name: str = name) -> Sequence[Work]:
            return models.whole(f"{name} classifier", 128, "onehot")

        title = f"{name} with one-hot embedding and classifier"
        found += [
            Figure(
                s,
                f"{title}: GiB both ways",
                whole,
                size * _GIB,
                both_ways,
                _SHAFT_LOGS,
                0.01 * _GIB,
                0.002,
                encrypted,
            ),
            Figure(s, f"{title}: rounds", whole, rounds, rounds_of, _SHAFT_LOGS, 0, 0.0025, encrypted),
        ]
    return found


def _sigma() -> list[Figure]:
    logged: list[tuple[str, int, int, int, int, int]] = [
        ("bert-tiny", 128, 37, 21_675_034, 350_064_640, 188),
        ("bert-base", 32, 50, 198_355_538, 3_979_329_536, 1080),
        ("bert-base", 64, 50, 441_539_858, 7_978_659_840, 1104),
        ("bert-base", 128, 50, 1_062_390_674, 18_075_947_008, 1128),
        ("bert-large", 128, 50, 2_832_800_546, 48_799_535_104, 2256),
        ("gpt2", 128, 50, 885_146_258, 15_346_094_080, 1128),
    ]
    found = []
    for name, tokens, bits, size, keys, rounds in logged:
        s, works, title = sigma.system(bits), layers(name, tokens), f"{name}, {tokens} tokens"
        found += [
            Figure(s, f"{title}: bytes both ways", works, size, both_ways, _SIGMA_LOGS),
            Figure(s, f"{title}: bytes of keys a party", works, keys, key_bytes, _SIGMA_LOGS),
            Figure(s, f"{title}: rounds", works, rounds, rounds_of, _SIGMA_LOGS),
        ]
    s, works = sigma.SYSTEM, layers("bert-base")
    for kind, size in (("gelu", 171_048_960), ("softmax", 278_148_096), ("layer_norm", 119_510_928)):
        found.append(Figure(s, f"bert-base, {kind}: bytes both ways", works, size, part(kind), _SIGMA_LOGS))
    s, works = sigma.system(48), layers("llama2-7b")
    return [
        *found,
        Figure(s, "Llama2-7B: GiB a party", works, 6.0 * _GIB, online, _LLAMA, 0.1 * _GIB),
        Figure(s, "Llama2-7B: GiB of keys a party", works, 255 * _GIB, key_bytes, _LLAMA, _GIB),
        Figure(s, "Llama2-7B: rounds", works, 3328, rounds_of, _LLAMA),
    ]


def _spu() -> list[Figure]:
    s, found = spu.SEMI2K_SYSTEM, []
    exact: list[tuple[str, Callable[[], Sequence[Work]], int, int]] = [
        ("product 128x768x3072", linear(128, 768, 3072), 21_233_664, 2),
        ("softmax 12x128x128", rows("softmax", 12 * 128, 128), 38_524_416, 119),
        ("LayerNorm 128x768", rows("layer_norm", 128, 768, True), 5_954_176, 34),
        ("BERT-base layer", layer("bert-base"), 279_284_480, 293),
        ("BERT-base layer, Quad and 2Quad", layer("bert-base quad"), 104_696_576, 173),
    ]
    for what, works, size, messages in exact:
        found += pair(s, what, works, size, messages, source=_RUN)
    found.append(Figure(s, "BERT-base: bytes a party", layers("bert-base"), 3351 * _MB, online, _RUN, _MB))
    why = "measured is the party that sends most, estimated the mean party"
    for what, works, size, messages in (
        ("softmax 12x128x128", rows("softmax", 12 * 128, 128), 47_087_632, 168),
        ("BERT-base layer", layer("bert-base"), 232_689_680, 430),
        ("BERT-base layer, Quad and 2Quad", layer("bert-base quad"), 57_708_552, 265),
    ):
        found += pair(spu.ABY3_SYSTEM, what, works, size, messages, source=_RUN, within=0.06, why=why)
    return found


def _delphi() -> list[Figure]:
    s, relus, width, side = delphi.SYSTEM, activation("relu", 2_228_224), 64, 64
    size, kernel = width * side * side, 9 * width
    works = (Work("conv", "", size, size, width * kernel, 1, side * side, kernel, width, weight=True),)
    garbled, labels = 38_040_244_480, 2_994_733_056
    written = 5 * 310_378_500 + 4 * 155_189_250 + 4 * 77_594_630 + 4 * 38_797_320
    found: list[tuple[str, Callable[[], Sequence[Work]], int, int]] = [
        ("2,228,224 ReLUs", relus, garbled + labels, written),
        ("convolution 64 to 64, 3x3, on 64x64", lambda: works, 151_025_180, 2_359_337),
    ]
    rest: dict[str, Any] = {"source": _DELPHI, "within": 2e-5, "why": "messages' headers"}
    return [
        Figure(s, f"{what}: bytes {phase}", of, value, quantity, **rest)
        for what, of, ahead, query in found
        for phase, value, quantity in (("offline", ahead, offline), ("online", query, online))
    ]


def _cheetah() -> list[Figure]:
    s = cheetah.SYSTEM
    unknown = "which GELU it took and whether it counts one party are not known"
    found: list[tuple[str, Callable[[], Sequence[Work]], float, float, str, float, str]] = [
        ("product 128x768x3072", linear(128, 768, 3072), 15.6 * _MB, 0.1 * _MB, _CHEETAH, 0, ""),
        ("GELU 128x3072", activation("gelu", 128 * 3072), 582 * _MB, _MB, _CHEETAH, 0, ""),
        ("softmax 512x128", rows("softmax", 512, 128), 52 * _MB, 0.1 * _MB, _CHEETAH, 0.015, "transfers come in batches"),
        ("BERT-base without its embedding", _words, 12.5 * _GB, 0.1 * _GB, _ISSUE, 0.2, unknown),
    ]  # fmt: skip
    return [
        Figure(s, f"{what}: bytes a party", works, value, online, source, digits, within, why)
        for what, works, value, digits, source, within, why in found
    ]


def _words() -> Sequence[Work]:
    return models.whole("bert-base")


def _encrypted() -> list[Figure]:
    """BumbleBee and NEXUS, which have one figure each."""
    b, n = bumblebee.SYSTEM, nexus.SYSTEM
    nexus_bytes, ratio = 164 * _MB, 53.6
    steps, inputs = "steps in 32 bits are inferred", "what is sent is inferred from the parameters"
    return [
        Figure(b, "BERT-base: bytes both ways", layers("bert-base"), ratio * nexus_bytes, both_ways, _NEXUS, 0, 0.1, steps),
        Figure(n, "BERT-base: bytes", _words, nexus_bytes, online, _NEXUS, _MB, 0.1, inputs),
    ]  # fmt: skip


def figures() -> list[Figure]:
    """All of them, a system after the other."""
    return [*_crypten(), *_shaft(), *_sigma(), *_spu(), *_delphi(), *_cheetah(), *_encrypted()]


def deviations(chosen: Sequence[Figure] | None = None) -> list[Deviation]:
    """What the formulas give for each figure (all unless chosen). Captures transformers' models: takes some seconds."""
    return [
        Deviation(f, f.of(f.system.estimate(f.works()))) for f in (figures() if chosen is None else chosen)
    ]
