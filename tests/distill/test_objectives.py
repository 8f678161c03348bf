"""What a student is trained to minimise, against the same sums written out in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distill import Architecture, DistillConfig, Splits, TeacherCache, Tokens, apply, evaluate, tokenize
from distill.losses import hidden_loss, scores_loss
from distill.objectives import Objectives
from distill.recording import instrumented, record_scores

ITEMS = [3, 0, 17, 8]


@pytest.fixture
def tokens(splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    return tokenize(splits.train, tokenizer, 16)


@pytest.fixture
def student(teacher: PreTrainedModel) -> PreTrainedModel:
    return apply(teacher, Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"}))


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """(hidden states, scores, logits) in float64, by hand."""
    view = model if getattr(model.config, "sordino", None) else instrumented(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), record_scores(view) as calls:
        output = view.eval()(**inputs, output_hidden_states=True)
    return (
        [state.double() for state in output.hidden_states],
        [scores.double() for scores, _ in calls],
        output.logits.double(),
    )


def written_out(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: dict[str, Tensor], units: str
) -> dict[str, float]:
    """The three losses, text by text over its real tokens, so that padding cannot enter."""
    ours, theirs = outputs(student, batch), outputs(teacher, batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    sums = {"hidden": 0.0, "scores": 0.0}
    for name, place in (("hidden", 0), ("scores", 1)):
        for first, second in zip(ours[place], theirs[place], strict=True):
            error = energy = count = 0.0
            for row, length in enumerate(lengths):
                cut = (
                    (row, slice(length))
                    if name == "hidden"
                    else (row, slice(None), slice(length), slice(length))
                )
                error += float((first[cut] - second[cut]).square().sum())
                energy += float(second[cut].square().sum())
                count += second[cut].numel()
            sums[name] += error / (energy if units == "energy" else count)
    crossed = -(torch.softmax(theirs[2], -1) * torch.log_softmax(ours[2], -1)).sum(-1).mean()
    return sums | {"predictions": float(crossed)}


@pytest.mark.parametrize("units", ["energy", "raw"])
@pytest.mark.parametrize("losses", ["two_stage", "joint"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_stage_minimises_what_it_says(
    units: Any,
    losses: Any,
    stored: bool,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tokens,
    tmp_path: Any,
) -> None:
    cache = TeacherCache.build(teacher, tokens, tmp_path, max_bytes=10**9 if stored else 0)
    config = DistillConfig(
        losses=losses, units=units, hidden_weight=0.5, scores_weight=0.25, prediction_weight=2.0
    )
    batch = tokens.collate(ITEMS)
    assert not bool(batch["attention_mask"].all()), "some texts are padded"
    expected = written_out(student, teacher, batch, units)
    assert min(expected.values()) > 1e-3, "each term can be seen"
    objectives = Objectives(student, cache, config)
    layerwise = 0.5 * expected["hidden"] + 0.25 * expected["scores"]
    joint = layerwise + 2.0 * expected["predictions"] if losses == "joint" else layerwise
    assert objectives.layerwise(ITEMS, dict(batch)).item() == pytest.approx(joint, rel=2e-3)
    assert objectives.predictions(ITEMS, dict(batch)).item() == pytest.approx(
        expected["predictions"], rel=1e-4
    )


def test_padding_is_no_part_of_the_losses() -> None:
    """Whatever stands at padding, on either side, the losses are the same."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    keep = mask[:, None, None, :].bool()
    hidden, other = draw(2, 4, 3), draw(2, 4, 3)
    scores, against = draw(2, 2, 4, 4), draw(2, 2, 4, 4)
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    for units in ("energy", "raw"):
        first = (
            hidden_loss([hidden], [other], mask, units),
            scores_loss([(scores, keep)], [against], mask, units),
        )
        spoilt = hidden.masked_fill(mask[..., None] == 0, 1e3), other.masked_fill(mask[..., None] == 0, -1e3)
        wrong = scores.masked_fill(~pairs, 1e3), against.masked_fill(~pairs, -1e3)
        second = (
            hidden_loss([spoilt[0]], [spoilt[1]], mask, units),
            scores_loss([(wrong[0], keep)], [wrong[1]], mask, units),
        )
        assert first == second


def test_further_terms_are_part_of_every_loss(
    student: PreTrainedModel, teacher: PreTrainedModel, tokens: Tokens, tmp_path: Any
) -> None:
    cache = TeacherCache.build(teacher, tokens, tmp_path)
    plain = Objectives(student, cache, DistillConfig())

    @contextmanager
    def largest_input() -> Iterator[Callable[[], Tensor]]:
        seen: list[Tensor] = []
        module = student.get_submodule("bert.encoder.layer.1.intermediate.intermediate_act_fn")
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max()))
        yield lambda: 10 * torch.stack(seen).max()
        handle.remove()

    more = Objectives(student, cache, DistillConfig(), extras=[largest_input])
    batch = tokens.collate(ITEMS)
    for name in ("layerwise", "predictions"):
        without = getattr(plain, name)(ITEMS, dict(batch))
        with_term = getattr(more, name)(ITEMS, dict(batch))
        assert (with_term - without).item() > 1
        assert with_term.requires_grad


def test_the_teacher_answers_without_drop_out(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Any
) -> None:
    """Even if it is handed over in training mode: its stored outputs, and its logits, are those in eval mode."""
    assert teacher.config.hidden_dropout_prob > 0
    expected = TeacherCache.build(teacher, tokens, tmp_path / "a").targets(ITEMS, 12)
    logits = evaluate(teacher, tokens)
    teacher.train()
    assert torch.equal(evaluate(teacher, tokens), logits) and teacher.training
    for limit in (10**9, 0):
        cache = TeacherCache.build(teacher, tokens, tmp_path / f"b{limit}", max_bytes=limit)
        torch.testing.assert_close(cache.logits, logits, atol=1e-4, rtol=1e-4)
        found = cache.targets(ITEMS, 12)
        for ours, theirs in zip(
            [*found.hidden, *found.scores], [*expected.hidden, *expected.scores], strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-3)
