"""compile(model) -> SecureModel: called like the model, run by the roles of a protocol."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secure_eval import protocols
from secure_eval.capture import PUBLIC_INPUTS, capture
from secure_eval.counting import count
from secure_eval.measurement import Measurement
from secure_eval.network.emulation import Link
from secure_eval.parties.launch import Launcher, LauncherClosed, Threads
from secure_eval.parties.processes import Processes
from secure_eval.parties.roles import Plan
from secure_eval.parties.watch import TIMEOUT_S, checked_timeout
from secure_eval.program import Program, PublicConstant
from secure_eval.protocols.base import Protocol
from secure_eval.ranges import (
    Certificate,
    RangeError,
    Ranges,
    Report,
    calibrate,
    choose_fraction_bits,
    is_guarded,
    narrow_ranges,
    with_guard,
)
from secure_eval.ranges import check as check_ranges
from secure_eval.ranges.calibration import Batch
from secure_eval.ranges.checking import FRACTION_BITS
from secure_eval.reference import inputs_by_name
from secure_eval.spec import check as check_program

PARTIES = ("threads", "processes")

UNCHECKED = "not checked (check=False)"
NO_EXAMPLE = "not checked (a program without example inputs)"


class InputError(ValueError):
    """A query's inputs are not those that the program was captured for."""


class ModelClosed(RuntimeError):
    """The model was closed: before the call, or while it ran."""


class RestartWarning(UserWarning):
    """A query failed, so its roles were ended, and new ones are being set up: set-up is paid for once more."""


