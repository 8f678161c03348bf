"""Step B, first half: how far does replacing ONE site by one variant move the teacher's predictions,
untrained?

Measured on a validation sample without labels. The numbers differ 10 to 100 times between layers, and rank
variants and sites well; they add up to less than the joint effect, so they are for ranking only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.evaluate import Evaluator
from nas.files import digest, read_json, write_json
from nas.space import EXACT

Progress = Callable[[int, int, str], None]
FORMAT = 1


@dataclass(frozen=True)
class Sensitivities:
    """site -> variant -> scores of that single replacement, e.g. {"kl": 0.02, "agreement": 0.98}."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]

    def of(self, score: str) -> dict[str, dict[str, float]]:
        """site -> variant -> one score."""
        return {
            site: {v: scores[score] for v, scores in found.items()} for site, found in self.scores.items()
        }


def sensitivity_path(run_dir: str | Path) -> Path:
    """Where a run directory keeps its sensitivities."""
    return Path(run_dir) / "search" / "sensitivity.json"


def sensitivity(
    evaluator: Evaluator,
    options: Mapping[str, Sequence[str]],
    run_dir: str | Path,
    progress: Progress | None = None,
) -> Sensitivities:
    """Scores of every single replacement that `options` allows (site -> variants).

    The file `search/sensitivity.json` in the run directory is written after each site, whole or not at all,
    so that a killed run goes on at the site where it was; it is made anew when the teacher, the
    calibration, the sample or the variants' code have changed. Layers before the replaced site are not
    computed again (`PrefixCache`).
    """
    key = digest(FORMAT, evaluator.fingerprint)
    path = sensitivity_path(run_dir)
    found = read_json(path)
    held: dict[str, dict[str, dict[str, float]]] = {}
    if found is not None and found.get("format") == FORMAT and found.get("key") == key:
        held = found["scores"]
    total = sum(len(variants) for variants in options.values())
    done = 0
    for site, variants in options.items():
        of_site = held.setdefault(site, {})
        missing = [variant for variant in variants if variant not in of_site]
        for variant in missing:
            if progress is not None:
                progress(done + variants.index(variant), total, f"sensitivity of {site} to {variant}")
            # Against itself the teacher differs by rounding only, which would blur the surrogate's ties.
            of_site[variant] = evaluator.perfect() if variant == EXACT else evaluator.single(site, variant)
        if missing:
            write_json(path, {"format": FORMAT, "key": key, "scores": held})
        done += len(variants)
    if progress is not None:
        progress(total, total, "sensitivities known")
    return Sensitivities({site: {v: held[site][v] for v in variants} for site, variants in options.items()})
