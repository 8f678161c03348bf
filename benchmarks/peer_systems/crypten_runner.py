"""CrypTen 0.4.1 on one workload: two parties, a process each, over loopback. Stands alone in CrypTen's environment.

    python crypten_runner.py WORKLOAD.npz [--queries 1] [--warm-ups 1]

prints one JSON object. CrypTen's defaults: 64-bit ring, 16 fraction bits, provider "TFP", in which party 0 makes the
triples, so that party 0 could read everything. What it computes is CrypTen's own, but for these repairs, without which the
comparison would be with wrong results:

* GELU is the tanh form with CrypTen's own tanh. Its own GELU goes over a Taylor series of erf that is off without
  bound past |x| = 2.5.
* The reciprocal of 2Quad divides its argument (about 3,700 at 128 tokens) by the public constant 256 first: CrypTen's
  Newton iteration diverges above about 666. That scaling is local and costs no message. The argument is known to be positive, so
  CrypTen is told so and saves the comparison.
* Outputs are decoded as integer / 2^16. CrypTen's decoder is off by exactly 1.0 for negative integers.
* Importing CrypTen loads its ONNX importer, which knows only older versions of torch. It isn't used here, and is left out.

Times are wall times of the slower party from a barrier on; sharing inputs and opening outputs are outside, which favours CrypTen.
`total_s` is CrypTen as it comes, triples made where they are used. Where the file's specification has at most one layer, a
second pass makes the triples first with CrypTen's own tuple cache (`trace`, `fill_cache`), which gives
`offline_s` and `online_s`. Bytes and rounds are CrypTen's communicator's, bytes halved, because it adds sent and received ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
import types
from typing import Any

_SCALE_2QUAD = 256.0
_REPAIRS = ["GELU by tanh", "2Quad's reciprocal scaled into range", "decoder"]


def _import_crypten() -> Any:
    """CrypTen without its ONNX importer."""
    importer = types.ModuleType("crypten.nn.onnx_converter")
    for name in ("from_onnx", "from_pytorch", "from_tensorflow", "TF_AND_TF2ONNX"):
        setattr(importer, name, None)
    sys.modules[importer.__name__] = importer
    import crypten

    return crypten


# The functions, on CrypTen's tensors ------------------------------------------------------------------------


def _linear(x: Any, w: dict[str, Any], name: str) -> Any:
    return x.matmul(w[f"{name}.weight"]) + w[f"{name}.bias"]  # the weight is [in, out] here


def _gelu(x: Any) -> Any:
    inner = (x + x.square() * x * 0.044715) * 0.7978845608028654
    return x * (inner.tanh() + 1) * 0.5


def _quad(x: Any, coefficients: tuple[float, float, float]) -> Any:
    a, b, c = coefficients
    return x.square() * a + x * b + c


def _two_quad(x: Any, shift: float) -> Any:
    import crypten

    squares = (x + shift).square()
    with crypten.config.cfg.temp_override({"functions.reciprocal_all_pos": True}):
        inverse = (squares.sum(-1, keepdim=True) / _SCALE_2QUAD).reciprocal()
    return squares * inverse / _SCALE_2QUAD


def _layer_norm(x: Any, w: dict[str, Any], name: str, epsilon: float) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * (variance + epsilon).inv_sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _bert_layer(x: Any, w: dict[str, Any], i: int, s: dict[str, Any]) -> Any:
    tokens, heads = x.size(0), s["heads"]
    q, k, v = (
        _linear(x, w, f"{i}.{name}").view(tokens, heads, -1).transpose(0, 1)
        for name in ("query", "key", "value")
    )
    scores = q.matmul(k.transpose(1, 2)) / float(q.size(-1)) ** 0.5
    weights = scores.softmax(-1) if s["softmax"] == "exact" else _two_quad(scores, s["two_quad_shift"])
    context = weights.matmul(v).transpose(0, 1).reshape(tokens, -1)
    x = _layer_norm(x + _linear(context, w, f"{i}.attention_output"), w, f"{i}.attention_norm", s["epsilon"])
    inner = _linear(x, w, f"{i}.intermediate")
    inner = _gelu(inner) if s["activation"] == "gelu" else _quad(inner, s["quad"])
    return _layer_norm(x + _linear(inner, w, f"{i}.output"), w, f"{i}.output_norm", s["epsilon"])


def _forward(s: dict[str, Any], inputs: list[Any], w: dict[str, Any]) -> Any:
    x = inputs[0]
    kind = s["kind"]
    if kind == "linear":
        return _linear(x, w, "linear")
    if kind == "mul":
        return x * inputs[1]
    if kind == "relu":
        return x.relu()
    if kind == "gelu":
        return _gelu(x)
    if kind == "softmax":
        return x.softmax(-1)
    if kind == "layer_norm":
        return _layer_norm(x, w, "norm", s["epsilon"])
    if kind == "quad":
        return _quad(x, s["quad"])
    if kind == "2quad":
        return _two_quad(x, s["two_quad_shift"])
    if kind == "bert":
        for i in range(s["layers"]):
            x = _bert_layer(x, w, i, s)
        return x
    raise ValueError(f"unknown kind {kind!r}")


# One party --------------------------------------------------------------------------------------------------


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _party(path: str, queries: int, warm_ups: int) -> dict[str, Any]:
    import numpy as np
    import torch

    crypten = _import_crypten()
    torch.set_num_threads(1)
    started = time.perf_counter()
    crypten.init()
    crypten.config.cfg.communicator.verbose = True  # counts bytes and rounds
    communicator = crypten.communicator.get()
    with np.load(path) as data:
        s = json.loads(str(data["specification"]))
        expected = data["expected"]
        weights = {}
        for key in data.files:
            if key.startswith("weight."):
                plain = torch.from_numpy(data[key])
                matrix = plain.dim() == 2
                weights[key[7:]] = crypten.cryptensor(plain.t().contiguous() if matrix else plain, src=0)
        inputs = [
            crypten.cryptensor(torch.from_numpy(data[k]), src=1) for k in data.files if k.startswith("input.")
        ]
    setup = time.perf_counter() - started

    def timed(call: Any) -> tuple[float, Any]:
        communicator.barrier()
        communicator.reset_communication_stats()
        start = time.perf_counter()
        with crypten.no_grad():
            result = call()
        return time.perf_counter() - start, result

    def query() -> Any:
        return _forward(s, inputs, weights)

    for _ in range(warm_ups):
        timed(query)
    cpu = _cpu_seconds()
    totals = [timed(query) for _ in range(queries)]
    cpu = (_cpu_seconds() - cpu) / queries
    counted = communicator.get_communication_stats()
    apart, results = [], [result for _, result in totals]
    if s["layers"] <= 1:  # more would need tens of GB for the triples
        provider = crypten.mpc.get_default_provider()
        provider.trace(True)
        query()
        provider.trace(False)
        for _ in range(queries):
            offline, _ = timed(provider.fill_cache)
            online, result = timed(query)
            apart.append({"offline_s": offline, "online_s": online})
            results.append(result)
        left = sum(len(tuples) for tuples in provider.tuple_cache.values())
        if left:
            raise RuntimeError(
                f"{left} tuples made by fill_cache were not used: the split is not one of the same query"
            )
    opened = [result._tensor.reveal().numpy().astype(np.float64) / 2**16 for result in results]
    return {
        "total_s": [seconds for seconds, _ in totals],
        "apart": apart,
        "cpu_s": cpu,
        "bytes": counted["bytes"] / 2,
        "rounds": counted["rounds"],
        "max_error": max(float(np.abs(o - expected).max()) for o in opened),
        "setup_s": setup,
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"crypten": crypten.__version__, "torch": torch.__version__},
    }


# Both -------------------------------------------------------------------------------------------------------


def _both(options: argparse.Namespace) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, __file__, options.workload, "--party"]
    command += ["--queries", str(options.queries), "--warm-ups", str(options.warm_ups)]
    parties = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        texts = [party.communicate()[0] for party in parties]
    finally:
        for party in parties:
            party.kill()
            party.wait()
    if any(party.returncode for party in parties):
        raise SystemExit(f"a party of CrypTen failed: exit statuses {[p.returncode for p in parties]}")
    results = [json.loads(text.splitlines()[-1]) for text in texts]
    queries = [{"total_s": max(pair)} for pair in zip(*(r["total_s"] for r in results), strict=True)]
    for query, pair in zip(queries, zip(*(r["apart"] for r in results), strict=True), strict=False):
        query |= {phase: max(p[phase] for p in pair) for phase in ("offline_s", "online_s")}
    return {
        "queries": queries,
        "cpu_s": sum(r["cpu_s"] for r in results),
        "online": {"bytes": max(r["bytes"] for r in results), "rounds": max(r["rounds"] for r in results)},
        "offline": {},
        "setup": {"seconds": max(r["setup_s"] for r in results)},
        "max_error": max(r["max_error"] for r in results),
        "memory_bytes": max(r["memory_bytes"] for r in results),
        "versions": results[0]["versions"],
        "notes": {"repairs": _REPAIRS, "fraction_bits": 16, "provider": "TFP"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CrypTen on one workload.")
    parser.add_argument("workload", help="a file that benchmarks/peers.py wrote")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--party", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.party:
        print(json.dumps(_party(options.workload, options.queries, options.warm_ups)), flush=True)
        os._exit(0)  # gloo's threads may hang at an orderly end
    print(json.dumps(_both(options)))


if __name__ == "__main__":
    main()