class SecureModel:
    """A model under secure computation. Call it with the model's inputs; outputs are revealed to the caller only.

    One query runs at a time; calls from several threads wait for their turn. Inputs that cannot be shared are refused before anything is
    sent or used up. A query that fails later (a role's error, one that ended or stopped) ends all roles, and all randomness that was dealt
    is thrown away with them: the next call starts new ones, with new keys, sets up again, and says so by a RestartWarning and in
    `restarts`.

    `measurement` is that of set-up and of the last offline and online phase; `restarts` how many times set-up was run again after a
    failure, which `measurement` does not add up; `ranges` the report of the check against calibration or else the example, where there was
    one, and `checked` says which. Use as a context manager, or `close()` it: parties are threads or processes that wait for queries.
    """

    def __init__(
        self,
        program: Program,
        protocol: type[Protocol],
        start: Callable[[], Launcher],
        plan: Plan,
        fraction_bits: int,
        checked: str = UNCHECKED,
    ):
        self.checked = checked
        self.program, self.protocol, self.fraction_bits = program, protocol, fraction_bits
        self._start, self._plan = start, plan
        self.ranges: Report | None = None
        self.within_ranges: bool | None = None
        """Of the last query, with a guard: whether every guarded argument was inside its range."""
        self._guard = False
        self.restarts = 0
        self._turn = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._failed: BaseException | None = None
        self._launcher = start()
        self._set_up()

    def _set_up(self) -> None:
        self._ready = 0
        try:
            self._launcher.setup(self.program, self._plan)
        except BaseException:
            self._launcher.close()
            raise
        self.measurement = self._launcher.measurement(self.program)

    @property
    def measurement(self) -> Measurement:
        return self._measurement

    @measurement.setter
    def measurement(self, found: Measurement) -> None:
        found.checked = self.checked
        self._measurement = found

    @property
    def public_constants(self) -> tuple[PublicConstant, ...]:
        """The tensors and attributes of the model that all parties see in the clear, each with the reason."""
        return self.program.public_constants

    def offline(self, queries: int = 1) -> None:
        """Prepares correlated randomness for `queries` more queries; a call does it itself where none is left."""
        with self._turn:
            launcher = self._running()
            for _ in range(queries):
                self._offline(launcher)
            self.measurement = launcher.measurement(self.program)

    def _offline(self, launcher: Launcher) -> None:
        with self._ending_with(launcher):
            launcher.offline()
        self._ready += 1

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Runs one query; same output type as the model's, in floating point.

        Raises InputError where inputs are missing, unknown, of another shape or dtype than the example's, or outside a table; EncodingError
        where a value is no number or does not fit: these use nothing up. NoProgress where a role has stopped; TransportError or
        RuntimeError where one failed; ModelClosed.
        """
        inputs = self._inputs(args, kwargs)
        with self._turn:
            launcher = self._running()
            try:
                prepared = launcher.prepare(inputs)
            except IndexError as error:
                raise InputError(f"an input is outside of its table: {error}") from error
            if not self._ready:
                self._offline(launcher)
            self._ready -= 1
            self.within_ranges = None
            with self._ending_with(launcher):
                outputs = launcher.online(prepared)
            self.measurement = launcher.measurement(self.program)
            if is_guarded(self.program):
                self.within_ranges = not bool(outputs[-1])
            elif self._guard:
                self.within_ranges = True  # every range is proven
        if self.program.restore:
            return self.program.restore(outputs)
        return outputs[:-1] if is_guarded(self.program) else outputs

    def _running(self) -> Launcher:
        """The roles: new ones where a query failed before. Raises ModelClosed."""
        if self._closed:
            raise ModelClosed("the model is closed: compile it again")
        if self._failed is not None:
            warnings.warn(
                f"an earlier query failed ({_first_line(self._failed)}): new roles are set up",
                RestartWarning,
                stacklevel=3,
            )
            launcher = self._start()
            with self._closing:
                self._launcher = launcher
            if self._closed:
                launcher.close()
                raise ModelClosed("the model was closed while new roles were started")
            with self._ending_with(launcher):
                self._set_up()
            self.restarts += 1
            self._failed = None
        return self._launcher

    @contextmanager
    def _ending_with(self, launcher: Launcher) -> Iterator[None]:
        """What runs inside ends the roles if it fails: messages and masks of a query that stopped half-way are never used again."""
        try:
            yield
        except BaseException as error:
            self._failed = error
            launcher.close()
            if self._closed and isinstance(error, LauncherClosed):
                raise ModelClosed(f"the model was {error}") from None
            raise

    def _inputs(self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = self.program.inputs
        if len(args) > len(names):
            raise InputError(
                f"{len(args)} positional inputs; the program has {len(names)}: {', '.join(names)}"
            )
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        if set(inputs) != set(names):
            missing, unknown = sorted(set(names) - set(inputs)), sorted(set(inputs) - set(names))
            raise InputError(
                f"inputs missing: {missing or 'none'}; unknown: {unknown or 'none'}; the program takes {', '.join(names)}"
            )
        for name, value in inputs.items():
            node = self.program[name]
            if tuple(value.shape) != node.shape or value.dtype != node.dtype:
                raise InputError(
                    f"input {name!r} is {value.dtype} {tuple(value.shape)}; the program was captured for {node.dtype} {node.shape}"
                )
        return inputs

    def predicted(self) -> Measurement:
        """The same counts, from the counting run."""
        return count(self.program, self.protocol, self.fraction_bits, self._plan)

    def close(self) -> None:
        """Ends the parties, also while another thread's query runs: that raises ModelClosed there. Safe to call twice."""
        self._closed = True
        with self._closing:
            launcher = self._launcher
        launcher.close()

    def __enter__(self) -> SecureModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def compile(
    model: nn.Module | Program,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    protocol: str = "dealer2pc",
    parties: str = "threads",
    *,
    public: Sequence[str] = PUBLIC_INPUTS,
    embedding: str = "client",
    public_tensors: Sequence[str] = (),
    fraction_bits: int | Literal["auto"] = 16,
    device: torch.device | str = "cpu",
    network: Link | None = None,
    calibration: Sequence[Batch] | None = None,
    narrow: float | None = None,
    certificate: Certificate | None = None,
    check: bool = True,
    timeout: float = TIMEOUT_S,
    guard: bool = False,
) -> SecureModel:
    """Captures a model, starts the roles of a protocol and shares the weights.

    Args:
        model: a module in eval mode, or a captured program.
        example_inputs: inputs of exactly the shapes of later calls, whose values are checked; a program may go without.
        protocol: a name from `protocols.names()`.
        parties: "threads" of this process, for tests; or "processes" of this machine, linked by mutually authenticated TLS.
        public, embedding, public_tensors: see `capture`; `SecureModel.public_constants` lists what all parties see of the model.
        fraction_bits: fraction bits of inputs, weights and truncated values, 8 to 20; "auto" takes the most that fit the calibration.
        device: where shares live ("processes": "cpu" only).
        network: delay and bandwidth that every link between roles is held to (see emulation.py); None leaves them as this machine has
            them. Results and counts do not depend on it.
        calibration: example inputs, as the model is called with. Before anything is started, the values that they lead to are checked
            against the ring and the functions' ranges (see ranges.check); `SecureModel.ranges` is the report.
        narrow: fits reciprocals and inverse roots to the calibrated arguments, with this factor as margin (see ranges.narrow_ranges).
        certificate: of the program, where it is a certified one (see ranges.certify): so that measurements name it.
        check: run the float64 reference on the example and refuse values that do not fit, before anything is started. It costs a forward
            pass or two. Where it is not done, every measurement says so.
        timeout: seconds without progress of a role after which a query, or set-up, is given up with a NoProgress that names the role and
            the phase. A role that computes makes progress, however long it takes.
        guard: give the client one more bit of each query, SecureModel.within_ranges: whether arguments kept inside the ranges of the
            operations that have one (see ranges.with_guard, which says of what). It costs a comparison of each such argument.

    Raises:
        UnsupportedOperations, UnknownProtocol, RangeError (lists every value that does not fit), NoProgress, ValueError (also where weights
        or example have no values because they are on the meta device: there is nothing to share).
    """
    cls = protocols.get(protocol)
    if parties not in PARTIES:
        raise ValueError(f"parties={parties!r}; allowed: {', '.join(PARTIES)}")
    if fraction_bits != "auto" and fraction_bits not in FRACTION_BITS:
        raise ValueError(f'fraction_bits={fraction_bits!r}; allowed: 8 to 20, and "auto" with calibration')
    if calibration is None and (fraction_bits == "auto" or narrow is not None):
        raise ValueError("fraction_bits='auto' and narrow: each needs calibration")
    seconds = checked_timeout(timeout)
    if isinstance(model, Program):
        program = check_program(model)
    elif example_inputs is None:
        raise ValueError("a module needs example_inputs: the shapes of the program are those of the example")
    else:
        _refuse_meta({**dict(model.named_parameters()), **dict(model.named_buffers())})
        program = capture(
            model, example_inputs, public=public, embedding=embedding, public_tensors=public_tensors
        )
    named = {} if example_inputs is None else inputs_by_name(program, _tensors(program, example_inputs))
    _refuse_meta({**program.parameters, **program.constants, **named})
    report: Report | None = None
    checked = []
    if calibration is not None:
        program, report = _fitted(program, calibration, fraction_bits, narrow, protocol)
        fraction_bits = report.fraction_bits
        checked.append(f"calibration of {len(calibration)} inputs")
    assert fraction_bits != "auto"
    if certificate is not None:
        if (certificate.program, certificate.fraction_bits) != (program.key(), fraction_bits):
            raise ValueError(
                f"the certificate is of another program, or of other fraction bits than {fraction_bits}: "
                f"it is of {certificate.program} at {certificate.fraction_bits}, this is {program.key()}"
            )
        checked.append(f"certificate of {certificate.inputs} inputs")
    if check and example_inputs is not None:
        of_example = _example_fits(program, example_inputs, fraction_bits, protocol)
        report = report or of_example
        checked.append("example")
    if not checked:
        checked.append(NO_EXAMPLE if check else UNCHECKED)
    if guard:
        program = with_guard(program)
    plan = Plan(program, cls, fraction_bits)
    bits = fraction_bits

    def start() -> Launcher:
        if parties == "threads":
            return Threads(cls, bits, device, network, seconds)
        return Processes(cls, bits, network=network, timeout=seconds)

    secure = SecureModel(program, cls, start, plan, bits, " and ".join(checked))
    secure.ranges, secure._guard = report, guard
    return secure


