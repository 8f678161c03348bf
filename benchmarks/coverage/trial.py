"""One model class: built, captured, run in plain fixed-point arithmetic and compared with the float model."""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import secure_eval
from benchmarks.coverage import small
from secure_eval import protocols
from secure_eval.reference import reference

WITHIN = 0.01
"""An output is right where no element is further from the float model's than this part of the largest."""

OUTCOMES = ("right", "refused", "wrong", "operations", "export", "engine", "build")
CAPTURED = ("right", "refused", "wrong")


@dataclass
class Found:
    """What became of a class. `error` is that of the plain run, `meaning` of the float64 reference, as parts of the largest output."""

    head: str
    name: str
    outcome: str
    reason: str = ""
    operations: list[str] = field(default_factory=list)
    sizes: str = ""
    error: float | None = None
    meaning: float | None = None
    megabytes: float = 0.0
    rounds: float = 0
    seconds: float = 0.0


def examine(head: str, model_type: str, name: str, price: bool = False) -> Found:
    """Never raises: what goes wrong is the outcome."""
    found = Found(head, name, "build")
    start = time.monotonic()
    try:
        model, query, wanted = _working(head, model_type, name, found)
        found.outcome = "export"
        program = secure_eval.capture(model, query)
        found.outcome = "engine"
        if price:
            counted = secure_eval.count(program, protocols.get("dealer2pc"))
            found.megabytes, found.rounds = counted.online.bytes / 1e6, counted.online.rounds
        mask = query.get("attention_mask")
        found.meaning = _error(small.outputs(reference(program, query)), wanted, mask)
        try:
            with secure_eval.compile(program, query, "plain") as secure:
                got = small.outputs(secure(**query))
            found.error = _error(got, wanted, mask)
            found.outcome = "right" if found.error <= WITHIN else "wrong"
        except secure_eval.RangeError:
            found.outcome = "refused"
        if found.outcome != "right":
            found.reason = (
                "the program does not mean what the model does"
                if found.meaning > WITHIN
                else _outside(program, query)
            )
    except secure_eval.UnsupportedOperations as error:
        found.outcome = "operations"
        found.operations = sorted({f"{u.operation}: {u.reason}".rstrip(": ") for u in error.operations})
    except Exception as error:
        if found.outcome == "export" and _raised_by_us(error):
            found.outcome = "engine"
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        found.reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    found.seconds = round(time.monotonic() - start, 1)
    return found


def _working(
    head: str, model_type: str, name: str, found: Found
) -> tuple[PreTrainedModel, dict[str, Tensor], dict[str, Tensor]]:
    """The first small model and inputs that run in floating point, and its outputs, which differ from row to row."""
    config_class, model_class = small.classes_of(model_type, name)
    reason: Exception | None = None
    for sizes, model in small.builds(config_class, model_class):
        small.randomise(model)
        for query in small.inputs(model, head):
            try:
                with torch.no_grad():
                    small.settle(model, query)
                    wanted = small.outputs(_uncached(model, query))
                _check_varied(wanted)
            except Exception as error:
                reason = reason or error
                continue
            found.sizes = sizes
            return model, query, wanted
    raise reason or ValueError("nothing could be built")


def _uncached(model: PreTrainedModel, query: dict[str, Tensor]) -> Any:
    caching = getattr(model.config, "use_cache", None)
    if caching:
        model.config.use_cache = False
    try:
        return model(**query)
    finally:
        if caching:
            model.config.use_cache = caching


def _check_varied(wanted: dict[str, Tensor]) -> None:
    if not wanted:
        raise ValueError("the model returns no real tensor")
    for name, value in wanted.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} of the float model is not finite")
    if not any(float(v.std()) > 1e-3 * float(v.abs().max()) > 0 for v in wanted.values() if v.numel() > 1):
        raise ValueError("the float model's outputs are all alike")


def _error(got: dict[str, Tensor], wanted: dict[str, Tensor], mask: Tensor | None) -> float:
    """The largest error of what is no padding, as a part of the largest value of that output."""
    worst = 0.0
    for name, value in wanted.items():
        other = got[name]
        if other.shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}; the model's has {tuple(value.shape)}")
        if mask is not None and value.shape[:2] == mask.shape:
            other, value = other[mask == 1], value[mask == 1]
        scale = float(value.abs().max())
        difference = float((other.double() - value.double()).abs().max())
        worst = max(worst, difference / scale if difference == difference else float("inf"))
    return worst


def _outside(program: Any, query: dict[str, Tensor]) -> str:
    """The first values that do not fit the ranges of the operations that they meet."""
    try:
        report = secure_eval.ranges.check(program, secure_eval.ranges.calibrate(program, [query]))
    except ValueError as error:
        return f"{type(error).__name__}: {str(error)[:160]}"
    kinds = dict.fromkeys(
        f"{v.op}: {v.quantity} {v.value:.3g}, allowed {v.allowed}" for v in report.violations
    )
    return "; ".join(list(kinds)[:3])


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error left torch.export behind: its innermost frame of ours is past the export."""
    files = []
    trace = error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return not any("torch/export" in f or "transformers/models" in f for f in files)


def warm_up() -> None:
    """Loads what every trial needs, and fits the functions' polynomials, once before processes are split off."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.GELU(), torch.nn.Softmax(-1)
    )
    query = {"input": torch.ones(2, 4)}
    torch.set_num_threads(1)
    with secure_eval.compile(model.eval(), query, "plain") as secure:
        secure(**query)


def isolated(head: str, model_type: str, name: str, timeout: float, gigabytes: float, price: bool) -> Found:
    """`examine` in a process of its own that may use so much time and memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        sender.send(examine(head, model_type, name, price))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            found: Found = receiver.recv()
            return found
        return Found(head, name, "export", f"not done in {timeout:.0f} s", seconds=timeout)
    except EOFError:
        return Found(head, name, "engine", "the process died")
    finally:
        process.kill()
        process.join()
