"""The promises about privacy that an implementation can break without any result being wrong."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval import protocols, ring
from secure_eval.correlations.correlation import CorrelationReuse
from secure_eval.protocols.base import LINEAR, Protocol, Secret
from secure_eval.testing.conformance import STEPS, views
from secure_eval.testing.harness import evaluate, observe
from secure_eval.testing.knowledge import Traffic
from secure_eval.testing.operations import CASES
from secure_eval.testing.statistics import Z_LIMIT, uniform_z

CLS = protocols.get("dealer2pc")
PARTIES = ("party0", "party1")
PACKAGE = Path(secure_eval.__file__).parent
SECRETS = {"zero": 0.0, "near a threshold": -3.7, "large": 27.3}


def opened(traffic: list[Traffic] | tuple[Traffic, ...]) -> dict[tuple[Any, ...], Tensor]:
    """What party 0 sees online: each message that arrives, and each value that it opens."""
    return {k: v for k, v in views(traffic, PARTIES) if k[0] == "party0"}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("step", STEPS)
def test_every_opened_tensor_is_uniform(step: str, secret: str) -> None:
    """The same secret in thousands of places: a mask that does not cover the modulus shows in the bytes of
    what is opened.
    """
    function, shape = STEPS[step]
    x = ring.encode(torch.full(shape, SECRETS[secret], dtype=torch.float64), 16)
    seen = opened(evaluate(CLS, function, x, record=True).traffic)
    tested = {key: z for key, tensor in seen.items() if (z := uniform_z(tensor)) == z}
    assert len(tested) >= len(seen) // 2 > 0, "messages too small to test"
    assert not {key: z for key, z in tested.items() if z > Z_LIMIT}


def test_small_masks_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above against a protocol that opens x + r with r of 40 bits, as some published ones do."""
    from secure_eval.randomness import Stream

    tensor = Stream.tensor
    monkeypatch.setattr(
        Stream, "tensor", lambda self, *args, **kwargs: tensor(self, *args, **kwargs) & 0xFF_FFFF_FFFF
    )
    x = ring.encode(torch.full((1400,), 27.3), 16)
    seen = opened(evaluate(CLS, STEPS["mul"][0], x, record=True).traffic)
    assert max(uniform_z(tensor) for tensor in seen.values()) > Z_LIMIT


def test_opened_weights_are_uniform_and_opened_once() -> None:
    weight = torch.full((64, 32), 0.25)

    async def function(p: Protocol, x: Secret, w: Secret) -> Secret:
        return await p.bilinear(LINEAR, x, w)

    traffic = evaluate(CLS, function, torch.arange(32).view(1, 32), weights=[weight], record=True).traffic
    setup = [t for t in traffic if t.phase == "setup" and t.role == "party0" and t.peer == "party1"]
    assert [t.sent for t in setup] == [True, False] and all(tuple(t.tensor.shape) == (64, 32) for t in setup)
    assert uniform_z(setup[0].tensor + setup[1].tensor) < Z_LIMIT
    assert not [t for t in traffic if t.phase == "online" and tuple(t.tensor.shape) == (64, 32)]


class Attention(nn.Module):
    """Every kind of opening in one small model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        h = self.table(input_ids)
        scores = self.q(h) @ self.k(h).transpose(-1, -2) / 8**0.5
        scores = scores + (1.0 - attention_mask[:, None, :].float()) * torch.finfo(torch.float32).min
        h = self.norm(h + torch.softmax(scores, -1) @ self.v(h))
        return {"logits": torch.tanh(self.head(nn.functional.gelu(h))[:, 0])}


INPUTS = {
    "input_ids": torch.tensor([[1, 5, 2, 10], [3, 3, 0, 7]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return Attention().eval()


class Watched:
    """A compiled model in threads, all traffic from the first set-up message on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, embedding: str = "client"):
        from secure_eval.parties.launch import Threads

        self.record: list[Traffic] = []
        setup = Threads.setup

        def watched(launcher: Any, *args: Any) -> None:
            self.record = observe(launcher._transports)
            setup(launcher, *args)

        monkeypatch.setattr(Threads, "setup", watched)
        self.model = model()
        self.secure = secure_eval.compile(self.model, INPUTS, embedding=embedding)

    def messages(self, phase: str) -> set[tuple[str, str]]:
        return {(t.role, t.peer) for t in self.record if t.sent and t.phase == phase}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    w = Watched(monkeypatch)
    yield w
    w.secure.close()


