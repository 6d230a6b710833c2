"""A certificate and its key, looked at before a server takes them: can they be read, do they match, are they valid.

Who they were made for is not known here.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from ..errors import OptionError

DATES = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def check(cert: Path, key: Path) -> None:
    """Raises OptionError for what no server can use, and for what every client would refuse."""
    for file in (cert, key):
        if not file.is_file():
            raise OptionError(f"There is no file {file}. TLS needs a certificate and its key, both in PEM.")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password=_no_password)
        _meet(server, cert)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in DATES:
            raise OptionError(
                f"No client would trust {cert}: {error.verify_message}. Renew it, or set the clock of this machine."
            ) from None
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{cert} and {key} are no certificate and its key, both in PEM and without a password: {error}."
        ) from None


def _meet(server: ssl.SSLContext, cert: Path) -> None:
    """A handshake with a client that trusts this certificate and no other. Raises SSLCertVerificationError."""
    client = ssl.create_default_context(cafile=str(cert))
    client.check_hostname = False
    client.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it is not here
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    both = client.wrap_bio(there, here), server.wrap_bio(here, there, server_side=True)
    for end in both * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()


def _no_password() -> str:
    raise ValueError("the key is locked with a password")
