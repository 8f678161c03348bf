"""Scores of assembled, untrained students on a validation sample: the inner loop of the search."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from distill import Architecture, Calibration
from distill.fixed_point import MOST_BITS, Met, note, watched
from nas.files import digest, source_digest
from nas.library import BlockLibrary
from nas.prefix import PrefixCache
from nas.scores import Classification, Scorer
from nas.space import EXACT, choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Share of the sample after which a candidate may be given up.
SCREEN_SHARE = 0.25
#: Share of the sample that single replacements are measured on: enough to rank them.
SINGLE_SHARE = 0.5
#: Score that says how many bits the variants' values stay below what fixed point holds, at the worst site.
SPARE = "spare_bits"
#: Inputs that only a loss needs.
LABELS = ("labels", "label")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one candidate.

    scores: means over the whole sample, or over the screening part if not `complete`. Of `SPARE`, which is there where
        variants are, the least.
    screening: means over the screening part alone, the same items for every candidate.
    """

    scores: Mapping[str, float]
    screening: Mapping[str, float]
    complete: bool


class Evaluator:
    """Compares students with their teacher on a fixed sample, without labels.

    teacher: the fine-tuned model, on any device; not changed.
    calibration: as for `distill.apply`; None if no variant needs one.
    batches: keyword arguments of the model, tensors with the batch first. Batches sorted by length have
        little padding and are much faster. Labels are left out.
    variants: site -> variants that will be asked for (`BlockLibrary`).
    scorer: the pair of scores; `Classification` if None.
    device: where students are evaluated.
    cache_bytes: memory for outputs of blocks that are used again (`PrefixCache`); 0 switches that off.

    `fingerprint` names teacher, calibration, variants and sample by content.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        calibration: Calibration | None,
        batches: Sequence[Mapping[str, torch.Tensor]],
        variants: Mapping[str, Sequence[str]],
        *,
        scorer: Scorer | None = None,
        device: torch.device | str = "cpu",
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        if not batches:
            raise ValueError("batches: the validation sample is empty")
        self.scorer: Scorer = scorer or Classification()
        self.library = BlockLibrary(teacher, variants, calibration, device)
        self.sites = self.library.sites
        self._device = torch.device(device)
        # Every fourth batch first: when batches are sorted by length, the screening part then has all
        # lengths.
        stride = max(1, round(1 / SCREEN_SHARE))
        order = [index for start in range(stride) for index in range(start, len(batches), stride)]
        self._screening = len(range(0, len(batches), stride))
        self._batches = [
            {name: value.to(self._device) for name, value in batches[index].items() if name not in LABELS}
            for index in order
        ]
        self.fingerprint = digest(
            self.library.fingerprint(),
            self._batches,
            self.scorer.divergence,
            source_digest(["distill", "nas"]),
        )
        was_training = teacher.training
        home = next(teacher.parameters()).device
        teacher.eval()
        with torch.inference_mode():
            self._expected = [
                self.scorer.predictions(teacher(**{k: v.to(home) for k, v in batch.items()}), batch).to(
                    self._device
                )
                for batch in self._batches
            ]
        teacher.train(was_training)
        # What the products and divisors of each site's variant met in one forward pass (distill.fixed_point).
        self._met: dict[str, Met] = {}
        self._watch()
        self._prefix = PrefixCache(
            self.library.student, [site.name for site in self.sites], cache_bytes, self._met
        )
        if cache_bytes:
            self._install_prefix()

    def _watch(self) -> None:
        """Have every variant's module note what its products and divisors meet, for as long as this lives."""
        self._watching = contextlib.ExitStack()

        def see(site: str, kind: str, tensor: torch.Tensor) -> None:
            note(self._met.setdefault(site, Met()), kind, tensor)

        for site, held in self.library.modules().items():
            for module in held.values():
                self._watching.enter_context(watched({site: module}, see))

    def uninformed(self) -> float:
        """Divergence of answering every item with the teacher's mean prediction: a student beyond it knows nothing."""
        rows = torch.cat(self._expected)
        mean = rows.softmax(-1).mean(0, keepdim=True).clamp_min(1e-12).log()
        return self.scorer.compare(rows, mean.expand_as(rows))[self.scorer.divergence]

    @property
    def items(self) -> int:
        """How many items (sentences, tokens) the scores are means over."""
        return sum(len(expected) for expected in self._expected)

    def _install_prefix(self) -> None:
        first = self._batches[0]
        student = self.library.assemble(Architecture({}))
        with torch.inference_mode():
            self._prefix.observe(lambda: student(**first))

        def agrees() -> bool:
            # The last variant of every site after the exact ones: every wrapped block is both stored and
            # used.
            for pick in (0, -1):
                architecture = self.library.corner(pick)
                plain = self._predict(architecture, 0, plain=True)
                for _ in range(2):
                    if not torch.allclose(
                        plain, self._predict(architecture, 0), rtol=1e-4, atol=1e-5, equal_nan=True
                    ):
                        return False
            return True

        self._prefix.verify(agrees)

    def _predict(self, architecture: Architecture, index: int, plain: bool = False) -> torch.Tensor:
        student = self.library.assemble(architecture)
        batch = self._batches[index]
        self._met.clear()
        with torch.inference_mode():
            if plain or architecture.structure:
                output = student(**batch)
            else:
                picked = choices(architecture, self.sites)
                output = self._prefix.run(index, picked, lambda: student(**batch))
            return self.scorer.predictions(output, batch)

    def evaluate(
        self, architecture: Architecture, give_up: Callable[[Mapping[str, float]], bool] | None = None
    ) -> Evaluation:
        """Scores of the student with this architecture.

        give_up: asked once with the scores of the screening part (a quarter of the batches, the same for
            every candidate); if it says True, the rest is not computed and the evaluation is not
            `complete`.
        """
        screening, first = self._means(architecture, range(self._screening))
        if self._screening == len(self._batches):
            return Evaluation(screening, screening, True)
        if give_up is not None and give_up(screening):
            return Evaluation(screening, screening, False)
        rest, others = self._means(architecture, range(self._screening, len(self._batches)))
        items = first + others
        scores = {
            name: min(value, rest[name]) if name == SPARE else (value * first + rest[name] * others) / items
            for name, value in screening.items()
        }
        return Evaluation(scores, screening, True)

    def _means(self, architecture: Architecture, batches: range) -> tuple[dict[str, float], int]:
        """Mean scores over some batches and the least spare bits, and the number of their items."""
        sums: dict[str, float] = {}
        items, spare = 0, MOST_BITS
        for index in batches:
            expected = self._expected[index]
            found = self.scorer.compare(expected, self._predict(architecture, index))
            spare = min([spare, *(met.spare_bits() for met in self._met.values())])
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value * len(expected)
            items += len(expected)
        return {**{name: value / items for name, value in sums.items()}, SPARE: spare}, items

    def single(self, site: str, variant: str) -> dict[str, float]:
        """Scores of replacing one site alone, on half of the sample (the same half for all)."""
        part = math.ceil(SINGLE_SHARE * len(self._batches))
        return self._means(Architecture({} if variant == EXACT else {site: variant}), range(part))[0]

    def perfect(self) -> dict[str, float]:
        """Scores of the teacher against itself."""
        return {self.scorer.divergence: 0.0, self.scorer.agreement: 1.0, SPARE: MOST_BITS}
