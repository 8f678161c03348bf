"""A model answering test examples under MPC, its counts held against the prediction for the same inputs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.costs import PHASES, counts_of, measured_phase, predicted_figures
from recipes.progress import Callback
from recipes.queries import Queries
from recipes.schema import Secure

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    import secure_eval
    from distill import Tokens
    from recipes.certification import Certified


def secure_run(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    kind: str,
    secure: Secure,
    samples: int,
    parties: str,
    timeout: float,
    folder: Path,
    progress: Callback,
    certified: Certified,
) -> dict[str, Any]:
    """Answer the first `samples` items of `tokens` under MPC, `secure.batch` to a query, each padded to its
    length.

    folder: answers are kept there query by query, so that a killed run goes on after the last one.

    certified: the model's program, and whether training texts fit it. What does not fit is run all the same, and
    secure.checked says that it was not checked: whoever calls decides.

    Returns JSON-like {"samples", "predicted", "measured", "equal", "secure": {…}}, as in a record. `equal`
    says whether bytes and rounds of every phase and every query are those predicted.
    """
    import torch

    import distill

    queries = Queries(tokens, samples, secure)
    plain = torch.cat([_plain(model, inputs)[:size] for inputs, size in queries])
    log = folder / "queries.jsonl"
    done = read_log(log)
    predicted = predicted_figures(certified.cost(secure.protocol), secure)
    done = answer(certified, queries, log, parties=parties, timeout=timeout, progress=progress)
    answers = torch.tensor([row for entry in done for row in entry["logits"]])
    labels = distill.labels_of(tokens)[: queries.count]
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
    measured |= {name: done[0].get(name) for name in ("by_role", "simulation", "public")}
    return {
        "predicted": predicted,
        "measured": measured,
        "equal": as_predicted(done, predicted),
        "secure": {
            "samples": queries.count,
            "accuracy": distill.score(answers, labels, kind),
            "plaintext": distill.score(plain, labels, kind),
            "agreement": _agreement(answers, plain, kind),
            "max_logit_error": float((answers - plain).abs().max()),
            "checked": done[0]["checked"],
        },
    }


def answer(
    certified: Certified,
    queries: Queries,
    log: Path,
    *,
    parties: str,
    timeout: float,
    progress: Callback,
    network: secure_eval.Link | None = None,
    where: str = "",
    warm_up: bool = False,
) -> list[dict[str, Any]]:
    """Answer under MPC those queries that `log` does not have yet, each written there when it is done;
    returns the log's entries, one a query: the phases' figures, "by_role" and "logits".

    timeout: seconds without progress after which a query is given up (see secure_eval.compile).
    network: links to emulate; where: how the progress names them; warm_up: answer one query beforehand that is
    not written down, because the first one of a process loads and compiles what all later ones find ready.
    """
    import secure_eval
    from secure_eval.disclosure import public_lines

    done = read_log(log)
    if len(done) >= len(queries):
        return done
    protocol = queries.secure.protocol
    progress(len(done), len(queries), f"setting up {protocol}{where}")
    with (
        secure_eval.compile(
            certified.program,
            queries.inputs[0],
            protocol=protocol,
            parties=parties,
            network=network,
            timeout=timeout,
            certificate=certified.certificate,
            check=certified.fits,
        ) as engine,
        open(log, "a", encoding="utf-8") as file,
    ):
        if warm_up:
            engine(**queries.inputs[0])
        for index in range(len(done), len(queries)):
            logits = engine(**queries.inputs[index]).logits.detach().float().cpu()
            measurement = engine.measurement
            entry: dict[str, Any] = {name: measured_phase(getattr(measurement, name)) for name in PHASES}
            entry["by_role"] = measurement.communication()
            entry["checked"] = measurement.checked
            entry["simulation"] = measurement.simulation
            entry["public"] = public_lines(certified.program)
            entry["logits"] = logits[: queries.sizes[index]].tolist()
            file.write(json.dumps(entry) + "\n")
            file.flush()
            done.append(entry)
            progress(index + 1, len(queries), f"queries under {protocol}{where}")
    return done


def as_predicted(done: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any]) -> bool:
    """Whether bytes and rounds of every phase, query and role are those predicted."""
    wanted = counts_of(predicted)
    return all(counts_of(one) == wanted and one["by_role"] == predicted["by_role"] for one in done)


def _plain(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    import distill

    return distill.evaluate(model, [batch])


def _agreement(answers: torch.Tensor, plain: torch.Tensor, kind: str) -> float:
    """Share of equal arg-maxes; for numbers the correlation of both answers."""
    import distill

    return distill.score(answers, plain.argmax(-1) if kind == "classification" else plain.reshape(-1), kind)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Complete lines of an earlier, killed run; a torn last line is cut off."""
    if not path.exists():
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.split("\n") if line]
