"""A private certificate authority, as companies have, and servers that use it."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

CERTIFIES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def make_authority(folder: Path, *hosts: str, addresses: Sequence[str] = ("127.0.0.1",)) -> Path:
    """Writes `ca.pem`, also into `certificates/`, and `store.pem` with `store.key`.

    Args:
        folder: where to write them; it is returned.
        hosts: what `store.pem` is valid for, with their subdomains.
        addresses: the same for IP addresses.
    """
    own, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(name) for host in hosts for name in (host, f"*.{host}")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    authority = (
        _certificate("Company CA", own.public_key(), is_authority=True)
        .add_extension(CERTIFIES, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .sign(own, hashes.SHA256())
    )
    leaf = (
        _certificate("store", key.public_key(), is_authority=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), critical=False)
        .sign(own, hashes.SHA256())
    )
    (folder / "certificates").mkdir()
    for path in (folder / "ca.pem", folder / "certificates" / "ca.pem"):
        path.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "store.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    (folder / "store.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    subprocess.run(["openssl", "rehash", "certificates"], cwd=folder, check=True, capture_output=True)
    return folder


def _certificate(name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.CertificateBuilder:
    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("Company CA"))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )


def server_context(authority: Path) -> ssl.SSLContext:
    """A server's TLS context, with the certificate that the authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "store.pem", authority / "store.key")
    return context


@contextmanager
def refusing_after_the_handshake(context: ssl.SSLContext, answer: bytes = b"") -> Iterator[int]:
    """Runs a server that sends a TLS alert after its client considers the handshake complete. Yields its port.

    Without `answer`, the server requires a client certificate. Under TLS 1.3, it reports only after the handshake that
    there is none. With `answer`, it sends that first, and then a record that cannot be decrypted.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_NONE if answer else ssl.CERT_REQUIRED

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
                with contextlib.suppress(ssl.SSLError):
                    tls.do_handshake()
                    tls.recv(65_536)
                    tls.sendall(answer)
                with socket.socket(fileno=tls.detach()) as raw:
                    if answer:
                        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                    raw.shutdown(socket.SHUT_WR)
                    while raw.recv(65_536):  # until the client closes: a reset would overtake the alert
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
