"""One example of a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One example: its text, the second text of a pair, and its label (class number or value) if it is known."""

    text: str
    pair: str | None
    label: int | float | None

    @property
    def key(self) -> str:
        """What makes two examples the same: a text alone is its own key."""
        return self.text if self.pair is None else f"{self.text}\0{self.pair}"
