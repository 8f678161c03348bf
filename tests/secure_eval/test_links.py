"""Links between processes: TLS 1.3, both ends proven, anything else refused."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from secure_eval.network import links
from secure_eval.network.links import Credentials, _context, connect_all, issue, listen
from secure_eval.network.transport import Tcp, TensorSpec, TransportError

PAIR = [("a", "b")]


def _join(first: Credentials, second: Credentials, timeout: float = 5) -> list[object]:
    """Results, or exceptions, of both ends of a link."""
    listeners = [listen(), listen()]
    addresses = {name: listener.getsockname()[:2] for name, listener in zip("ab", listeners, strict=True)}

    def end(role: str, listener: socket.socket, credentials: Credentials) -> object:
        try:
            return connect_all(role, listener, PAIR, addresses, credentials, timeout)
        except Exception as error:
            return error
        finally:
            listener.close()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(end, "ab", listeners, (first, second)))


def test_a_link_is_mutual_tls_1_3_and_carries_tensors() -> None:
    credentials = issue(["a", "b"])
    a, b = _join(credentials["a"], credentials["b"])
    assert isinstance(a, dict) and isinstance(b, dict)
    for wrapped in (a["b"], b["a"]):
        assert isinstance(wrapped, ssl.SSLSocket) and wrapped.version() == "TLSv1.3"
        assert wrapped.getpeercert(binary_form=True) is not None
    left, right = Tcp("a", a), Tcp("b", b)
    big = torch.arange(1 << 19)
    specs = [TensorSpec.of(big)]
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(left.exchange, {"b": [big]}, {"b": specs})
        other = pool.submit(right.exchange, {"a": [-big]}, {"a": specs})
        assert torch.equal(one.result(30)["b"][0], -big) and torch.equal(other.result(30)["a"][0], big)
    left.close()
    right.close()


def test_a_certificate_of_another_authority_is_refused() -> None:
    ends = _join(issue(["a", "b"])["a"], issue(["a", "b"])["b"], timeout=1)
    assert all(isinstance(e, TransportError) for e in ends), ends


@pytest.mark.parametrize("claimed", ["c", "b"])
def test_a_valid_certificate_of_another_role_is_refused(claimed: str) -> None:
    credentials = issue(["a", "b", "c"])
    a, b = _join(credentials[claimed], credentials["b"])
    assert isinstance(b, TransportError) and repr(claimed) in str(b)
    if isinstance(a, dict):  # a TLS 1.3 client has done its part before the server refuses it
        a["b"].close()


def test_a_server_that_is_another_role_is_refused() -> None:
    credentials = issue(["a", "b", "c"])
    a, _ = _join(credentials["a"], credentials["c"], timeout=1)
    assert isinstance(a, TransportError) and "no link to b" in str(a)


def test_a_peer_without_a_certificate_is_refused() -> None:
    credentials = issue(["a", "b"])
    listener = listen()

    def stranger() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=credentials["a"].authority)
        with socket.create_connection(listener.getsockname()[:2], timeout=5) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="b") as wrapped:
                    wrapped.recv(1)
            except (ssl.SSLError, ConnectionError):
                pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(stranger)
        with pytest.raises(TransportError, match="no link to a"):
            connect_all("b", listener, PAIR, {}, credentials["b"], timeout=1)
    listener.close()


def _silence(address: tuple[str, int], _: Credentials) -> socket.socket:
    return socket.create_connection(address)


def _junk(address: tuple[str, int], _: Credentials) -> socket.socket:
    raw = socket.create_connection(address)
    raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(5000))
    return raw


def _half_a_hello(address: tuple[str, int], _: Credentials) -> socket.socket:
    raw = socket.create_connection(address)
    raw.sendall(b"\x16\x03\x01\x02\x00\x01")
    return raw


def _gone(address: tuple[str, int], _: Credentials) -> socket.socket:
    raw = socket.create_connection(address)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its close is a reset
    raw.close()
    return raw


def _without_certificate(address: tuple[str, int], credentials: Credentials) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=credentials.authority)
    raw = socket.create_connection(address)
    raw.setblocking(False)
    wrapped = context.wrap_socket(raw, server_hostname="b", do_handshake_on_connect=False)
    with contextlib.suppress(ssl.SSLWantReadError):
        wrapped.do_handshake()
    return wrapped


@pytest.mark.parametrize("stranger", [_silence, _junk, _half_a_hello, _gone, _without_certificate])
def test_strangers_who_connect_first_hinder_nobody(stranger: Callable[..., socket.socket]) -> None:
    credentials = issue(["a", "b"])
    with listen() as listener, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        address = listener.getsockname()[:2]
        for _ in range(3):
            stack.enter_context(contextlib.closing(stranger(address, credentials["a"])))
        server = pool.submit(connect_all, "b", listener, PAIR, {}, credentials["b"], 20)
        started = time.monotonic()
        with socket.socket() as unused:
            a = connect_all("a", unused, PAIR, {"b": address}, credentials["a"], 20)["b"]
        b = server.result(20)["a"]
        assert time.monotonic() - started < links._HANDSHAKE_S
        a.sendall(b"x")
        assert b.recv(1) == b"x"
        a.close()
        b.close()


def test_more_strangers_than_places_hinder_nobody_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_AT_ONCE", 4)
    credentials = issue(["a", "b"])
    with listen() as listener, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        address = listener.getsockname()[:2]
        for _ in range(20):
            stack.enter_context(contextlib.closing(_silence(address, credentials["a"])))
        server = pool.submit(connect_all, "b", listener, PAIR, {}, credentials["b"], 20)
        with socket.socket() as unused:
            connect_all("a", unused, PAIR, {"b": address}, credentials["a"], 20)["b"].close()
        server.result(20)["a"].close()


def test_those_who_were_turned_away_are_told_of_when_the_right_one_never_comes() -> None:
    credentials = issue(["a", "b"])
    with listen() as listener, contextlib.closing(_junk(listener.getsockname()[:2], credentials["a"])):
        with pytest.raises(TransportError, match="b: no link to a: timed out; turned away: .*SSL"):
            connect_all("b", listener, PAIR, {}, credentials["b"], timeout=1)


def test_a_handshake_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_HANDSHAKE_S", 0.2)
    credentials = issue(["a", "b"])
    with listen() as listener, contextlib.closing(_silence(listener.getsockname()[:2], credentials["a"])):
        with pytest.raises(TransportError, match="turned away: no handshake for 0 s"):
            connect_all("b", listener, PAIR, {}, credentials["b"], timeout=1)


def _at_most_1_2(credentials: Credentials, server: bool) -> ssl.SSLContext:
    """The context of a role that speaks TLS 1.2 and nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=credentials.authority)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(credentials.certificate + credentials.key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> list[str]:
    """What each end of a handshake over a socket pair comes to: the version, or the name of the error."""
    left, right = socket.socketpair()

    def end(raw: socket.socket, context: ssl.SSLContext, **options: object) -> str:
        raw.settimeout(5)
        try:
            with context.wrap_socket(raw, **options) as wrapped:  # type: ignore[arg-type]
                return str(wrapped.version())
        except (ssl.SSLError, OSError) as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(end, left, client, server_hostname="b")
        other = pool.submit(end, right, server, server_side=True)
        return [one.result(), other.result()]


def test_tls_1_2_is_refused_by_both_ends() -> None:
    """Peers with certificates that are right, who offer nothing newer."""
    credentials = issue(["a", "b"])
    old = [_at_most_1_2(credentials[role], role == "b") for role in "ab"]
    new = [_context(credentials[role], server=role == "b") for role in "ab"]
    assert _handshake(old[0], old[1]) == ["TLSv1.2"] * 2  # nothing else is wrong with them
    assert _handshake(new[0], new[1]) == ["TLSv1.3"] * 2
    for pair in ((old[0], new[1]), (new[0], old[1])):
        ends = _handshake(*pair)
        assert not any(end.startswith("TLS") for end in ends), ends


def test_a_peer_that_never_comes_is_named() -> None:
    listener = listen()
    with pytest.raises(TransportError, match="no link to a"):
        connect_all("b", listener, PAIR, {}, issue(["b"])["b"], timeout=0.2)
    listener.close()
