"""What is kept grows with a model and a batch, not with the data, or stops at a stated limit."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import distill.cache
from distill import Architecture, DistillConfig, Splits, TeacherCache, Tokens, apply, tokenize, train
from distill.errors import DistillError


@pytest.fixture
def tokens(splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    return tokenize(splits.train, tokenizer, 16)


class Scores:
    """Bytes of attention scores that are alive at once, while a model answers without gradients."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.alive: list[weakref.ref[Tensor]] = []
        self.peak = self.calls = 0
        for name, module in model.named_modules():
            if name.endswith(".softmax"):
                module.register_forward_pre_hook(self.seen)

    def seen(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            return
        self.calls += 1
        self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(args[0])]
        kept = [ref() for ref in self.alive]
        self.peak = max(self.peak, sum(x.numel() * x.element_size() for x in kept if x is not None))


def test_validation_keeps_no_scores(
    teacher: PreTrainedModel, splits: Splits, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With eight times as many validation texts, no more scores are alive at once."""
    peaks = []
    for times in (2, 16):
        rows = splits.validation[:]
        text = " ".join(f"w{index}" for index in range(12))
        held_out = Dataset.from_dict({"text": [text] * 32 * times, "label": rows["label"] * times})
        student = apply(teacher, Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"}))
        watched = Scores(student)
        config = DistillConfig(
            layerwise_epochs=0.2, prediction_epochs=0.2, max_length=16, batch_size=16, precision="float32"
        )
        train(student, teacher, splits.train, held_out, config, tokenizer)
        assert watched.calls == 2 * 2 * (32 * times // 64), "two validations of two layers, 64 texts a batch"
        peaks.append(watched.peak)
    one_layer = 64 * 4 * 14 * 14 * 4
    assert peaks[0] == peaks[1] <= 2 * one_layer


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_stored_outputs_keep_to_their_limit(
    share: float, teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path
) -> None:
    whole = TeacherCache.build(teacher, tokens, tmp_path / "whole")
    assert whole.stored == len(tokens)
    limit = int(whole.bytes * share)
    cache = TeacherCache.build(teacher, tokens, tmp_path / "part", max_bytes=limit)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "part").glob("*.f16"))
    assert on_disk == cache.bytes <= limit
    length = max(tokens.lengths)
    next_item = 2 * (length * 3 * 16 + 2 * 4 * length**2)
    assert cache.bytes > limit - next_item, "as much as fits is stored"
    assert f"hidden states and scores of {cache.stored:,} " in cache.describe() or share == 1.0
    assert f"{limit / 1e6:,.0f} MB allowed" in cache.describe()
    # A batch of stored and recomputed texts has the teacher's outputs of each.
    items = [0, len(tokens) - 1, cache.stored // 2, 5]
    ours, expected = cache.targets(items, length), whole.targets(items, length)
    assert torch.equal(ours.logits, expected.logits)
    for first, second in zip([*ours.hidden, *ours.scores], [*expected.hidden, *expected.scores], strict=True):
        torch.testing.assert_close(first, second, atol=2e-2, rtol=2e-3)


def test_another_limit_is_another_store(teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path) -> None:
    first = TeacherCache.build(teacher, tokens, tmp_path)
    again = TeacherCache.build(teacher, tokens, tmp_path, progress=lambda *_: pytest.fail("computed again"))
    assert again.stored == first.stored
    length = max(tokens.lengths)
    expected = first.targets([0, 5], length)
    less = TeacherCache.build(teacher, tokens, tmp_path, max_bytes=first.bytes // 4)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.f16")) == less.bytes <= first.bytes // 4
    TeacherCache.build(teacher, tokens, tmp_path, max_bytes=0)
    whole = TeacherCache.build(teacher, tokens, tmp_path).targets([0, 5], length)
    for ours, theirs in zip(
        [*whole.hidden, *whole.scores], [*expected.hidden, *expected.scores], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_pass_of_the_teacher_is_bounded_too(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts go through the teacher in smaller batches: scores of all layers of 64 texts of 512 tokens and
    BERT-base would take 9.7 GB."""
    expected = TeacherCache.build(teacher, tokens, tmp_path / "a")
    monkeypatch.setattr(distill.cache, "PASS_BYTES", 20_000)
    seen: list[int] = []
    cache = TeacherCache.build(teacher, tokens, tmp_path / "b", progress=lambda done, *_: seen.append(done))
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    assert max(steps) * 4 * 2 * 4 * min(tokens.lengths) ** 2 <= 20_000 and sum(steps) == len(tokens)
    torch.testing.assert_close(cache.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_a_full_disk_is_named(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.cache.os.posix_fallocate", full)
    with pytest.raises(DistillError, match="no room for .* MB of teacher outputs .*lower cache_bytes"):
        TeacherCache.build(teacher, tokens, tmp_path)


def test_the_published_sizes_follow_from_the_layout() -> None:
    """The figures that the documentation names, for BERT-base (12 layers of 12 heads, width 768)."""
    layout: Callable[..., Any] = distill.cache._Layout.fitting
    whole = layout([12] * 12, 13, 768, [128] * 1000, 10**18)
    assert whole.count == 1000
    assert whole.bytes / 1000 * 100_000 == pytest.approx(727e9, rel=0.01)
    assert layout([12] * 12, 13, 768, [128] * 1000, 2_000_000_000).count == 274
