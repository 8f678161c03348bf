"""Connected sockets between roles: mutual TLS 1.3, each end proven to be the role that it says it is.

A computation has a certificate authority of its own, made for it and thrown away with it; each role's certificate carries the role's
name. A role connects to the roles behind it in the list of links and accepts the ones before it; a peer whose certificate is not
from this authority is turned away without hindering the right one; one that names another role than expected ends the set-up.
"""

from __future__ import annotations

import datetime
import os
import selectors
import socket
import ssl
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secure_eval.network.transport import TransportError

_VALID = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Credentials:
    """PEM texts of one role: the authority's certificate, its own certificate and its private key."""

    authority: str
    certificate: str
    key: str


def _name(role: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])


def issue(roles: Sequence[str]) -> dict[str, Credentials]:
    """Fresh credentials for the roles of one computation. The authority's key is not kept."""
    now = datetime.datetime.now(datetime.UTC)

    def build(
        subject: str, public_key: ec.EllipticCurvePublicKey, authority: bool
    ) -> x509.CertificateBuilder:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name("sordino"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + _VALID)
            .add_extension(
                x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
            )
        )
        return (
            builder
            if authority
            else builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    key_usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = (
        build("sordino", ca_key.public_key(), True)
        .add_extension(key_usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    credentials = {}
    for role in roles:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = build(role, key.public_key(), False).sign(ca_key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        credentials[role] = Credentials(_pem(ca), _pem(certificate), private.decode())
    return credentials


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _context(credentials: Credentials, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority)
    if server:
        context.num_tickets = 0
    # The ssl module reads keys from files only: one that nobody else can read, gone right after.
    handle, path = tempfile.mkstemp(prefix="sordino-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(credentials.certificate + credentials.key)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0 lets the system choose."""
    return socket.create_server((host, port), backlog=128)


def connect_all(
    role: str,
    listener: socket.socket,
    links: Sequence[tuple[str, str]],
    addresses: Mapping[str, tuple[str, int]],
    credentials: Credentials,
    timeout: float = 60.0,
) -> dict[str, ssl.SSLSocket]:
    """Makes this role's links: connects where it is the first of a pair, accepts where it is the second.

    Whoever connects without a certificate of this computation's authority (junk, silence, a stranger's TLS) is turned away and hinders
    nobody: handshakes go on side by side, each for a bounded time.

    Returns connected TLS sockets by peer. Raises TransportError, naming who is missing, when the links do not stand after `timeout`
    seconds, when a server is not the role that it should be, and when a certificate of the authority names a role that is not expected.
    """
    expected = {a for a, b in links if b == role}
    targets = [b for a, b in links if a == role]
    until = time.monotonic() + timeout
    sockets: dict[str, ssl.SSLSocket] = {}
    reception = _Reception(role, listener, expected, credentials) if expected else None
    try:
        for peer in targets:
            raw = socket.create_connection(addresses[peer], timeout=_left(until))
            raw.settimeout(_left(until))
            sockets[peer] = _wrapped(raw, _context(credentials, server=False), server_hostname=peer)
        if reception:
            sockets |= reception.all_by(until)
    except BaseException as error:
        found = {*sockets, *(reception.accepted if reception else ())}
        missing = ", ".join(sorted((expected | set(targets)) - found))
        for connected in sockets.values():
            connected.close()
        if isinstance(error, OSError):
            raise TransportError(f"{role}: no link to {missing}: {error}") from error
        raise
    finally:
        if reception:
            reception.close()
    for connected in sockets.values():
        connected.settimeout(timeout)
    return sockets


def _left(until: float) -> float:
    """Seconds until then; TimeoutError where there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


_HANDSHAKE_S = 10.0
"""Seconds that somebody who connected has for the handshake."""

_AT_ONCE = 64
"""Handshakes under way at once; somebody more ends the oldest, of those first that never said anything."""


class _Reception:
    """Accepts the expected peers on a listening socket, and turns everybody else away."""

    def __init__(self, role: str, listener: socket.socket, expected: set[str], credentials: Credentials):
        self._role, self._listener, self._expected = role, listener, expected
        self._context = _context(credentials, server=True)
        self._selector = selectors.DefaultSelector()
        self._guests: dict[ssl.SSLSocket, float] = {}
        self._heard: set[ssl.SSLSocket] = set()
        self._refused: list[str] = []
        self.accepted: dict[str, ssl.SSLSocket] = {}
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def all_by(self, until: float) -> dict[str, ssl.SSLSocket]:
        """The expected peers' sockets. Raises TimeoutError, saying who was turned away, when not all are there in time."""
        while self._expected - set(self.accepted):
            now = time.monotonic()
            for guest in [g for g, deadline in self._guests.items() if deadline <= now]:
                self._turn_away(guest, f"no handshake for {_HANDSHAKE_S:.0f} s")
            if now >= until:
                turned = f"; turned away: {', '.join(self._refused[-3:])}" if self._refused else ""
                raise TimeoutError(f"timed out{turned}")
            for key, _ in self._selector.select(min([until, *self._guests.values()]) - now):
                if key.fileobj is self._listener:
                    self._admit()
                else:
                    self._greet(cast(ssl.SSLSocket, key.fileobj))
        return self.accepted

    def _admit(self) -> None:
        """Takes whoever connected last; the handshake is still to come."""
        try:
            raw, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        if len(self._guests) >= _AT_ONCE:
            silent_first = min(self._guests, key=lambda g: (g in self._heard, self._guests[g]))
            self._turn_away(silent_first, "too many at once")
        raw.setblocking(False)
        try:
            raw.getpeername()
            guest = _wrapped(raw, self._context, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:  # gone again
            raw.close()
            self._refused.append(str(error))
            return
        self._guests[guest] = time.monotonic() + _HANDSHAKE_S
        self._selector.register(guest, selectors.EVENT_READ)

    def _greet(self, guest: ssl.SSLSocket) -> None:
        """Goes on with one handshake."""
        if guest not in self._guests:
            return
        self._heard.add(guest)
        try:
            guest.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(guest, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._selector.modify(guest, selectors.EVENT_WRITE)
        except (OSError, ValueError) as error:
            self._turn_away(guest, str(error))
        else:
            self._forget(guest)
            peer = _peer_name(guest)
            if peer not in self._expected or peer in self.accepted:
                guest.close()
                missing = ", ".join(sorted(self._expected - set(self.accepted)))
                raise TransportError(f"{self._role}: {peer!r} connected; expected one of {missing}")
            self.accepted[peer] = guest

    def _forget(self, guest: ssl.SSLSocket) -> None:
        self._selector.unregister(guest)
        del self._guests[guest]
        self._heard.discard(guest)

    def _turn_away(self, guest: ssl.SSLSocket, why: str) -> None:
        self._forget(guest)
        guest.close()
        self._refused.append(why)

    def close(self) -> None:
        """Ends the handshakes under way, and where not everybody came, the links too."""
        for guest in self._guests:
            guest.close()
        if self._expected - set(self.accepted):
            for peer in self.accepted.values():
                peer.close()
        self._selector.close()


def _wrapped(raw: socket.socket, context: ssl.SSLContext, **options: Any) -> ssl.SSLSocket:
    """The TLS socket over a connected one, which is closed if that fails."""
    try:
        return context.wrap_socket(raw, **options)
    except BaseException:
        raw.close()
        raise


def _peer_name(wrapped: ssl.SSLSocket) -> str:
    encoded = wrapped.getpeercert(binary_form=True)
    assert encoded is not None, "both ends require certificates"
    extension = x509.load_der_x509_certificate(encoded).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    names = extension.value.get_values_for_type(x509.DNSName)
    return names[0] if len(names) == 1 else ""
