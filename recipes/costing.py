"""`sordino cost`: questions about what models cost, answered as JSON-like dicts from configurations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recipes.costs import PHASES
from recipes.errors import RecipeError, suggestion
from recipes.pricing import meta_inputs, skeleton
from recipes.subjects import Subject

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    import cost_models
    import secure_eval


@dataclass(frozen=True)
class Setting:
    """Under what a subject is priced. `network` and `device` are the names given, `link` and `machine` what they stand for;
    `systems`: comparison systems to estimate as well; `prices`: with them, money is told too; `new_tokens`: to generate after
    `sequence_length` tokens."""

    network: str
    device: str
    link: cost_models.Network
    machine: cost_models.Device
    batch: int = 1
    sequence_length: int = 128
    systems: tuple[str, ...] = ()
    prices: cost_models.Prices | None = None
    queries_per_setup: int = 100_000
    new_tokens: int = 0

    @classmethod
    def named(
        cls,
        network: str,
        device: str,
        batch: int = 1,
        sequence_length: int = 128,
        systems: Sequence[str] = (),
        prices: str | None = None,
        queries_per_setup: int = 100_000,
        new_tokens: int = 0,
    ) -> Setting:
        """Loads the profiles. Raises ProfileError, and RecipeError for a comparison system that is not known."""
        import cost_models

        return cls(
            network,
            device,
            cost_models.network_profile(network),
            cost_models.device_profile(device),
            batch,
            sequence_length,
            known_systems(systems),
            None if prices is None else cost_models.price_profile(prices),
            queries_per_setup,
            new_tokens,
        )


class Models:
    """Models without weights and their programs, each built once however many questions are asked about it."""

    def __init__(self) -> None:
        self._models: dict[str, PreTrainedModel] = {}
        self._shaped: dict[tuple[str, int, int], Shaped] = {}

    def shaped(self, name: str, batch: int, sequence_length: int) -> Shaped:
        """The model with a query's shapes. Raises RecipeError for one that does not load or does not take them."""
        key = (name, batch, sequence_length)
        if key not in self._shaped:
            if name not in self._models:
                self._models[name] = skeleton(name)
            model = self._models[name]
            self._shaped[key] = Shaped(model, meta_inputs(model, batch, sequence_length))
        return self._shaped[key]


class Shaped:
    """A model with a query's shapes; captured and counted when first asked."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]):
        self.model, self._inputs = model, inputs
        self._costs: dict[str, cost_models.Cost] = {}

    @property
    def takes_tokens(self) -> bool:
        return "input_ids" in self._inputs

    @cached_property
    def captured(self) -> secure_eval.Program:
        """The program as the model says it. Raises secure_eval.UnsupportedOperations, with the whole list."""
        import secure_eval

        return secure_eval.capture(self.model, self._inputs, passes=())

    @cached_property
    def program(self) -> secure_eval.Program:
        """The program that runs. Raises as `captured` does."""
        from secure_eval.passes import run_passes

        return run_passes(self.captured)

    def cost(self, protocol: str) -> cost_models.Cost:
        import cost_models

        if protocol not in self._costs:
            self._costs[protocol] = cost_models.predict(self.program, protocol=protocol)
        return self._costs[protocol]


def answer(models: Models, subject: Subject, setting: Setting) -> dict[str, Any]:
    """The predicted cost of one query, in the words of `sordino cost --json`.

    Raises RecipeError or another ValueError for an unknown model or protocol, and secure_eval.UnsupportedOperations, with the
    whole list, for a model that cannot run securely.
    """
    import cost_models
    from cost_models.generation import check_generation
    from secure_eval.disclosure import public_lines

    shaped = models.shaped(subject.model, setting.batch, setting.sequence_length)
    if setting.new_tokens:
        check_generation(shaped.model, setting.sequence_length, setting.new_tokens, setting.batch)
    cost = shaped.cost(subject.protocol)

    def seconds(counts: Any) -> dict[str, float]:
        return cost_models.seconds(counts, setting.link, setting.machine).to_dict()

    def parts(kind: str, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {kind: name, **_exchanged(counts), "macs": round(counts.macs), "seconds": seconds(counts)}
            for name, counts in table.items()
        ]

    found: dict[str, Any] = {
        **asdict(subject),
        "network": setting.network,
        "device": setting.device,
        "device_profile": setting.machine.source(),
        "batch": setting.batch,
        "sequence_length": setting.sequence_length,
        "link": {
            "round_trip_s": setting.link.round_trip_s,
            "bandwidth_bytes_per_s": setting.link.bandwidth_bytes_per_s,
        },
        "setup": _exchanged(cost.setup),
        "offline": {"bytes": round(cost.offline.bytes)},
        "online": _exchanged(cost.online) | {"macs": round(cost.online.macs)},
        "seconds": seconds(cost),
        "phases": {
            phase: getattr(cost, phase).to_dict()
            | {
                "macs": round(getattr(cost, phase).macs),
                "peak_memory_bytes": _most(cost.memory, f"{phase}_peak_bytes"),
                "seconds": cost_models.seconds(cost, setting.link, setting.machine, phase).to_dict(),
            }
            for phase in PHASES
        },
        "memory": {
            "peak_bytes": cost.peak_memory_bytes,
            "model_bytes": _most(cost.memory, "model_bytes"),
            "stored_bytes": cost.stored_bytes,
        },
        "by_site": parts("site", cost.by_site),
        "by_operation": parts("operation", cost.by_operation),
        "public": public_lines(shaped.program),
    }
    if setting.prices is not None:
        found["money"] = cost_models.money(
            cost,
            setting.link,
            setting.machine,
            setting.prices,
            queries_per_setup=setting.queries_per_setup,
        ).to_dict()
    if setting.new_tokens:
        found["generation"] = _generation(shaped, subject, setting)
    if setting.systems:
        found["systems"] = [_system(shaped.captured, name, setting) for name in setting.systems]
    return found


def _generation(shaped: Shaped, subject: Subject, setting: Setting) -> dict[str, Any]:
    """Counts and seconds of a generation's parts: the prompt, its first and its last further token, and all of it."""
    import cost_models

    found = cost_models.predict_generation(
        shaped.model, setting.sequence_length, setting.new_tokens, subject.protocol, batch=setting.batch
    )

    def part(cost: cost_models.Cost) -> dict[str, Any]:
        return {
            phase: _exchanged(getattr(cost, phase))
            | {"seconds": cost_models.seconds(cost, setting.link, setting.machine, phase).to_dict()}
            for phase in ("offline", "online")
        }

    costs = {"prefill": found.prefill, "first": found.first, "last": found.last, "total": found.total}
    return {"new_tokens": setting.new_tokens, **{name: part(cost) for name, cost in costs.items()}}


