"""How certificates are checked, the same wherever this package speaks TLS: clouds, edges, and where models come from.

Trusted are the authorities of this system, or those that the variables SSL_CERT_FILE and SSL_CERT_DIR name, as OpenSSL
reads them (SSL_CTX_set_default_verify_paths(3)); `preread --ca FILE` sets the first of them.
"""

import os
import ssl
from pathlib import Path
from typing import Final

from preread.errors import UsageError

FILE: Final = "SSL_CERT_FILE"
FOLDER: Final = "SSL_CERT_DIR"


def trust(authorities: Path) -> None:
    """From now on trust the authorities of this file, in this process and in those that it starts.

    Raises:
        UsageError: the file holds no certificate.
    """
    os.environ[FILE] = str(authorities.absolute())
    context()


def context() -> ssl.SSLContext:
    """What a connection over TLS is made with.

    Raises:
        UsageError: the file that SSL_CERT_FILE names holds no certificate; OpenSSL would then trust nobody, in silence.
    """
    made = ssl.create_default_context()
    if named := os.environ.get(FILE):
        try:
            made.load_verify_locations(named)
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(f"{named} holds no certificates (--ca, {FILE}): {error.strerror or error}") from error
    return made


def cause(error: BaseException) -> str | None:
    """Why TLS failed, and what to do; None where it was not TLS that failed."""
    while not isinstance(error, ssl.SSLError):
        if error.__cause__ is None and error.__context__ is None:
            return None
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message or error.reason
        return f"its certificate is not trusted ({words}); name who signed it: preread --ca FILE, or {FILE}"
    words = (error.reason or str(error)).lower().replace("_", " ")
    return f"TLS fails ({words}); is it plain http there?"
