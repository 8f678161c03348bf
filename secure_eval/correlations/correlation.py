"""Correlated randomness from a dealer: what is dealt, how it is expanded, and that it is used once.

A correlation is a frozen description (shapes and public parameters). Its fields are secret shared between two
parties, in the group of addition modulo 2^(width of the dtype) or of XOR. Random fields come from both
parties' seeds, so nothing is sent; of a derived field party 0's share comes from its seed and party 1's is
sent by the dealer. Which correlations a query needs, and in which order, is recorded by running the party on
meta tensors: there is no second list of what an operation consumes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_eval.kernels.meta_tensors import meta
from secure_eval.measurement import Ledger
from secure_eval.network.transport import TensorSpec
from secure_eval.randomness import INDICES_PER_QUERY, MetaStream, Stream

Fields = dict[str, Tensor]
_FIELDS_PER_CORRELATION = 64
_CORRELATIONS_PER_QUERY = INDICES_PER_QUERY // _FIELDS_PER_CORRELATION


class CorrelationReuse(RuntimeError):
    """Correlated randomness was asked for that is not there: used already, or dealt for another operation."""


@dataclass(frozen=True)
class Field:
    """One shared tensor of a correlation. A private random field is no sharing: each party has a tensor of its own, and the dealer
    sees both, stacked."""

    name: str
    spec: TensorSpec
    xor: bool = False
    private: bool = False


@dataclass(frozen=True)
class CommonField:
    """A tensor that the parties of a group expand from the seed that they have in common, and nobody else knows."""

    name: str
    spec: TensorSpec
    group: tuple[int, ...]


class Correlation:
    """Base of the frozen dataclasses that describe one kind of correlated randomness each."""

    def common(self) -> Sequence[CommonField]:
        """Tensors from the parties' own common seeds, in protocols without a dealer."""
        return ()

    def random(self) -> Sequence[Field]:
        """Fields that are uniform."""
        return ()

    def derived(self) -> Sequence[Field]:
        """Fields that the dealer computes from uniform ones."""
        return ()

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The derived fields in the clear, from this correlation's random fields and other correlations' (by
        their reference)."""
        return {}

    def references(self) -> Sequence[object]:
        """The other correlations that `derive` looks at: numbers in the plan, or names of weights."""
        return ()


def combine(field: Field, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The field whose shares are a and b; of a shared one, written to `out` where it is given."""
    if field.private:
        return torch.stack([a, b])
    return torch.bitwise_xor(a, b, out=out) if field.xor else torch.add(a, b, out=out)


def difference(field: Field, value: Tensor, share: Tensor, out: Tensor | None = None) -> Tensor:
    """The other share of a field with this value, written to `out` where it is given."""
    return torch.bitwise_xor(value, share, out=out) if field.xor else torch.sub(value, share, out=out)


def stream_index(query: int, number: int, field: int) -> int:
    """Index in a stream of one field of one correlation of one query: distinct for each."""
    if not (0 <= number < _CORRELATIONS_PER_QUERY and 0 <= field < _FIELDS_PER_CORRELATION):
        raise ValueError(f"correlation {number}, field {field} is out of range")
    return query * INDICES_PER_QUERY + number * _FIELDS_PER_CORRELATION + field


def expand(
    correlation: Correlation, party: int, stream: Stream, query: int, number: int, device: torch.device | str
) -> Fields:
    """What a party expands by itself: all its shares at party 0, those of the random fields at party 1."""
    own = list(correlation.random()) + (list(correlation.derived()) if party == 0 else [])
    return {
        f.name: stream.tensor(stream_index(query, number, i), f.spec.shape, f.spec.dtype, device)
        for i, f in enumerate(own)
    }


def expand_common(
    correlation: Correlation,
    party: int,
    streams: Mapping[tuple[int, ...], Stream],
    query: int,
    number: int,
    device: torch.device | str,
) -> Fields:
    """A party's tensors from common seeds: those of the groups that it is in. `streams` has its streams by group."""
    return {
        f.name: streams[f.group].tensor(stream_index(query, number, i), f.spec.shape, f.spec.dtype, device)
        for i, f in enumerate(correlation.common())
        if party in f.group
    }


