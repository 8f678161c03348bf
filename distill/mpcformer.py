"""MPCFormer's training as published (ICLR 2023, section 3.3, appendix A.1 and the code beside it), for a baseline.

Stage 1: raw mean squared errors of every layer's hidden states, the embeddings' output among them, and of the
attention scores before the softmax with masked entries at 0; rate 5e-5, constant from the first step. Stage 2: soft
cross-entropy at temperature 1; rate 1e-5, linear warm-up over a tenth of the steps, then linear decay. Both: 32
texts a step, weight decay 0.01 except on biases and norms, gradient norm 1, drop-out in the student, all weights
trained. The student starts from the teacher's weights.

What differs, and why:

* The teacher is in eval mode. Published code leaves its drop-out on, so that the targets are noise.
* Padding is left out of the errors of layers. There every text is padded to 128 tokens and padding counts; here
  texts are padded to the longest of their batch, so a loss with padding would depend on the company a text is in.
* Each stage keeps its best model by divergence from the teacher on validation data; there stage 1 keeps its last
  one, and stage 2 the best by accuracy on the data that is also reported.
* AdamW corrects its moments' bias and clips the gradient's norm as a whole; BertAdam does not correct and clips each
  tensor. Stage 2's loss is a mean over texts, there also over classes, which Adam undoes.
* Quad and 2Quad are one function in training, search and secure run.
* Epochs: see `epochs`.
"""

import math
from typing import Any

PUBLISHED = {
    "RTE": (2_490, 50),
    "MRPC": (3_668, 20),
    "STS-B": (5_749, 100),
    "CoLA": (8_551, 50),
    "IMDb": (25_000, 30),
    "SST-2": (67_349, 10),
    "QNLI": (104_743, 10),
    "QQP": (363_846, 5),
    "MNLI": (392_702, 5),
}
"""Training texts of each task, and epochs of stage 1."""

PREDICTION_EPOCHS = 5.0
"""Epochs of stage 2, in every task."""


def epochs(texts: int) -> tuple[float, float]:
    """(epochs of stage 1, of stage 2) for a data set of `texts` training texts.

    Published are nine numbers of epochs for nine data sets. Between them stage 1 follows the least-squares line
    through the logarithms of both, kept within the smallest and the largest published: within a factor of 2.7 of
    each published number.
    """
    points = [(math.log(size), math.log(count)) for size, count in PUBLISHED.values()]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    counts = [count for _, count in PUBLISHED.values()]
    value = math.exp(mean_y + slope * (math.log(max(1, texts)) - mean_x))
    return min(max(value, float(min(counts))), float(max(counts))), PREDICTION_EPOCHS


def settings(texts: int, most_epochs: float | None = None) -> dict[str, Any]:
    """Settings of `DistillConfig` for a data set of `texts` training texts.

    most_epochs: both stages are shortened in proportion so that together they have no more epochs than this; None
        trains as long as published.
    """
    first, second = epochs(texts)
    share = 1.0 if most_epochs is None else min(1.0, most_epochs / (first + second))
    return {
        "losses": "two_stage",
        "units": "raw",
        "range_penalty": 0.0,
        "layerwise_epochs": first * share,
        "prediction_epochs": second * share,
        "lr": 5e-5,
        "prediction_lr": 1e-5,
        "coefficient_lr": 1.0,
        "hidden_weight": 1.0,
        "scores_weight": 1.0,
        "batch_size": 32,
        "layerwise_warmup": 0.0,
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip": 1.0,
        "freeze_embeddings": False,
        "dropout": True,
        "precision": "float32",
    }
