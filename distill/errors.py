"""Errors that users of `distill` can act on: all are `ValueError`s that name the place, the value and what is
allowed."""

import difflib
from collections.abc import Iterable


class DistillError(ValueError):
    """Base class of the package's errors about bad input."""


class UnknownVariant(DistillError):
    """A variant name or kind that nothing has registered."""


class UnknownSite(DistillError):
    """A site name that the model does not have."""


class CalibrationMissing(DistillError):
    """A variant needs statistics of the teacher that were not given."""


class OutOfRange(DistillError):
    """A variant that fixed point cannot hold at a site, whatever its constants."""


class UnsupportedModel(DistillError):
    """A model that cannot be operated on, for example one that bypasses transformers' attention interface."""


class DataError(DistillError):
    """A data source that is missing, malformed or lacks a column."""


def suggestion(value: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? Allowed: …"`` for an unknown `value`, closest name first when one is
    close."""
    names = sorted(allowed)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} Allowed: {', '.join(names) if names else '(none)'}"
