import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import distill
from distill import (
    Architecture,
    DistillConfig,
    FinetuneConfig,
    Splits,
    TeacherCache,
    TrainResult,
    apply,
    evaluate,
    finetune,
    kl,
    tokenize,
    train,
)
from distill.errors import DistillError
from distill.recording import instrumented, record_scores
from tests import forked

QUICK: dict[str, Any] = {
    "max_length": 16,
    "lr": 1e-3,
    "prediction_lr": 1e-4,
    "batch_size": 16,
    "precision": "float32",
}


def make_student(
    teacher: PreTrainedModel, softmax: str = "2quad", activation: str = "quad"
) -> PreTrainedModel:
    return apply(teacher, Architecture.uniform(teacher, {"softmax": softmax, "activation": activation}))


def equal(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("losses", ["two_stage", "joint"])
def test_distillation_brings_the_student_to_the_teacher(
    losses: Any, teacher: PreTrainedModel, splits: Splits, tokenizer: PreTrainedTokenizerFast
) -> None:
    student = make_student(teacher)
    held_out = tokenize(splits.validation, tokenizer, 16)
    reference = evaluate(teacher, held_out)
    before = kl(reference, evaluate(student, held_out))
    config = DistillConfig(
        losses=losses, layerwise_epochs=4, prediction_epochs=1, validate_every=0.5, **QUICK
    )
    seen: list[tuple[int, int, str]] = []
    embeddings = student.get_input_embeddings().weight.clone()
    result = train(
        student,
        teacher,
        splits.train,
        splits.validation,
        config,
        tokenizer,
        progress=lambda *a: seen.append(a),
    )
    after = kl(reference, evaluate(student, held_out))
    assert after < 0.5 * before
    assert result.best_validation["divergence"] == pytest.approx(after, abs=1e-6)
    assert result.best_validation["divergence"] == min(
        entry["divergence"] for entry in result.history if entry["stage"] == result.best_validation["stage"]
    )
    assert {entry["stage"] for entry in result.history} == {
        "joint" if losses == "joint" else "layerwise",
        "predictions",
    }
    assert torch.equal(student.get_input_embeddings().weight, embeddings)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert seen[-1][0] == seen[-1][1] == 30 and not student.training


def test_calibrated_coefficients_are_trained_within_bounds(
    teacher: PreTrainedModel, splits: Splits, tokenizer: PreTrainedTokenizerFast
) -> None:
    batch = list(distill.batches(splits.train, tokenizer, 32, 16, labels=False))
    architecture = Architecture.uniform(teacher, {"softmax": "power2", "activation": "quad_channel"})
    student = apply(teacher, architecture, batch)
    name = "bert.encoder.layer.0.intermediate.intermediate_act_fn.scale"
    before = student.get_parameter(name).detach().clone()
    train(
        student,
        teacher,
        splits.train,
        splits.validation,
        DistillConfig(losses="joint", layerwise_epochs=1, prediction_epochs=0, coefficient_lr=100.0, **QUICK),
        tokenizer,
    )
    after = student.get_parameter(name).detach()
    assert not torch.equal(before, after) and after.min() >= 0.01 - 1e-7


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
import distill
from distill.batching import Tokens
root = sys.argv[1]
teacher = distill.restore(root + "/teacher")
tokens = Tokens(**torch.load(root + "/tokens.pt"))
architecture = distill.Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"})
student = distill.apply(teacher, architecture)
def progress(done, total, message):
    if done == 9 and "layerwise" in message:
        os.kill(os.getpid(), signal.SIGKILL)
config = distill.DistillConfig(layerwise_epochs=2, prediction_epochs=1, dropout=True, checkpoint_seconds=0.0,
    max_length=16, lr=1e-3, prediction_lr=1e-4, batch_size=16, precision="float32")
distill.train(student, teacher, tokens, tokens, config, out_dir=root + "/run", progress=progress)
"""


def test_a_killed_training_continues_to_the_same_student(
    teacher: PreTrainedModel, splits: Splits, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokens = tokenize(splits.train, tokenizer, 16)
    distill.save(teacher, tmp_path / "teacher")
    torch.save(
        {
            "columns": dict(tokens.columns),
            "labels": tokens.labels,
            "padding": tokens.padding,
            "max_length": tokens.max_length,
        },
        tmp_path / "tokens.pt",
    )
    config = DistillConfig(
        layerwise_epochs=2, prediction_epochs=1, dropout=True, checkpoint_seconds=0.0, **QUICK
    )
    whole = make_student(teacher)
    expected = train(whole, teacher, tokens, tokens, config)
    child = forked.run(KILLED, str(tmp_path), env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    state = json.loads((tmp_path / "run/training/progress.json").read_text())["progress"]
    assert state["stage"] == 0 and state["step"] == 8
    seen: list[int] = []
    student = make_student(teacher)
    result = train(
        student,
        teacher,
        tokens,
        tokens,
        config,
        out_dir=tmp_path / "run",
        progress=lambda done, *_: seen.append(done),
    )
    assert result.resumed and min(seen) == 9
    assert [e["step"] for e in result.history] == [e["step"] for e in expected.history]
    assert result.best_validation["divergence"] == pytest.approx(
        expected.best_validation["divergence"], rel=1e-3
    )
    # Finished: a further call trains nothing and gives the same student.
    again = make_student(teacher)
    seen.clear()
    repeated = train(
        again,
        teacher,
        tokens,
        tokens,
        config,
        out_dir=tmp_path / "run",
        progress=lambda d, *_: seen.append(d),
    )
    assert repeated.resumed and not seen and equal(again, student) and repeated.history == result.history
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "run/training").iterdir())
    assert left == ["best", "progress.json"]
    with pytest.raises(DistillError, match="holds another training"):
        train(
            make_student(teacher), teacher, tokens, tokens, DistillConfig(**QUICK), out_dir=tmp_path / "run"
        )


def test_a_nan_rolls_back_and_halves_the_rate(
    teacher: PreTrainedModel,
    splits: Splits,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["distill.objectives"]
    original = module.prediction_loss  # type: ignore[attr-defined]
    calls = {"count": 0}

    def sometimes(*arguments: Any) -> torch.Tensor:
        calls["count"] += 1
        return original(*arguments) * (float("nan") if calls["count"] == 4 else 1.0)

    monkeypatch.setattr(module, "prediction_loss", sometimes)
    config = DistillConfig(layerwise_epochs=0, prediction_epochs=1, **QUICK)
    result = train(make_student(teacher), teacher, splits.train, splits.validation, config, tokenizer)
    events = [entry for entry in result.history if entry.get("event") == "rollback"]
    assert [(e["from_step"], e["to_step"], e["rate_scale"]) for e in events] == [(3, 0, 0.5)]
    monkeypatch.setattr(module, "prediction_loss", lambda *a: original(*a) * float("nan"))
    with pytest.raises(DistillError, match="halvings"):
        train(make_student(teacher), teacher, splits.train, splits.validation, config, tokenizer)


def test_bad_arguments_fail_at_once(teacher: PreTrainedModel, splits: Splits, tokenizer: Any) -> None:
    arguments = (teacher, splits.train, splits.validation)
    with pytest.raises(DistillError, match="did you mean 'joint'"):
        train(make_student(teacher), *arguments, DistillConfig(losses="join"), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DistillError, match="no epochs"):
        train(
            make_student(teacher),
            *arguments,
            DistillConfig(layerwise_epochs=0, prediction_epochs=0),
            tokenizer,
        )
    with pytest.raises(DistillError, match="precision: unknown"):
        train(make_student(teacher), *arguments, DistillConfig(precision="fp16"), tokenizer)
    shared = apply(teacher, Architecture(), share_weights=True)
    with pytest.raises(DistillError, match="shares weights"):
        train(shared, *arguments, DistillConfig(), tokenizer)


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert", "llama"])
def test_cached_outputs_are_the_teachers(
    family: str,
    build: Callable[[str], PreTrainedModel],
    splits: Splits,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    teacher = build(family)
    tokens = tokenize(splits.validation, tokenizer, 16)
    if family in ("distilbert", "llama"):
        tokens = type(tokens)({"input_ids": tokens.columns["input_ids"]}, tokens.labels, tokens.padding, 16)
    cache = TeacherCache.build(teacher, tokens, tmp_path / "c", batch_size=7)
    small = TeacherCache.build(teacher, tokens, tmp_path / "s", max_bytes=10)
    assert cache.stored == len(tokens) and small.stored == 0
    items = [3, 0, 9]
    batch = tokens.collate(items, labels=False)
    length = batch["input_ids"].shape[1]
    view = instrumented(teacher)
    with torch.no_grad(), record_scores(view) as calls:
        output = view(**batch, output_hidden_states=True)
    mask = batch["attention_mask"].float()
    for targets in (cache.targets(items, length), small.targets(items, length)):
        torch.testing.assert_close(targets.logits, output.logits, atol=1e-4, rtol=1e-4)
        assert len(targets.hidden) == len(output.hidden_states) and len(targets.scores) == len(calls) == 2
        for ours, theirs in zip(targets.hidden, output.hidden_states, strict=True):
            torch.testing.assert_close(ours * mask[..., None], theirs * mask[..., None], atol=5e-3, rtol=2e-3)
        pairs = (mask[:, None, :, None] * mask[:, None, None, :]) > 0
        for ours, (theirs, _) in zip(targets.scores, calls, strict=True):
            torch.testing.assert_close(ours * pairs, theirs * pairs, atol=5e-2, rtol=2e-3)
    opened = TeacherCache.build(
        teacher, tokens, tmp_path / "c", progress=lambda *_: pytest.fail("computed again")
    )
    torch.testing.assert_close(
        opened.targets(items, length).hidden[1], cache.targets(items, length).hidden[1]
    )


class Interrupted(Exception):
    pass


def test_finetuning_learns_and_continues(
    build: Callable[[str], PreTrainedModel],
    splits: Splits,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
        BertModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = FinetuneConfig(
        epochs=12, lr=5e-3, batch_size=16, max_length=16, freeze_embeddings=False, checkpoint_seconds=0.0
    )

    def stop(done: int, total: int, message: str) -> None:
        if done == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        finetune(tmp_path / "base", splits, settings, tmp_path / "run", stop)
    seen: list[int] = []
    model = finetune(
        tmp_path / "base", splits, settings, tmp_path / "run", lambda done, *_: seen.append(done)
    )
    assert min(seen) == 20 and model.config.id2label == {0: "low", 1: "middle", 2: "high"}
    reached = distill.accuracy(evaluate(model, splits.train, tokenizer), distill.labels_of(splits.train))
    assert reached > 0.9 and not model.training
    again = finetune(
        tmp_path / "base", splits, settings, tmp_path / "run", lambda *_: pytest.fail("trained again")
    )
    assert equal(model, again)
    with pytest.raises(DistillError, match="no such directory"):
        finetune(tmp_path / "nothing", splits, settings, tmp_path / "other")


def test_result_is_plain_data(
    teacher: PreTrainedModel, splits: Splits, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = DistillConfig(layerwise_epochs=0.5, prediction_epochs=0.5, **QUICK)
    result = train(make_student(teacher), teacher, splits.train, splits.validation, config, tokenizer)
    assert isinstance(result, TrainResult) and "logits of all 96 items" in result.teacher_outputs
    json.dumps([result.history, result.best_validation, result.seconds])