def _fitted(
    program: Program,
    batches: Sequence[Batch],
    fraction_bits: int | Literal["auto"],
    narrow: float | None,
    protocol: str,
) -> tuple[Program, Report]:
    """The program, narrowed where that was asked for, and the report of its check; RangeError where values do not fit."""
    observed = calibrate(program, batches)
    if narrow is not None:
        program = narrow_ranges(program, observed, narrow)
    if fraction_bits == "auto":
        return program, choose_fraction_bits(program, observed, protocol=protocol)
    report = check_ranges(program, observed, fraction_bits, protocol=protocol)
    if not report.fits:
        raise RangeError(report)
    return program, report


def _refuse_meta(tensors: Mapping[str, Tensor]) -> None:
    """ValueError with the names of tensors (weights, constants, inputs) that have no values."""
    found = [name for name, tensor in tensors.items() if tensor.is_meta]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"on the meta device, without values: {', '.join(found[:5])}{more}; a model runs with its weights (a cost question, "
            "secure_eval.count or cost_models.predict, does without)"
        )


def _tensors(
    program: Program, example: Sequence[Tensor] | Mapping[str, Tensor]
) -> Sequence[Tensor] | Mapping[str, Tensor]:
    """The inputs of an example that the program takes: others were no tensors."""
    if isinstance(example, Mapping):
        return {k: v for k, v in example.items() if k in program.inputs or isinstance(v, Tensor)}
    return [v for v in example if isinstance(v, Tensor)]


def _example_fits(
    program: Program,
    example: Sequence[Tensor] | Mapping[str, Tensor],
    fraction_bits: int,
    protocol: str,
) -> Report:
    """The report of a check of the one example, without a margin: it is refused where it would come out wrong."""
    observed: Ranges = calibrate(program, [_tensors(program, example)], finite=False)
    report = check_ranges(program, observed, fraction_bits, 0.0, protocol)
    if not report.fits:
        raise RangeError(report)
    return report


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def run(
    function: Callable[..., Any], *tensors: Tensor, protocol: str = "dealer2pc", public: Sequence[int] = ()
) -> Any:
    """Any torch function of tensors, run securely in threads: secret in (but for positions in `public`), revealed out."""
    module = _Function(function).eval()
    names = capture(module, tensors).inputs if public else ()
    with compile(module, tensors, protocol, public=[names[i] for i in public]) as secure:
        return secure(*tensors)