def test_who_talks_to_whom_in_which_phase(watched: Watched) -> None:
    """The dealer hears nothing, ever; it speaks at set-up and offline only; the owner, at set-up."""
    watched.secure(**INPUTS)
    watched.secure(**INPUTS)
    between = {("party0", "party1"), ("party1", "party0")}
    assert watched.messages("setup") == between | {
        ("owner", "party0"),
        ("owner", "party1"),
        ("owner", "client"),
        ("client", "party0"),
        ("dealer", "party0"),
        ("dealer", "party1"),
    }
    assert watched.messages("offline") == {("dealer", "party1")}
    assert watched.messages("online") == between | {
        ("client", "party0"),
        ("client", "party1"),
        ("party0", "client"),
        ("party1", "client"),
    }
    assert not [t for t in watched.record if t.role == "dealer" and not t.sent]
    assert not [t for t in watched.record if t.role == "owner" and not t.sent]


def test_only_the_declared_output_leaves(watched: Watched) -> None:
    got = watched.secure(**INPUTS)
    assert set(got) == {"logits"}
    assert float((got["logits"] - watched.model(**INPUTS)["logits"]).detach().abs().max()) < 2.0**-8
    to_client = [t for t in watched.record if t.sent and t.peer == "client" and t.phase == "online"]
    assert sorted((t.role, tuple(t.tensor.shape)) for t in to_client) == [
        ("party0", (1,)),
        ("party0", (2, 2)),
        ("party1", (1,)),
        ("party1", (2, 2)),
    ]


def test_with_the_table_kept_secret_the_client_gets_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Watched(monkeypatch, embedding="onehot")
    with w.secure as secure:
        got = secure(**INPUTS)["logits"]
    assert float((got - w.model(**INPUTS)["logits"]).abs().max()) < 2.0**-8
    assert not [t for t in w.record if t.sent and t.role == "owner" and t.peer == "client"]


def test_no_message_holds_a_secret_in_the_clear(watched: Watched) -> None:
    """Neither token ids nor embeddings nor weights occur in anything that a party or the dealer gets."""
    watched.secure(**INPUTS)
    secrets = [ring.encode(p.detach(), 16).reshape(-1) for p in watched.model.parameters()]
    secrets.append(ring.encode(watched.model.table(INPUTS["input_ids"]).detach(), 16).reshape(-1))
    arrived = torch.cat(
        [
            t.tensor.reshape(-1)
            for t in watched.record
            if not t.sent and t.role != "client" and t.tensor.dtype == ring.DTYPE
        ]
    )
    clear = torch.cat([s[(s != 0) & (s.abs() > 8)] for s in secrets])
    assert clear.numel() > 100 and not torch.isin(clear, arrived).any()
    ids = INPUTS["input_ids"]
    assert not [
        t
        for t in watched.record
        if t.role != "client" and t.tensor.shape == ids.shape and torch.equal(t.tensor, ids)
    ]


def test_same_query_twice_is_masked_afresh(watched: Watched) -> None:
    """Nothing that moves between parties, client and dealer repeats, but what is public."""
    watched.secure(**INPUTS)
    middle = len(watched.record)
    watched.secure(**INPUTS)

    def by_key(record: list[Traffic]) -> dict[tuple[Any, ...], Tensor]:
        keyed: dict[tuple[Any, ...], list[Tensor]] = {}
        for t in record:
            if t.sent and t.phase in ("online", "offline"):
                keyed.setdefault((t.phase, t.role, t.peer), []).append(t.tensor)
        return {(*k, i): t for k, v in keyed.items() for i, t in enumerate(v)}

    start = next(i for i, t in enumerate(watched.record) if t.phase == "offline")
    first, second = by_key(watched.record[start:middle]), by_key(watched.record[middle:])
    assert first.keys() == second.keys()
    same = [k for k, v in first.items() if v.numel() >= 4 and torch.equal(v, second[k])]
    assert {k[:3] for k in same} <= {("online", "client", "party0"), ("online", "client", "party1")}
    assert all(torch.equal(first[k], INPUTS["attention_mask"]) for k in same)


