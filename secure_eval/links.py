"""Connected sockets between roles: mutual TLS 1.3, each end proven to be the role that it says it is.

A computation has a certificate authority of its own, made for it and thrown away with it; each role's certificate carries the role's
name. A role connects to the roles behind it in the list of links and accepts the ones before it; a peer whose certificate is not
from this authority, or names another role than expected, is refused.
"""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secure_eval.transport import TransportError

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
    return socket.create_server((host, port), backlog=16)


def connect_all(
    role: str,
    listener: socket.socket,
    links: Sequence[tuple[str, str]],
    addresses: Mapping[str, tuple[str, int]],
    credentials: Credentials,
    timeout: float = 60.0,
) -> dict[str, socket.socket]:
    """All links of `role`: it connects where it stands first in a pair and accepts where it stands second.

    Raises TransportError when a peer does not come within `timeout` seconds, or is not who it should be.
    """
    targets = [b for a, b in links if a == role]
    expected = {a for a, b in links if b == role}
    sockets: dict[str, socket.socket] = {}
    try:
        for peer in targets:
            raw = socket.create_connection(addresses[peer], timeout=timeout)
            sockets[peer] = _wrapped(raw, _context(credentials, server=False), server_hostname=peer)
        server = _context(credentials, server=True)
        listener.settimeout(timeout)
        while expected - set(sockets):
            raw, _ = listener.accept()
            raw.settimeout(timeout)
            wrapped = _wrapped(raw, server, server_side=True)
            peer = _peer_name(wrapped)
            if peer not in expected or peer in sockets:
                wrapped.close()
                missing = ", ".join(sorted(expected - set(sockets)))
                raise TransportError(f"{role}: {peer!r} connected; expected one of {missing}")
            sockets[peer] = wrapped
    except BaseException as error:
        missing = ", ".join(sorted((expected | set(targets)) - set(sockets)))
        for connected in sockets.values():
            connected.close()
        if isinstance(error, OSError):
            raise TransportError(f"{role}: no link to {missing}: {error}") from error
        raise
    return sockets


def _wrapped(raw: socket.socket, context: ssl.SSLContext, **options: Any) -> ssl.SSLSocket:
    """The TLS socket over a connected one, which is closed if the handshake fails."""
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
