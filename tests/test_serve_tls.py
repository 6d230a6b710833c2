"""TLS: a certificate is looked at before anything is loaded, and a server that has one speaks nothing else."""

from __future__ import annotations

import socket
import ssl
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from live import scripted, serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("cryptography")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

from geode.errors import OptionError  # noqa: E402
from geode.serve import certificate  # noqa: E402

PEM = serialization.Encoding.PEM


def made(begins: str, ends: str) -> tuple[str, str]:
    """A certificate of localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1).add_extension(names, False)
    builder = builder.not_valid_before(datetime.fromisoformat(begins)).not_valid_after(datetime.fromisoformat(ends))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    cert = builder.sign(key, hashes.SHA256()).public_bytes(PEM).decode()
    return cert, key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


CERT, KEY = made("2020-01-01", "2120-01-01")
OLD_CERT, OLD_KEY = made("2020-01-01", "2020-02-01")


def written(folder: Path, cert: str, key: str) -> tuple[Path, Path]:
    (folder / "cert.pem").write_text(cert)
    (folder / "key.pem").write_text(key)
    return folder / "cert.pem", folder / "key.pem"


def test_a_server_with_a_certificate(tmp_path: Path) -> None:
    cert, key = written(tmp_path, CERT, KEY)
    with serving({"fake": scripted(["Hello."])}, tls_cert=cert, tls_key=key) as live:
        assert live.url.startswith("https://")
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        trusting = ssl.create_default_context(cafile=str(cert))
        found = httpx.post(f"{live.url}/v1/chat/completions", json=body, verify=trusting).json()
        assert found["choices"][0]["message"]["content"] == "Hello."
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{live.url}/health")
        with pytest.raises(httpx.TransportError):  # closed at once
            httpx.get(f"http://127.0.0.1:{live.server.port}/health")
        with socket.create_connection(("127.0.0.1", live.server.port)) as gone:
            gone.send(b"\x16\x03\x01")
        assert httpx.get(f"{live.url}/health", verify=trusting).status_code == 200


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        (OLD_CERT, OLD_KEY, "expired"),
        (CERT, OLD_KEY, "no certificate and its key"),
        ("x", KEY, "no certificate and its key"),
        (CERT, "x", "no certificate and its key"),
        (KEY, CERT, "no certificate and its key"),
    ],
    ids=["old", "two", "cert", "key", "swapped"],
)
def test_bad_certificates(tmp_path: Path, cert: str, key: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as raised:
        certificate.check(*written(tmp_path, cert, key))
    assert len(str(raised.value).splitlines()) == 1


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no file"):
        certificate.check(tmp_path / "cert.pem", tmp_path / "key.pem")