def test_every_correlation_of_every_query_is_expanded_from_blocks_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No two expansions of one key in a run share an index, over several queries and all roles."""
    from secure_eval.randomness import Stream

    used: dict[bytes, list[int]] = {}
    tensor = Stream.tensor
    lock = threading.Lock()

    def counted(self: Stream, index: int, *args: Any, **kwargs: Any) -> Tensor:
        if type(self) is Stream:
            with lock:
                used.setdefault(self._key + id(self).to_bytes(8, "big"), []).append(index)
        return tensor(self, index, *args, **kwargs)

    monkeypatch.setattr(Stream, "tensor", counted)
    with secure_eval.compile(model(), INPUTS) as secure:
        for _ in range(3):
            secure(**INPUTS)
    assert len(used) >= 6 and all(len(set(v)) == len(v) for v in used.values())
    per_key: dict[bytes, int] = {}
    for key in used:
        per_key[key[:16]] = per_key.get(key[:16], 0) + 1
    assert set(per_key.values()) == {2}  # each key is held by exactly the two ends that share its seed


def test_a_second_online_phase_without_offline_raises() -> None:
    case = CASES["gelu"]
    with secure_eval.compile(case.model(), case.inputs()) as secure:
        secure.offline(2)
        inputs = dict(zip(secure.program.inputs, case.inputs(), strict=True))
        secure(*case.inputs())
        secure(*case.inputs())
        with pytest.raises(RuntimeError, match="no offline phase"):
            secure._launcher.online(inputs)


def test_using_one_query_s_randomness_twice_raises() -> None:
    case = CASES["mul"]
    with secure_eval.compile(case.model(), case.inputs()) as secure:
        secure.offline()
        parties = secure._launcher._parties  # type: ignore[attr-defined]
        for party in parties:
            party._stores.append(party._stores[0])
            party._queries += 1  # so that only the dealt randomness repeats, not the inputs' masks
        inputs = dict(zip(secure.program.inputs, case.inputs(), strict=True))
        secure._launcher.online(inputs)
        with pytest.raises(CorrelationReuse):
            secure._launcher.online(inputs)


def test_protocols_have_no_way_to_reveal(protocol: type[Protocol]) -> None:
    forbidden = ("reveal", "decrypt", "reconstruct", "to_plain", "get_plain_text", "open")
    assert not [
        n for n in dir(protocol) if not n.startswith("_") and n.startswith(forbidden) and n != "open_masked"
    ]


def test_client_weights_and_queries_use_fresh_seeds_each_time() -> None:
    seeds: list[bytes] = []
    for _ in range(2):
        with secure_eval.compile(CASES["mul"].model(), CASES["mul"].inputs()) as secure:
            launcher: Any = secure._launcher
            seeds += [
                *launcher._client._splitter._seeds,
                launcher._parties[0]._dealer._key,
                launcher._parties[1]._dealer._key,
            ]
    assert len(set(seeds)) == len(seeds) == 6


# -- the source --------------------------------------------------------------------------------------------
# --------------------------

FORBIDDEN_MODULES = {"random", "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = (
    "torch.rand",
    "torch.normal",
    "torch.bernoulli",
    "torch.multinomial",
    "torch.manual_seed",
    "torch.Generator",
    "torch.load",
    "torch.save",
    "np.random",
    "numpy.random",
)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def violations(tree: ast.AST) -> list[str]:
    """Imports of other generators or of serialisers that run code, and calls that draw from torch's or
    numpy's generators.
    """
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        found += [n for n in names if n.split(".")[0] in FORBIDDEN_MODULES or n.startswith(FORBIDDEN_CALLS)]
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            inplace = node.attr in (
                "random_",
                "uniform_",
                "normal_",
                "bernoulli_",
                "exponential_",
                "randint_like",
                "rand_like",
                "randn_like",
            )
            if name.startswith(FORBIDDEN_CALLS) or inplace:
                found.append(name or node.attr)
    return found


def test_no_other_generator_and_nothing_unpickled() -> None:
    files = [p for p in PACKAGE.rglob("*.py") if "testing" not in p.relative_to(PACKAGE).parts]
    assert len(files) > 20
    found = {str(p): v for p in files if (v := violations(ast.parse(p.read_text(encoding="utf-8"))))}
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import choice",
        "import pickle as p",
        "import torch\ntorch.randn(3)",
        "import numpy as np\nnp.random.rand()",
        "x.uniform_()",
        "from numpy import random",
        "from torch import randint",
        "torch.load(f)",
    ],
)
def test_the_reader_of_the_source_notices(source: str) -> None:
    assert violations(ast.parse(source))


def test_no_party_sees_more_than_its_view(watched: Watched) -> None:
    """The parties' inputs are shares: the client sends each party at most one tensor per shared input,
    besides public inputs.
    """
    watched.secure(**INPUTS)
    sent: dict[str, list[tuple[int, ...]]] = {"party0": [], "party1": []}
    for t in watched.record:
        if t.sent and t.role == "client" and t.phase == "online":
            sent[t.peer].append(tuple(t.tensor.shape))
    public, embedded = tuple(INPUTS["attention_mask"].shape), (*INPUTS["input_ids"].shape, 8)
    assert sent == {"party0": [public], "party1": [public, embedded]}
