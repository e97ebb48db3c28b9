"""A company's own certificate authority, as openssl makes one."""

import ssl
import subprocess
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
