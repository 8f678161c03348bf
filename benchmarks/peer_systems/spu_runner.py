"""SPU 0.9.5 on one workload: SEMI2K (two parties) or ABY3 (three), a process each, over loopback. Stands alone in SPU's environment.

    python spu_runner.py WORKLOAD.npz --protocol semi2k|aby3 [--queries 1] [--warm-ups 1]

prints one JSON object. Ring FM64, 18 fraction bits; SEMI2K's beaver provider is the default TrustedFirstParty, in which party 0
makes the triples, so that party 0 could read everything. This process compiles the jax function, makes the shares and hands
each party its own over a pipe; the parties run SPU's runtime over its brpc link.

Times are wall times of the slowest party from a barrier on, correlated randomness included, which SPU makes where it is used;
sharing inputs and opening outputs are outside, which favours SPU. Bytes and messages are SPU's own ("Link details" of its
profile): send actions, not rounds; the party that sends most counts.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

FRACTION_BITS = 18
PARTIES = {"semi2k": 2, "aby3": 3}
COMPILER_OPTIONS = {"enable_optimize_denominator_with_broadcast": True}
"""Found by measuring: a row's sum is inverted once, not once an element. 2Quad 12x128x128 on SEMI2K takes 0.15 s and 8.6 MB with it, 1.4 s
and 107 MB without; nothing else changes. `disable_div_sqrt_rewrite`, `fxp_div_goldschmidt_iters=1`, other brpc connection types and
larger payloads made no difference beyond noise. `trunc_allow_msb_error` (a fifth fewer bytes) and `enable_lower_accuracy_rsqrt`
(LayerNorm off by 0.02) stay off, as they come: they trade correctness away."""

_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")


# The functions, in jax --------------------------------------------------------------------------------------


def _function(s: dict[str, Any]) -> Callable[..., Any]:
    """The workload as a jax function of (inputs, weights); matrices of weights are [in, out]."""
    import jax
    import jax.numpy as jnp

    def linear(x: Any, w: dict[str, Any], name: str) -> Any:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    def quad(x: Any) -> Any:
        a, b, c = s["quad"]
        return a * jnp.square(x) + b * x + c

    def two_quad(x: Any) -> Any:
        squares = jnp.square(x + s["two_quad_shift"])
        return squares / squares.sum(-1, keepdims=True)

    def layer_norm(x: Any, w: dict[str, Any], name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + s["epsilon"]) * w[f"{name}.weight"] + w[f"{name}.bias"]

    softmax = jax.nn.softmax if s["softmax"] == "exact" else two_quad
    activation = gelu if s["activation"] == "gelu" else quad

    def layer(x: Any, w: dict[str, Any], i: int) -> Any:
        tokens, heads = x.shape[0], s["heads"]
        q, k, v = (
            linear(x, w, f"{i}.{name}").reshape(tokens, heads, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5
        context = (softmax(scores) @ v).transpose(1, 0, 2).reshape(tokens, -1)
        x = layer_norm(x + linear(context, w, f"{i}.attention_output"), w, f"{i}.attention_norm")
        inner = activation(linear(x, w, f"{i}.intermediate"))
        return layer_norm(x + linear(inner, w, f"{i}.output"), w, f"{i}.output_norm")

    def bert(x: Any, w: dict[str, Any]) -> Any:
        for i in range(s["layers"]):
            x = layer(x, w, i)
        return x

    kinds: dict[str, Callable[..., Any]] = {
        "linear": lambda i, w: linear(i["x"], w, "linear"),
        "mul": lambda i, w: i["x"] * i["y"],
        "relu": lambda i, w: jax.nn.relu(i["x"]),
        "gelu": lambda i, w: gelu(i["x"]),
        "softmax": lambda i, w: jax.nn.softmax(i["x"], axis=-1),
        "layer_norm": lambda i, w: layer_norm(i["x"], w, "norm"),
        "quad": lambda i, w: quad(i["x"]),
        "2quad": lambda i, w: two_quad(i["x"]),
        "bert": lambda i, w: bert(i["x"], w),
    }
    return kinds[s["kind"]]


def _configuration(protocol: str) -> Any:
    from spu import libspu

    made = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, protocol.upper()),
        field=libspu.FieldType.FM64,
        fxp_fraction_bits=FRACTION_BITS,
    )
    made.max_concurrency = 1  # one compute thread a party
    made.enable_pphlo_profile = True  # its totals hold the bytes and messages
    return made


# One party --------------------------------------------------------------------------------------------------


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _party(options: argparse.Namespace) -> None:
    """Reads (name, meta, chunks) of its shares from standard input, then None; writes a pickled result to standard output.

    SPU logs to standard output: everything but the result goes to a file from which the totals of the link are read.
    """
    log_path = options.log
    sink = os.fdopen(os.dup(1), "wb")
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)

    from spu import api, libspu

    description = libspu.link.Desc()
    for rank, port in enumerate(options.ports.split(",")):
        description.add_party(f"party{rank}", f"127.0.0.1:{port}")
    # Patient, for machines on which one party is ready long before another.
    description.connect_retry_times, description.connect_retry_interval_ms = 300, 200
    description.recv_timeout_ms = description.http_timeout_ms = 600_000
    link = libspu.link.create_brpc(description, options.rank)
    runtime = api.Runtime(link, _configuration(options.protocol))
    source = sys.stdin.buffer
    executable = libspu.Executable()
    executable.ParseFromString(pickle.load(source))
    while (item := pickle.load(source)) is not None:
        name, meta, chunks = item
        share = libspu.Share()
        share.meta, share.share_chunks = meta, chunks
        runtime.set_var(name, share)

    def query() -> float:
        link.barrier()
        start = time.perf_counter()
        runtime.run(executable)
        return time.perf_counter() - start

    for _ in range(options.warm_ups):
        query()
    cpu = _cpu_seconds()
    seconds = [query() for _ in range(options.queries)]
    cpu = (_cpu_seconds() - cpu) / options.queries
    output = runtime.get_var(executable.output_names[0])
    with open(log_path, encoding="utf-8", errors="replace") as file:
        links = _LINK.findall(file.read())
    if len(links) != options.queries + options.warm_ups:
        raise RuntimeError(
            f"{log_path}: {len(links)} totals of the link for {options.queries + options.warm_ups} queries"
        )
    sent, messages = (int(n) for n in links[-1])
    result = {
        "total_s": seconds,
        "cpu_s": cpu,
        "bytes": sent,
        "messages": messages,
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    pickle.dump((result, output.meta, list(output.share_chunks)), sink)
    sink.flush()
    source.read()  # until the others have answered too: one that leaves early takes their link away
    os._exit(0)


# All of them ------------------------------------------------------------------------------------------------


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [str(free.getsockname()[1]) for free in sockets]
    finally:
        for free in sockets:
            free.close()


def _all(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    import jax
    import numpy as np
    import spu
    from spu import api, libspu
    from spu.utils import frontend

    started = time.perf_counter()
    count = PARTIES[options.protocol]
    data = np.load(options.workload)
    s = json.loads(str(data["specification"]))
    inputs = {k[6:]: data[k] for k in data.files if k.startswith("input.")}
    weights = {
        k[7:]: np.ascontiguousarray(data[k].T) if data[k].ndim == 2 else data[k]
        for k in data.files
        if k.startswith("weight.")
    }
    flat, _ = jax.tree_util.tree_flatten((inputs, weights))
    compiler = libspu.CompilerOptions()
    for name, value in COMPILER_OPTIONS.items():
        setattr(compiler, name, value)
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        _function(s),
        (inputs, weights),
        {},
        [f"in{i}" for i in range(len(flat))],
        [libspu.Visibility.VIS_SECRET] * len(flat),
        lambda outputs: [f"out{i}" for i in range(len(outputs))],
        copts=compiler,
    )
    ports = ",".join(_free_ports(count))
    parties, logs = [], []
    for rank in range(count):
        logs.append(f"{folder}/party{rank}.log")
        command = [sys.executable, __file__, options.workload, "--protocol", options.protocol]
        command += ["--queries", str(options.queries), "--warm-ups", str(options.warm_ups)]
        command += ["--rank", str(rank), "--ports", ports, "--log", logs[-1]]
        parties.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    try:
        io = api.Io(count, _configuration(options.protocol))

        def tell(rank: int, item: Any) -> None:
            pipe = parties[rank].stdin
            assert pipe is not None
            pickle.dump(item, pipe)

        for rank in range(count):
            tell(rank, executable.SerializeToString())
        for i, array in enumerate(flat):
            for rank, share in enumerate(io.make_shares(array, libspu.Visibility.VIS_SECRET)):
                tell(rank, (f"in{i}", share.meta, list(share.share_chunks)))
        for rank in range(count):
            tell(rank, None)
            parties[rank].stdin.flush()  # type: ignore[union-attr]
        setup = time.perf_counter() - started
        try:
            answers = [pickle.load(party.stdout) for party in parties]  # type: ignore[arg-type]
        except EOFError:
            for log in logs:
                with open(log, encoding="utf-8", errors="replace") as file:
                    sys.stderr.write(file.read()[-2000:])
            raise SystemExit("a party of SPU ended without an answer") from None
    finally:
        for party in parties:
            party.kill()
            party.wait()
    results, shares = [], []
    for result, meta, chunks in answers:
        share = libspu.Share()
        share.meta, share.share_chunks = meta, chunks
        results.append(result)
        shares.append(share)
    opened = np.asarray(io.reconstruct(shares), dtype=np.float64)
    return {
        "queries": [{"total_s": max(t)} for t in zip(*(r["total_s"] for r in results), strict=True)],
        "cpu_s": sum(r["cpu_s"] for r in results),
        "online": {
            "bytes": max(r["bytes"] for r in results),
            "messages": max(r["messages"] for r in results),
        },
        "offline": {},
        "setup": {"seconds": setup},
        "max_error": float(np.abs(opened - data["expected"]).max()),
        "memory_bytes": max(r["memory_bytes"] for r in results),
        "versions": {"spu": spu.__version__, "jax": jax.__version__},
        "notes": {"fraction_bits": FRACTION_BITS, "compiler_options": COMPILER_OPTIONS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="SPU on one workload.")
    parser.add_argument("workload", help="a file that benchmarks/peers.py wrote")
    parser.add_argument("--protocol", choices=sorted(PARTIES), required=True)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        _party(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = _all(options, folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
