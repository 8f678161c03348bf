"""The training loop: rates step by step, checkpoints and what they cost, keys, random state."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distill import Architecture, DistillConfig, Splits, Tokens, apply, tokenize, train
from distill.errors import DistillError
from distill.loop import CHECKPOINT_SHARE, Loop, LoopSettings, Stage
from distill.training_files import put_random, take_random

QUICK: dict[str, Any] = {"max_length": 16, "batch_size": 16, "precision": "float32"}


@pytest.fixture
def tokens(splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    return tokenize(splits.train, tokenizer, 16)


@pytest.fixture
def held_out(splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    return tokenize(splits.validation, tokenizer, 16)


def calibrated(teacher: PreTrainedModel, tokens: Tokens) -> PreTrainedModel:
    batch = tokens.collate(list(range(32)), labels=False)
    architecture = Architecture.uniform(teacher, {"softmax": "power2", "activation": "quad_channel"})
    return apply(teacher, architecture, [batch])


def form(teacher: PreTrainedModel) -> PreTrainedModel:
    return apply(teacher, Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"}))


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """(rate of the weights, rate of the variants' coefficients) at each optimiser step."""
    seen: list[tuple[float, float]] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        groups = {group["coefficients"]: group["lr"] for group in self.param_groups}
        assert sum(len(group["params"]) for group in self.param_groups if group["coefficients"]) > 0
        seen.append((groups[False], groups[True]))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    return seen


def test_rates_follow_their_schedules(
    teacher: PreTrainedModel, tokens: Tokens, held_out: Tokens, rates: list[tuple[float, float]]
) -> None:
    """Stage 1: warm-up, then constant. Stage 2: warm-up, then linear to 0. Coefficients: a multiple of each."""
    config = DistillConfig(
        layerwise_epochs=2,
        prediction_epochs=2,
        lr=1e-3,
        prediction_lr=1e-4,
        coefficient_lr=7.0,
        warmup=0.25,
        **QUICK,
    )
    train(calibrated(teacher, tokens), teacher, tokens, held_out, config)
    first = [1 / 3, 2 / 3, 1, *[1] * 9]
    second = [1 / 3, 2 / 3, 1, *[(12 - step) / 9 for step in range(3, 12)]]
    expected = [1e-3 * share for share in first] + [1e-4 * share for share in second]
    assert [weights for weights, _ in rates] == pytest.approx(expected)
    assert [coefficients for _, coefficients in rates] == pytest.approx([7 * value for value in expected])


def test_a_stage_may_have_a_warm_up_of_its_own(
    teacher: PreTrainedModel, tokens: Tokens, held_out: Tokens, rates: list[tuple[float, float]]
) -> None:
    config = DistillConfig(layerwise_epochs=1, prediction_epochs=1, layerwise_warmup=0.0, warmup=0.5, **QUICK)
    train(calibrated(teacher, tokens), teacher, tokens, held_out, config)
    assert [weights for weights, _ in rates[:6]] == pytest.approx([5e-5] * 6)
    assert [weights for weights, _ in rates[6:]] == pytest.approx(
        [1e-5 * share for share in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)]
    )


def test_a_joint_loss_decays(
    teacher: PreTrainedModel, tokens: Tokens, held_out: Tokens, rates: list[tuple[float, float]]
) -> None:
    config = DistillConfig(
        losses="joint", layerwise_epochs=1, prediction_epochs=0, warmup=0.0, lr=6e-4, **QUICK
    )
    train(calibrated(teacher, tokens), teacher, tokens, held_out, config)
    assert [weights for weights, _ in rates] == pytest.approx(
        [6e-4, 6e-4, *[6e-4 * n / 5 for n in (4, 3, 2, 1)]]
    )


def other_weights(student: PreTrainedModel) -> None:
    student.get_parameter("classifier.bias").data.add_(1e-3)


@pytest.mark.parametrize(
    "change", ["student", "teacher", "validation", "texts", "epsilon", "setting", "stored"]
)
def test_a_training_continues_only_with_all_that_it_began_with(
    change: str, teacher: PreTrainedModel, tokens: Tokens, held_out: Tokens, tmp_path: Path
) -> None:
    settings = {"layerwise_epochs": 0.5, "prediction_epochs": 0, **QUICK}
    train(form(teacher), teacher, tokens, held_out, DistillConfig(**settings), out_dir=tmp_path)
    again = train(form(teacher), teacher, tokens, held_out, DistillConfig(**settings), out_dir=tmp_path)
    assert again.resumed, "the same arguments continue"
    student = form(teacher)
    fewer = {name: rows[:-1] for name, rows in held_out.columns.items()}
    if change == "student":
        other_weights(student)
    elif change == "teacher":
        other_weights(teacher)
    elif change == "epsilon":
        student.config.layer_norm_eps = 1e-5
    elif change == "setting":
        settings["lr"] = 1e-5
    elif change == "stored":
        settings["cache_bytes"] = 0
    elif change == "validation":
        assert held_out.labels is not None
        held_out = Tokens(fewer, held_out.labels[:-1], held_out.padding, 16)
    else:
        rows = [list(row) for row in tokens.columns["input_ids"]]
        rows[0][1] += 1
        tokens = Tokens({**tokens.columns, "input_ids": rows}, tokens.labels, tokens.padding, 16)
    with pytest.raises(DistillError, match="holds another training"):
        train(student, teacher, tokens, held_out, DistillConfig(**settings), out_dir=tmp_path)


