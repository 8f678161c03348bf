"""Answers of `sordino cost` that are kept: found again, and not for another question."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from recipes import answers


def _key(tmp_path: Path, text: str = "{}", network: str = "wan", batch: int = 1) -> str | None:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(text)
    return answers.key({"batch": batch}, [str(tmp_path / "model"), "dealer2pc"], {"networks": network})


ANSWER = {"bytes": 1, "device_profile": {"file": ""}}


def test_the_same_question_finds_its_answer(tmp_path: Path) -> None:
    name = _key(tmp_path)
    assert name is not None and answers.read(name) is None
    answers.write(name, ANSWER)
    assert answers.read(_key(tmp_path)) == ANSWER


def test_an_answer_ends_with_the_profile_that_it_was_made_with(tmp_path: Path) -> None:
    profile = tmp_path / "auto.yaml"
    profile.write_text("date: 2026-11-22\n")
    answer = {"seconds": 1, "device_profile": {"file": str(profile)}}
    name = answers.key({}, [], {"devices": "auto"})
    assert name is not None
    answers.write(name, answer)
    assert answers.read(name) == answer
    profile.write_text("date: 2026-11-23\n")
    assert answers.read(name) is None
    answers.write(name, answer)
    profile.unlink()
    assert answers.read(name) is None


def test_whatever_changes_is_another_question(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("round_trip_s: 1\n")
    names = [
        _key(tmp_path),
        _key(tmp_path, '{"layers": 2}'),
        _key(tmp_path, batch=2),
        _key(tmp_path, network="lan"),
    ]
    names.append(_key(tmp_path, network=str(profile)))
    profile.write_text("round_trip_s: 2\n")
    names.append(_key(tmp_path, network=str(profile)))
    assert None not in names and len(set(names)) == len(names)


def test_what_is_not_here_is_not_looked_up(tmp_path: Path) -> None:
    assert answers.key({}, ["some/hub-id"], {}) is None
    assert _key(tmp_path, network="no-such-network") is None
    assert answers.read(None) is None
    answers.write(None, {})
    assert not answers.folder().exists()


def test_the_oldest_answers_go(tmp_path: Path) -> None:
    for number in range(answers.KEPT + 3):
        path = answers.folder() / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (number, number))
    answers.write("newest", ANSWER)
    left = {path.stem for path in answers.folder().glob("*.json")}
    assert len(left) == answers.KEPT and "newest" in left and "0" not in left


def test_protocols_are_told_from_models_without_torch() -> None:
    """The names are listed there, because asking secure_eval for them takes longer than an answer may."""
    import secure_eval

    plugged = {entry.name for entry in importlib.metadata.entry_points(group="sordino.protocols")}
    assert {*answers._PROTOCOLS, *plugged} == set(secure_eval.protocols.names())