class Source(ABC):
    """Where a party's protocol takes its correlations from, in the order of the plan."""

    @abstractmethod
    def next(self, correlation: Correlation) -> tuple[int, Fields]:
        """The number and this party's shares of the next correlation, which has to be the one asked for."""


class Recorder(Source):
    """Writes down what is asked for, and under which tag of `ledger`, and hands out meta tensors: makes the plan."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.plan: list[Correlation] = []
        self.tags: list[str] = []
        self._ledger = ledger or Ledger()
        self.stream = MetaStream("recorder")

    def next(self, correlation: Correlation) -> tuple[int, Fields]:
        self.plan.append(correlation)
        self.tags.append(self._ledger.tagged)
        fields: list[Field | CommonField] = [
            *correlation.common(),
            *correlation.random(),
            *correlation.derived(),
        ]
        return len(self.plan) - 1, {f.name: meta(f.spec.shape, f.spec.dtype) for f in fields}


class Store(Source):
    """Correlations of one query, each handed out once."""

    def __init__(self) -> None:
        self._items: list[tuple[Correlation, Fields] | None] = []
        self._position = 0

    def put(self, correlation: Correlation, fields: Fields) -> None:
        self._items.append((correlation, fields))

    def peek(self, number: int) -> Fields:
        """Fields of a correlation that is still stored (for local work of the offline phase)."""
        item = self._items[number]
        if item is None:
            raise CorrelationReuse(f"correlation {number} was used already")
        return item[1]

    def next(self, correlation: Correlation) -> tuple[int, Fields]:
        number = self._position
        if number >= len(self._items) or self._items[number] is None:
            raise CorrelationReuse(
                f"no unused correlation is left for {correlation}: each query needs its own offline phase"
            )
        item = self._items[number]
        assert item is not None
        if item[0] != correlation:
            raise CorrelationReuse(f"correlation {number} was dealt for {item[0]}, not for {correlation}")
        self._items[number] = None
        self._position += 1
        return number, item[1]


class Dealing:
    """The dealer's side: computes, correlation by correlation, what has to be sent to party 1.

    Args:
        streams: the streams whose seeds the dealer shares with party 0 and party 1.
        weights: random fields of the weights' fixed masks in the clear, by weight name.
    """

    def __init__(
        self,
        streams: tuple[Stream, Stream],
        weights: Mapping[str, Mapping[str, Tensor]],
        device: torch.device | str,
    ):
        self._streams, self._weights, self._device = streams, weights, device

    def deal(self, plan: Sequence[Correlation], query: int) -> Iterator[list[Tensor]]:
        """For each correlation of the plan the tensors for party 1 (none where all fields are random)."""
        last: dict[object, int] = {}
        for number, correlation in enumerate(plan):
            for reference in correlation.references():
                last[reference] = number
        clear: dict[object, Mapping[str, Tensor]] = {}

        def look_up(reference: object) -> Mapping[str, Tensor]:
            return self._weights[reference] if isinstance(reference, str) else clear[reference]

        for number, correlation in enumerate(plan):
            own = self.random(correlation, query, number)
            derived = correlation.derive(own, look_up)
            offset = len(correlation.random())
            messages = []
            for i, f in enumerate(correlation.derived()):
                share = self._streams[0].tensor(
                    stream_index(query, number, offset + i), f.spec.shape, f.spec.dtype, self._device
                )
                messages.append(difference(f, derived[f.name], share, out=share))
            if number in last:
                clear[number] = own
            for reference in correlation.references():
                if last[reference] == number:
                    clear.pop(reference, None)
            yield messages

    def random(self, correlation: Correlation, query: int, number: int) -> dict[str, Tensor]:
        """The random fields of a correlation in the clear."""
        values = {}
        for i, f in enumerate(correlation.random()):
            index = stream_index(query, number, i)
            a, b = (s.tensor(index, f.spec.shape, f.spec.dtype, self._device) for s in self._streams)
            values[f.name] = combine(f, a, b, out=a)
        return values
