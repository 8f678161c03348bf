"""Steps: done once, done again when what they depend on changes, resumed after a kill, never half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.errors import RecipeError
from recipes.files import fingerprint, replace_directory, write_json
from recipes.progress import silent
from recipes.rundir import RunDirectory, Step, library_versions


class Work:
    """A step's work that counts its calls and can be killed half-way."""

    def __init__(self, run: RunDirectory, folder: str) -> None:
        self.run, self.folder, self.calls, self.killed = run, folder, 0, False
        self.found: list[str] = []

    def __call__(self, progress: object) -> None:
        self.calls += 1
        place = self.run / self.folder
        self.found = sorted(path.name for path in place.iterdir())
        (place / "half").write_text("half")
        if self.killed:
            raise KeyboardInterrupt
        (place / "whole").write_text("whole")


def make(run: RunDirectory, work: Work, inputs: object = 1, needs: tuple[str, ...] = ()) -> Step:
    return Step(work.folder, work.folder, inputs, needs, work.folder, (f"{work.folder}/whole",), work)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run", "1.0")
    directory.prepare()
    return directory


def do(run: RunDirectory, step: Step) -> bool:
    if run.finished(step):
        return False
    run.run(step, silent)
    return True


def test_done_once(run: RunDirectory) -> None:
    work = Work(run, "a")
    assert do(run, make(run, work)) is True
    assert do(run, make(run, work)) is False
    assert work.calls == 1
    assert run.seconds(["a"]) >= 0


@pytest.mark.parametrize("change", ["inputs", "version", "output", "marker"])
def test_done_again_when_something_changed(run: RunDirectory, change: str) -> None:
    work = Work(run, "a")
    do(run, make(run, work))
    inputs = 1
    if change == "inputs":
        inputs = 2
    elif change == "version":
        run = RunDirectory(run.path, "1.1")
        work.run = run
    elif change == "output":
        (run / "a/whole").unlink()
    else:
        (run / ".state/a.done.json").write_text("{broken")
    assert do(run, make(run, work, inputs)) is True
    assert work.calls == 2


@pytest.mark.parametrize("change", ["truncated", "overwritten", "extra output", "listed output"])
def test_a_finished_steps_outputs_are_compared(run: RunDirectory, change: str) -> None:
    """One that is not what the step left makes it begin anew, from an empty folder, and is named."""
    work = Work(run, "a")
    step = make(run, work)
    do(run, step)
    assert run.changed(step) == []
    place = run / ("a/half" if change == "extra output" else "a/whole")
    if change == "truncated":
        place.write_text("who")
    elif change == "overwritten":
        place.write_text("WHOLE")
    else:
        place.unlink()
    assert run.changed(step) == [str(place.relative_to(run.path))]
    work.found = ["not looked at"]
    assert do(run, step) is True
    assert work.found == [], "what was damaged is no start"
    assert do(run, step) is False and run.changed(step) == []


def test_another_library_is_another_key(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(run, "a")
    step = make(run, work)
    before = run.key(step)
    assert RunDirectory(run.path, "1.0").key(step) == before
    newer = {**library_versions(), "torch": "999"}
    monkeypatch.setattr("recipes.rundir.library_versions", lambda: newer)
    assert RunDirectory(run.path, "1.0").key(step) != before


def test_a_change_upstream_reaches_everything_below(run: RunDirectory) -> None:
    above, below = Work(run, "a"), Work(run, "b")
    for inputs, expected in ((1, (1, 1)), (1, (1, 1)), (2, (2, 2))):
        do(run, make(run, above, inputs))
        do(run, make(run, below, needs=("a",)))
        assert (above.calls, below.calls) == expected


def test_a_killed_step_finds_what_it_left(run: RunDirectory) -> None:
    work = Work(run, "a")
    work.killed = True
    with pytest.raises(KeyboardInterrupt):
        do(run, make(run, work))
    work.killed = False
    assert do(run, make(run, work)) is True
    assert work.found == ["half"]


def test_a_killed_step_with_other_inputs_starts_clean(run: RunDirectory) -> None:
    work = Work(run, "a")
    work.killed = True
    with pytest.raises(KeyboardInterrupt):
        do(run, make(run, work))
    work.killed = False
    assert do(run, make(run, work, inputs=2)) is True
    assert work.found == []


def test_a_step_that_failed_again_is_not_finished(run: RunDirectory) -> None:
    """An earlier success of other inputs doesn't count once its outputs were overwritten."""
    work = Work(run, "a")
    do(run, make(run, work, inputs=1))
    work.killed = True
    with pytest.raises(KeyboardInterrupt):
        do(run, make(run, work, inputs=2))
    assert not run.finished(make(run, work, inputs=1))


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written to"):
        RunDirectory(tmp_path / "file" / "run", "1").prepare()


def test_fingerprints_follow_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = fingerprint(folder)
    (folder / "a").write_text("2")
    changed = fingerprint(folder)
    (folder / "a").write_text("1")
    assert before == fingerprint(folder) != changed
    (folder / "a").rename(folder / "b")
    assert fingerprint(folder) != before
    assert fingerprint(folder / "b") == fingerprint(folder / "b")


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x" / "a.json", {"é": 1})
    assert json.loads((tmp_path / "x" / "a.json").read_text()) == {"é": 1}
    for text in ("one", "two"):
        new = tmp_path / "new"
        new.mkdir()
        (new / "file").write_text(text)
        replace_directory(new, tmp_path / "target")
        assert (tmp_path / "target" / "file").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target", "x"]
