"""The training loop that fine-tuning and distillation share: stages, schedule, validation, checkpoints,
roll-back.

A run is a list of stages; each has its loss and learning rate, and the next starts at the best
validation so far. The batches of epoch e of stage s are a function of (seed, s, e), so a run that was killed
continues with the batch it had not finished. `distill.training_files` keeps its checkpoint.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.batching import Tokens, plan
from distill.errors import DistillError
from distill.precision import autocast, resolve
from distill.surgery import constrain
from distill.training_files import TrainingFiles, put_random, take_random

MAXIMUM_ROLLBACKS = 8

CHECKPOINT_SHARE = 0.05
"""Most of the training time that checkpoints take: after one that took a second, twenty pass before the next."""


@dataclass(frozen=True)
class Stage:
    """A part of a run: name, epochs (may be fractional), peak rate, rate of the variants' coefficients,
    share of the steps in which the rate rises, whether it then decays linearly to 0, and loss(items, batch) ->
    scalar."""

    name: str
    epochs: float
    lr: float
    coefficient_lr: float
    warmup: float
    decay: bool
    loss: Callable[[list[int], dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """What does not depend on the stage; see `FinetuneConfig` for the meanings."""

    batch_size: int
    weight_decay: float
    clip: float
    seed: int
    precision: str
    dropout: bool
    freeze_embeddings: bool
    checkpoint_seconds: float
    validate_every: float


@dataclass
class Progress:
    """Where a run is, and what its checkpoints took: bytes of the last one, seconds of all. JSON-compatible."""

    stage: int
    step: int
    rate_scale: float
    best: dict[str, Any] | None
    history: list[dict[str, Any]]
    seconds: float
    rollbacks: int
    finished: bool
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0


class Loop:
    """One run; see the module docstring."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tokens,
        stages: Sequence[Stage],
        validate: Callable[[], dict[str, Any]],
        settings: LoopSettings,
        directory: Path | None,
        key: str,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """validate() gives figures of the model as it is, "value" (higher is better) among them; key names
        the run's inputs.

        Raises DistillError if `directory` holds another run, or a setting is out of range.
        """
        resolve(settings.precision, model.device)
        if settings.batch_size < 1 or settings.validate_every <= 0:
            raise DistillError("batch_size must be at least 1 and validate_every positive")
        self.model, self.tokens, self.validate = model, tokens, validate
        self.stages = [stage for stage in stages if stage.epochs > 0]
        self.settings, self.report = settings, progress
        self.files = None if directory is None else TrainingFiles(directory, key)
        self.per_epoch = math.ceil(len(tokens) / settings.batch_size)
        self.steps = [max(1, round(stage.epochs * self.per_epoch)) for stage in self.stages]
        self.state = Progress(0, 0, 1.0, None, [], 0.0, 0, False)
        self.resumed = False
        self._best: dict[str, Tensor] | None = None
        self._best_is_new = False
        self._snapshot: dict[str, Any] = {}
        self._interval = settings.checkpoint_seconds
        self._planned: tuple[tuple[int, int], list[list[int]]] = ((-1, -1), [])

    # --- the run
    # -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end (or load, if it was finished), leaving the best model of the last stage in
        `model`."""
        frozen = self._freeze()
        try:
            device = self.model.device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(self.settings.seed)
                optimizer = self._start()
                while not self.state.finished:
                    optimizer = self._run_stage(optimizer)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        self._load(self._best)
        self.model.eval()

    def _run_stage(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """From the current step to the end of the current stage; returns the next stage's optimiser."""
        state, stage, steps = self.state, self.stages[self.state.stage], self.steps[self.state.stage]
        every = max(1, round(self.settings.validate_every * self.per_epoch))
        last_saved = time.monotonic()
        started = last_saved - state.seconds
        losses: list[float] = []
        while state.step < steps:
            epoch, position = divmod(state.step, self.per_epoch)
            items = self._plan(state.stage, epoch)[position]
            loss = self._step(optimizer, stage, steps, items)
            if loss is None:
                self._roll_back(optimizer)
                losses.clear()
                continue
            losses.append(loss)
            state.step += 1
            state.seconds = time.monotonic() - started
            if self.report is not None:
                done = sum(self.steps[: state.stage]) + state.step
                self.report(done, sum(self.steps), f"{stage.name} epoch {epoch + 1}, loss {loss:.4f}")
            if state.step % every == 0 or state.step == steps:
                self._validate(stage, sum(losses) / len(losses))
                losses.clear()
                state.seconds = time.monotonic() - started
            if time.monotonic() - last_saved > self._interval and state.step < steps:
                self._save(optimizer)
                last_saved = time.monotonic()
        self._load(self._best)
        state.stage += 1
        state.step, state.rate_scale = 0, 1.0
        state.finished = state.stage == len(self.stages)
        if not state.finished:
            optimizer = self._optimizer()
        self._save(optimizer)
        return optimizer

    def _step(
        self, optimizer: torch.optim.Optimizer, stage: Stage, steps: int, items: list[int]
    ) -> float | None:
        """One optimiser step; None if the loss or the gradient is not finite (nothing is changed then)."""
        self.model.train(self.settings.dropout)
        device = self.model.device
        batch = {name: value.to(device) for name, value in self.tokens.collate(items).items()}
        factor = rate(self.state.step, steps, stage.warmup, stage.decay) * self.state.rate_scale
        for group in optimizer.param_groups:
            group["lr"] = factor * (stage.coefficient_lr if group["coefficients"] else stage.lr)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, self.settings.precision):
            loss = stage.loss(items, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            return None
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.grad is not None], self.settings.clip
        )
        if not math.isfinite(float(norm)):
            return None
        optimizer.step()
        constrain(self.model)
        return value

    def _plan(self, stage: int, epoch: int) -> list[list[int]]:
        """Batches of an epoch; the last one planned is kept, since it is asked for at every step."""
        place = (stage, epoch)
        if self._planned[0] != place:
            seed = (self.settings.seed * 1009 + stage) * 100_003 + epoch
            self._planned = (place, plan(self.tokens.lengths, self.settings.batch_size, seed))
        return self._planned[1]

    def _validate(self, stage: Stage, loss: float) -> None:
        """Measure; keep the model if it is the best so far (the figure means the same in every stage)."""
        state = self.state
        figures = self.validate()
        entry = {
            "stage": stage.name,
            "step": state.step,
            "epoch": state.step / self.per_epoch,
            "loss": loss,
            **figures,
        }
        state.history.append({**entry, "seconds": state.seconds})
        if math.isfinite(figures["value"]) and (state.best is None or figures["value"] > state.best["value"]):
            state.best = state.history[-1]
            self._best, self._best_is_new = _clone(self.model.state_dict()), True
        if self._best is None:
            raise DistillError(
                f"stage {stage.name!r}: validation gave {figures['value']}, so there is no model to keep"
            )

    # --- parameters
    # ----------------------------------------------------------------------------------------------------

    def _freeze(self) -> list[torch.nn.Parameter]:
        """Stop training of the word embeddings if asked; returns what was frozen."""
        if not self.settings.freeze_embeddings:
            return []
        frozen = [p for p in self.model.get_input_embeddings().parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        return frozen

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW with three groups: decayed matrices; vectors; the variants' coefficients, which have a rate
        of their own."""
        carried = getattr(self.model.config, "sordino", None) or {"modules": {}}
        sites = tuple(f"{name}." for name in carried["modules"])
        groups: list[list[Tensor]] = [[], [], []]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[2 if name.startswith(sites) and sites else 0 if parameter.dim() > 1 else 1].append(
                    parameter
                )
        return torch.optim.AdamW(
            [
                {"params": groups[0], "weight_decay": self.settings.weight_decay, "coefficients": False},
                {"params": groups[1], "weight_decay": 0.0, "coefficients": False},
                {"params": groups[2], "weight_decay": 0.0, "coefficients": True},
            ],
            lr=1e-5,
            fused=True,
        )

    def _load(self, tensors: dict[str, Tensor] | None) -> None:
        assert tensors is not None
        self.model.load_state_dict(tensors)

    # --- checkpoints
    # ---------------------------------------------------------------------------------------------------

    def _start(self) -> torch.optim.Optimizer:
        """Continue from the directory if it holds this run, else begin."""
        optimizer = self._optimizer()
        stored = None if self.files is None else self.files.read()
        if stored is None:
            self._snapshot = self._take(optimizer)
            return optimizer
        self.state = Progress(**stored.progress)
        self.resumed = True
        self._best = stored.best
        if self.state.finished:
            return optimizer
        assert stored.optimizer is not None and stored.random is not None
        self._load(stored.state)
        optimizer.load_state_dict(stored.optimizer)
        put_random(stored.random, self.model.device)
        self._snapshot = self._take(optimizer)
        return optimizer

    def _take(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Copies of everything that a roll-back needs."""
        return {
            "model": _clone(self.model.state_dict()),
            "optimizer": _clone(optimizer.state_dict()),
            "random": take_random(self.model.device),
            "stage": self.state.stage,
            "step": self.state.step,
        }

    def _roll_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Return to the last snapshot and halve the rate; recorded in the history. Raises DistillError when
        it does not help."""
        state = self.state
        state.rollbacks += 1
        if state.rollbacks > MAXIMUM_ROLLBACKS:
            raise DistillError(
                f"training gave no finite loss after {MAXIMUM_ROLLBACKS} halvings of the rate; lower the rate"
            )
        state.rate_scale /= 2
        event = {"event": "rollback", "stage": self.stages[state.stage].name, "from_step": state.step}
        state.history.append({**event, "to_step": self._snapshot["step"], "rate_scale": state.rate_scale})
        self._load(self._snapshot["model"])
        optimizer.load_state_dict(_clone(self._snapshot["optimizer"]))
        state.step = self._snapshot["step"]

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a snapshot and, with a directory, write it in place of the last one."""
        started = time.monotonic()
        self._snapshot = self._take(optimizer)
        if self.files is None:
            return
        best = self._best if self._best_is_new else None
        if self.state.finished:
            self.state.checkpoint_bytes = self.files.write(vars(self.state), best, None, None, None)
        else:
            taken = self._snapshot
            self.state.checkpoint_bytes = self.files.write(
                vars(self.state), best, taken["model"], taken["optimizer"], taken["random"]
            )
        self._best_is_new = False
        took = time.monotonic() - started
        self.state.checkpoint_seconds += took
        if self.settings.checkpoint_seconds > 0:
            self._interval = max(self.settings.checkpoint_seconds, took / CHECKPOINT_SHARE)


def rate(step: int, steps: int, warmup: float, decay: bool) -> float:
    """Share of the peak rate at `step` of `steps`: linear warm-up, then linear decay or constant."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return (steps - step) / max(1, steps - warm) if decay else 1.0


def _clone(value: Any) -> Any:
    """Deep copy of nested dicts and lists of tensors, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _clone(entry) for key, entry in value.items()}
    return [_clone(entry) for entry in value] if isinstance(value, list) else value
