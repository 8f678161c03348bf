"""Where a student's gain on the published recipe comes from: from its training, or from calibration and search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.record import Candidate


def gains(models: Sequence[Candidate], chosen: str) -> dict[str, Any]:
    """{"training", "calibration", "total": differences of test accuracy, "text"}; {} unless both baselines were run.

    training: Quad and 2Quad everywhere, trained as the students are, minus the same trained as published.
    calibration: the chosen student (calibrated variants, chosen by the search) minus the former.
    """
    found = {model.id: model.accuracy.test for model in models}
    scores = [found.get(name) for name in ("mpcformer", "mpcformer_form", chosen)]
    if any(score is None for score in scores):
        return {}
    published, form, student = (float(score) for score in scores if score is not None)
    training, calibration = form - published, student - form
    text = (
        f"On test data the chosen student scores {100 * (student - published):+.1f} points against MPCFormer as "
        f"published: {100 * training:+.1f} from the training (the same Quad and 2Quad, trained as the students are) and "
        f"{100 * calibration:+.1f} from calibration and search."
    )
    return {"training": training, "calibration": calibration, "total": student - published, "text": text}