def compare(models: Models, subjects: Sequence[Subject], setting: Setting) -> dict[str, Any]:
    """Two subjects' answers and the second's figures as ratios of the first's (None where that is 0)."""
    for subject in subjects:  # refused before the first is counted
        models.shaped(subject.model, setting.batch, setting.sequence_length)
    first, second = (answer(models, subject, setting) for subject in subjects)
    return {
        "device_profile": setting.machine.source(),
        "compare": [first, second],
        "ratios": ratios(first, second),
    }


def ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What the second answer has of everything, as a multiple of the first's."""

    def of(a: float | None, b: float | None) -> float | None:
        return None if b is None or not a else b / a

    found: dict[str, Any] = {
        phase: {
            "bytes": of(first["phases"][phase]["bytes"], second["phases"][phase]["bytes"]),
            "rounds": of(first["phases"][phase]["rounds"], second["phases"][phase]["rounds"]),
            "macs": of(first["phases"][phase]["macs"], second["phases"][phase]["macs"]),
            "seconds": of(
                first["phases"][phase]["seconds"]["total"], second["phases"][phase]["seconds"]["total"]
            ),
        }
        for phase in PHASES
    }
    found["seconds"] = {key: of(value, second["seconds"][key]) for key, value in first["seconds"].items()}
    if "money" in first and "money" in second:
        mine, others = first["money"]["total"], second["money"]["total"]
        found["money"] = {key: of(mine[key], others[key]) for key in ("total_cents", "least_cents")}
    return found


def known_systems(names: Sequence[str]) -> tuple[str, ...]:
    """The comparison systems asked for, each once; "all" stands for every one. Raises RecipeError."""
    if not names:
        return ()
    from cost_models import peers

    allowed = list(peers.names())
    found: dict[str, None] = {}
    for name in names:
        if name != "all" and name not in allowed:
            raise RecipeError(
                f"--system: {name!r} is no comparison system{suggestion(name, [*allowed, 'all'])}"
            )
        found.update(dict.fromkeys(allowed if name == "all" else [name]))
    return tuple(found)


def at_link(setting: Setting, **changes: float) -> Setting:
    """The same setting with a changed network."""
    return replace(setting, link=replace(setting.link, **changes))  # type: ignore[arg-type]


def _most(memory: Mapping[str, Any], field: str) -> int:
    """The most that one computing party holds."""
    return max((getattr(m, field) for role, m in memory.items() if role.startswith("party")), default=0)


def _exchanged(counts: Any) -> dict[str, int]:
    return {"bytes": round(counts.bytes), "rounds": round(counts.rounds)}


def _system(program: secure_eval.Program, name: str, setting: Setting) -> dict[str, Any]:
    """A comparison system's estimate with its seconds on the network, and with its money where prices are given."""
    import cost_models
    from cost_models import peers
    from cost_models.prices import estimated_seconds

    estimate = peers.estimate(program, name)
    found: dict[str, Any] = {**estimate.to_dict(), "seconds": estimated_seconds(estimate, setting.link)}
    if setting.prices is not None:
        found["money"] = cost_models.money(
            estimate, setting.link, prices=setting.prices, queries_per_setup=setting.queries_per_setup
        ).to_dict()
    return found
