"""A company's own certificate authority, as openssl makes one."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_authority(folder: Path, *hosts: str) -> Path:
    """Makes `ca.pem`, also in `certificates/`, and `store.pem` with `store.key`, for hosts and the names below them."""
    names = ",".join(f"DNS:{host},DNS:*.{host}" for host in hosts)
    (folder / "extensions").write_text(
        f"subjectAltName={names},IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
    )
    key = ["-newkey", "rsa:2048", "-nodes"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Company CA", "-addext",
         "keyUsage=critical,keyCertSign"],
        ["req", *key, "-keyout", "store.key", "-out", "store.csr", "-subj", "/CN=store"],
        ["x509", "-req", "-in", "store.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
         "store.pem", "-extfile", "extensions"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    (folder / "certificates").mkdir()
    (folder / "certificates" / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    subprocess.run(["openssl", "rehash", "certificates"], cwd=folder, check=True, capture_output=True)
    return folder


def server_context(authority: Path) -> ssl.SSLContext:
    """How a server shows the certificate that the authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "store.pem", authority / "store.key")
    return context


@contextmanager
def refusing_after_the_handshake(context: ssl.SSLContext, answer: bytes = b"") -> Iterator[int]:
    """The port of a server that sends a TLS alert once its client believes to be connected.

    Without an answer it asks for a certificate of the client, whose lack it reports, under TLS 1.3, only then. With
    one, it sends that first, and then a record that nobody can decrypt.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_NONE if answer else ssl.CERT_REQUIRED

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the end
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
                    while raw.recv(65_536):  # to its end: a reset would overtake the alert
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