def loop(
    model: PreTrainedModel,
    tokens: Tokens,
    directory: Path | None,
    progress: Callable[..., None],
    **options: Any,
) -> Loop:
    settings = {"batch_size": 16, "weight_decay": 0.0, "clip": 1.0, "seed": 0, "precision": "float32"}
    settings |= {"dropout": True, "freeze_embeddings": True, "checkpoint_seconds": 0.0, "validate_every": 1.0}
    stage = Stage("stage", 2, 1e-3, 1e-3, 0.0, False, lambda items, batch: model(**batch).loss)
    return Loop(
        model,
        tokens,
        [stage],
        lambda: {"value": 0.0},
        LoopSettings(**(settings | options)),
        directory,
        "key",
        progress,
    )


def test_checkpoints_take_a_small_share_of_the_time(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes long makes the next one wait; only one is kept, and its size is known."""
    running = loop(teacher, tokens, tmp_path, lambda *_: None, checkpoint_seconds=0.001)
    assert running.files is not None
    write, written = running.files.write, []

    def slow(*arguments: Any) -> int:
        time.sleep(0.2)
        written.append(time.monotonic())
        return write(*arguments)

    monkeypatch.setattr(running.files, "write", slow)
    monkeypatch.setattr(running, "_step", lambda *_: time.sleep(0.05) or 1.0)
    monkeypatch.setattr(running, "steps", [40])
    running.run()
    # 40 steps of 0.05 s: after a checkpoint of 0.2 s the next is due after 4 s, so there is one, and the last.
    assert len(written) == 2 and running._interval >= 0.2 / CHECKPOINT_SHARE
    assert running.state.checkpoint_seconds >= 0.4
    files = {path.name.split("-")[0]: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == {"best", "progress.json"}
    assert 0 < running.state.checkpoint_bytes <= sum(files.values()) + 100


def test_a_checkpoint_holds_one_state_and_the_best_model_once(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path
) -> None:
    sizes, names = [], []

    def look(done: int, *_: Any) -> None:
        if done > 1:
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            names.append({path.name for path in tmp_path.iterdir()})

    loop(teacher, tokens, tmp_path, look).run()
    weights = sum(value.numel() * value.element_size() for value in teacher.state_dict().values())
    trained = sum(p.numel() for p in teacher.parameters()) * 4
    assert max(len(found) for found in names) <= 4
    assert max(sizes) < 2 * weights + 2 * trained + 60_000, "two models, two moments and their headers"
    assert len({name for found in names for name in found if name.startswith("best")}) == 1, "written once"


class FakeGPU:
    """torch.cuda's generator state, on a machine without a GPU."""

    def __init__(self) -> None:
        self.state = torch.arange(16, dtype=torch.uint8)

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.state = state.clone()


def test_the_random_state_of_a_gpu_is_part_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = FakeGPU(), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", gpu.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", gpu.set_rng_state)
    with torch.random.fork_rng(devices=[]):
        taken = take_random(device)
        expected = torch.rand(3)
        gpu.state += 1
        put_random(taken, device)
        assert torch.equal(gpu.state, torch.arange(16, dtype=torch.uint8))
        assert torch.equal(torch.rand(3), expected)
        with pytest.raises(DistillError, match="begun on a GPU and cannot go on on cpu"):
            put_random(taken, torch.device("cpu"))


@pytest.mark.needs_gpu
def test_a_training_on_a_gpu_continues_with_its_drop_out(
    teacher: PreTrainedModel, tokens: Tokens, tmp_path: Path
) -> None:
    """Drop-out draws from the GPU's generator: stopped after step 5 and continued, the weights are the same."""
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.cuda()
    whole = loop(teacher, tokens, None, lambda *_: None)
    whole.run()
    expected = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.load_state_dict(weights)

    def stop(done: int, *_: Any) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(teacher, tokens, tmp_path, stop).run()
    assert json.loads((tmp_path / "progress.json").read_text())["progress"]["step"] == 5
    teacher.load_state_dict(weights)
    torch.cuda.manual_seed(123)
    continued = loop(teacher, tokens, tmp_path, lambda *_: None)
    continued.run()
    assert continued.resumed
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
