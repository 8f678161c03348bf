"""Scores of a student in fixed point: the protocol `plain`, which computes as the parties do and hides nothing.

The difference to the student's own float predictions is the error of fixed point and of the engine's functions alone,
so it says which points of the front would break under MPC, before anything is trained or sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import secure_eval
from nas.files import digest, read_json, source_digest, write_json
from nas.scores import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1
LEAST_AGREEMENT = 0.99
"""Share of items on which a point's fixed-point prediction has to be its own float one."""


def fixed_point_scores(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, torch.Tensor]],
    scorer: Scorer,
    fraction_bits: int = 16,
) -> dict[str, float]:
    """{"agreement": share of items on which fixed point and float predict the same, "max_logit_error", "items"}.

    batches: inputs of queries, all of one shape. Raises ValueError for batches of several shapes.
    """
    shapes = {tuple((name, tuple(value.shape)) for name, value in batch.items()) for batch in batches}
    if len(shapes) != 1:
        raise ValueError(f"fixed_point: batches of one shape are needed, not of {len(shapes)}")
    program = secure_eval.capture(model, dict(batches[0]))
    error, same, items = 0.0, 0.0, 0
    with (
        torch.inference_mode(),
        secure_eval.compile(program, protocol="plain", fraction_bits=fraction_bits, check=False) as engine,
    ):
        for batch in batches:
            own = scorer.predictions(model(**batch), batch).float()
            fixed = scorer.predictions(engine(**batch), batch).float()
            difference = torch.nan_to_num((fixed - own).abs(), nan=float("inf"))
            error = max(error, min(float(difference.max()), 1e30))
            same += scorer.compare(own, fixed)[scorer.agreement] * len(own)
            items += len(own)
    return {"agreement": same / items, "max_logit_error": error, "items": float(items)}


def broken(scores: Mapping[str, float], least: float = LEAST_AGREEMENT) -> str | None:
    """Why a point with these scores is no candidate, or None."""
    if scores["agreement"] >= least:
        return None
    return (
        f"in fixed point it predicts as in float on {scores['agreement'] * scores['items']:.0f} of {scores['items']:.0f} items, where "
        f"{least:.0%} are needed; largest error of a logit {scores['max_logit_error']:.3g}"
    )


class FixedPointScores:
    """Scores by architecture, kept in `search/fixed_point.json`, so that a killed search goes on."""

    def __init__(self, run_dir: Path, key: str, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """key: names the students by content (`Evaluator.fingerprint`)."""
        self.batches = list(batches)
        self._path = run_dir / "search" / "fixed_point.json"
        self._key = digest(FORMAT, key, [dict(batch) for batch in batches], source_digest(["secure_eval"]))
        found = read_json(self._path)
        fresh = found is None or found.get("key") != self._key
        self._held: dict[str, dict[str, float]] = {} if fresh or found is None else found["scores"]

    def known(self, architecture: Any) -> bool:
        """Whether this architecture has been scored."""
        return architecture.key() in self._held

    def of(self, architecture: Any, model: PreTrainedModel, scorer: Scorer) -> dict[str, float]:
        """The scores of the student with this architecture; computed and written once."""
        if not self.known(architecture):
            self._held[architecture.key()] = fixed_point_scores(model, self.batches, scorer)
            write_json(self._path, {"key": self._key, "scores": self._held})
        return self._held[architecture.key()]
