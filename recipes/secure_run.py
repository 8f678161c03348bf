"""A model answering test examples under MPC, its counts held against the prediction for the same inputs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.costs import PHASES, counts_of, measured_phase, predicted_figures
from recipes.progress import Callback
from recipes.schema import Secure

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from distill import Tokens


def secure_run(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    kind: str,
    secure: Secure,
    samples: int,
    parties: str,
    folder: Path,
    progress: Callback,
    predicted: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer the first `samples` items of `tokens` under MPC, `secure.batch` to a query, each padded to its
    length.

    folder: answers are kept there query by query, so that a killed run goes on after the last one.

    predicted: figures of `predicted_figures` for this model and these shapes, if they are known already.

    Returns JSON-like {"samples", "predicted", "measured", "equal", "secure": {…}}, as in a record. `equal`
    says whether bytes and rounds of every phase and every query are those predicted.
    """
    import torch

    import cost_models
    import distill
    import secure_eval

    count = min(samples, len(tokens))
    queries = [list(range(at, min(at + secure.batch, count))) for at in range(0, count, secure.batch)]
    inputs = [_query(tokens, items, secure) for items in queries]
    plain = torch.cat(
        [_plain(model, batch)[: len(items)] for batch, items in zip(inputs, queries, strict=True)]
    )
    log = folder / "queries.jsonl"
    done = _read_log(log)
    if predicted is None or len(done) < len(queries):
        progress(0, len(queries), "capturing the model")
        program = secure_eval.capture(model, inputs[0])
        if predicted is None:
            predicted = predicted_figures(
                cost_models.predict(program, inputs[0], protocol=secure.protocol), secure
            )
    if len(done) < len(queries):
        progress(len(done), len(queries), f"setting up {secure.protocol}")
        with (
            secure_eval.compile(program, protocol=secure.protocol, parties=parties) as engine,
            open(log, "a", encoding="utf-8") as file,
        ):
            for index in range(len(done), len(queries)):
                logits = engine(**inputs[index]).logits.detach().float().cpu()
                measurement = engine.measurement
                entry = {name: measured_phase(getattr(measurement, name)) for name in PHASES}
                entry["by_role"] = measurement.communication()
                entry["logits"] = logits[: len(queries[index])].tolist()
                file.write(json.dumps(entry) + "\n")
                file.flush()
                done.append(entry)
                progress(index + 1, len(queries), f"queries under {secure.protocol}")
    answers = torch.tensor([row for entry in done for row in entry["logits"]])
    labels = distill.labels_of(tokens)[:count]
    wanted = counts_of(predicted)
    counted = [counts_of(entry) for entry in done]
    measured: dict[str, Any] = {}
    for name in PHASES:
        times = [entry[name]["seconds"] for entry in done if entry[name]["seconds"] is not None]
        measured[name] = {
            "bytes": counted[0][name][0],
            "rounds": counted[0][name][1],
            "seconds": statistics.median(times) if times else None,
        }
    constant = all(one == counted[0] for one in counted)
    measured |= {"network": "loopback", "parties": parties, "queries": len(done), "constant": constant}
    roles = [entry["by_role"] for entry in done]
    measured["by_role"] = roles[0]
    return {
        "predicted": predicted,
        "measured": measured,
        "equal": all(one == wanted for one in counted) and all(one == predicted["by_role"] for one in roles),
        "secure": {
            "samples": count,
            "accuracy": distill.score(answers, labels, kind),
            "plaintext": distill.score(plain, labels, kind),
            "agreement": _agreement(answers, plain, kind),
            "max_logit_error": float((answers - plain).abs().max()),
        },
    }


def _query(tokens: Tokens, items: list[int], secure: Secure) -> dict[str, torch.Tensor]:
    """One query's inputs [batch, sequence_length]; an incomplete last batch is filled by repeating its last
    item."""
    full = items + [items[-1]] * (secure.batch - len(items))
    return tokens.collate(full, secure.sequence_length, labels=False)


def _plain(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    import distill

    return distill.evaluate(model, [batch])


def _agreement(answers: torch.Tensor, plain: torch.Tensor, kind: str) -> float:
    """Share of equal arg-maxes; for numbers the correlation of both answers."""
    import distill

    return distill.score(answers, plain.argmax(-1) if kind == "classification" else plain.reshape(-1), kind)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Complete lines of an earlier, killed run; a torn last line is cut off."""
    if not path.exists():
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.split("\n") if line]
