"""Whether a model's values fit fixed point, found on training texts: the certificate of a trained model, and the program that it allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError
from recipes.progress import Callback
from recipes.queries import Queries
from recipes.schema import Secure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    import cost_models
    import secure_eval
    from distill import Tokens
    from secure_eval.ranges import Certificate

SHOWN = 8
"""Values named where many do not fit."""


@dataclass(frozen=True)
class Certified:
    """What training texts say of a model's values.

    program: with bounds and ranges narrowed to what was met; as captured where something does not fit. captured: as captured.
    certificate: None where something does not fit; `violations` then says all that does not.
    """

    program: secure_eval.Program
    captured: secure_eval.Program
    certificate: Certificate | None
    violations: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.certificate is not None

    def cost(self, protocol: str) -> cost_models.Cost:
        """Predicted cost of a query."""
        import cost_models

        return cost_models.predict(self.program, protocol=protocol)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without tensors; `certified` makes it whole again from the model."""
        return {
            "fits": self.fits,
            "violations": list(self.violations),
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "nodes": self.program.to_json(),
        }


def certify(model: PreTrainedModel, tokens: Tokens, secure: Secure, progress: Callback) -> Certified:
    """Calibrates `model` on the first `secure.range_samples` items of `tokens`, queries of the recipe's shape."""
    from secure_eval import RangeError, capture
    from secure_eval.ranges import certify as certify_program

    queries = Queries(tokens, secure.range_samples, secure)
    progress(0, len(queries), "capturing the model")
    program = capture(model, queries.inputs[0])
    progress(0, len(queries), f"calibrating ranges on {queries.count} training texts")
    try:
        found, certificate = certify_program(
            program, queries.inputs, margin_bits=secure.range_margin_bits, protocol=secure.protocol
        )
    except RangeError as error:
        return Certified(program, program, None, tuple(map(str, error.report.violations)))
    progress(len(queries), len(queries), certificate.summary())
    return Certified(found, program, certificate)


def certified(model: PreTrainedModel, tokens: Tokens, secure: Secure, found: Mapping[str, Any]) -> Certified:
    """The same again from what `Certified.to_dict` kept; of `tokens` only shapes matter.

    Raises RecipeError where the model is captured as another program than then.
    """
    from secure_eval import Program, capture
    from secure_eval.ranges import Certificate

    program = capture(model, Queries(tokens, 1, secure).inputs[0])
    kept = Program.from_json(found["nodes"], program.constants)
    if [(n.name, n.op, n.shape) for n in kept.nodes] != [(n.name, n.op, n.shape) for n in program.nodes]:
        raise RecipeError("the model is another program than the one that was certified")
    certificate = None if found["certificate"] is None else Certificate.from_dict(found["certificate"])
    return Certified(replace(program, nodes=kept.nodes), program, certificate, tuple(found["violations"]))


def recorded(found: Mapping[str, Any]) -> dict[str, Any]:
    """`results.record.Ranges` as JSON, of what `Certified.to_dict` kept."""
    from secure_eval.ranges import Certificate

    if found["certificate"] is None:
        return {"fits": False, "violations": found["violations"]}
    certificate = Certificate.from_dict(found["certificate"])
    told = {name: found["certificate"][name] for name in ("inputs", "margin_bits", "columns", "entries")}
    return {"fits": True, "summary": certificate.summary(), "spare_bits": certificate.spare_bits, **told}


def refusal(violations: Sequence[str]) -> str:
    """Why a model is not used, in words."""
    more = f"; and {len(violations) - SHOWN} more" if len(violations) > SHOWN else ""
    return f"{len(violations)} value(s) do not fit fixed point: {'; '.join(violations[:SHOWN])}{more}"
