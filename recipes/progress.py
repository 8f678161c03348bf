"""What a run shows while it works: bars on a terminal, plain lines with a time elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Callback = Callable[[int, int, str], None]

LINE_SECONDS = 10.0
"""Least time between two plain lines of one step."""


class Reporter:
    """Shows stages, steps and how far each is.

    console: where to; a rich Console. On a terminal there is a bar for each running step, elsewhere plain
    lines.
    """

    def __init__(
        self, console: Console | None = None, quiet: bool = False, file: TextIO | None = None
    ) -> None:
        self.console = console or Console(file=file, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars: Progress | None = None
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """One line of its own."""
        stamp = f"{time.monotonic() - self._started:7.1f} s  " if not self.console.is_terminal else ""
        self.console.print(stamp + text, markup=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Callback]:
        """A step that takes a while; yields the callback that long functions call as progress(done, total,
        message)."""
        if self.console.is_terminal:
            with self._bar(title) as callback:
                yield callback
            return
        self.line(f"{title} …")
        started = last = time.monotonic()
        shown = ""

        def report(done: int, total: int, message: str) -> None:
            nonlocal last, shown
            now = time.monotonic()
            kind = re.sub(r"[\d.]+", "", message)  # a loss that changes is no news, another activity is
            if now - last < (LINE_SECONDS if kind == shown else 1.0):
                return
            last, shown = now, kind
            self.line(f"{title}: {message} {done}/{total}")

        yield report
        self.line(f"{title}: done in {time.monotonic() - started:.1f} s")

    @contextmanager
    def _bar(self, title: str) -> Iterator[Callback]:
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[title]}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        started = time.monotonic()
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task("", total=None, title=title)

            def report(done: int, total: int, message: str) -> None:
                bars.update(task, completed=done, total=total, description=message)

            yield report
        self.console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - started:.1f} s[/]")


def silent(done: int, total: int, message: str) -> None:
    """A callback that shows nothing."""
