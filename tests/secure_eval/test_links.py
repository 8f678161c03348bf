"""Links between processes: TLS 1.3, both ends proven, anything else refused."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from secure_eval.links import Credentials, connect_all, issue, listen
from secure_eval.transport import Tcp, TensorSpec, TransportError

PAIR = [("a", "b")]


def _join(first: Credentials, second: Credentials, names: tuple[str, str] = ("a", "b")) -> list[object]:
    """Results, or exceptions, of both ends of a link."""
    listeners = [listen(), listen()]
    addresses = {name: listener.getsockname()[:2] for name, listener in zip("ab", listeners, strict=True)}

    def end(role: str, listener: socket.socket, credentials: Credentials) -> object:
        try:
            return connect_all(role, listener, PAIR, addresses, credentials, timeout=5)
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
    ends = _join(issue(["a", "b"])["a"], issue(["a", "b"])["b"])
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
    a, _ = _join(credentials["a"], credentials["c"])
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
            connect_all("b", listener, PAIR, {}, credentials["b"], timeout=5)
    listener.close()


def test_a_peer_that_never_comes_is_named() -> None:
    listener = listen()
    with pytest.raises(TransportError, match="no link to a"):
        connect_all("b", listener, PAIR, {}, issue(["b"])["b"], timeout=0.2)
    listener.close()
