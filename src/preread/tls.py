"""Certificates: how others' are checked, the same wherever this package speaks TLS, and how our own are shown.

Trusted are the authorities of this system, or those that the variables SSL_CERT_FILE and SSL_CERT_DIR name, as OpenSSL
reads them (SSL_CTX_set_default_verify_paths(3)); `preread --ca FILE` sets the first of them. TLS is 1.2 or newer.
"""

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preread.errors import UsageError

FILE: Final = "SSL_CERT_FILE"
FOLDER: Final = "SSL_CERT_DIR"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate of our own, with those that vouch for it, and its key; both PEM.

    Without `key` the certificate's file holds it too.
    """

    certificate: Path
    key: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is."""
        return (self.certificate,) if self.key is None else (self.certificate, self.key)


def trust(authorities: Path) -> None:
    """From now on trust the authorities of this file, in this process and in those that it starts.

    Raises:
        UsageError: the file holds no certificate.
    """
    os.environ[FILE] = str(authorities.absolute())
    context()


def context(own: Identity | None = None) -> ssl.SSLContext:
    """What a connection over TLS is made with; `own` is shown to servers that ask who this is.

    Raises:
        UsageError: the file that SSL_CERT_FILE names holds no certificate; OpenSSL would then trust nobody, in silence.
            Or `own` cannot be read, or its key is that of another certificate.
    """
    made = ssl.create_default_context()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if named := os.environ.get(FILE):
        _trust(made, named, f"--ca, {FILE}")
    if own is not None:
        _show(made, own)
    return made


def renewed_context(own: Identity | None) -> "Renewed":
    """The same for many connections, as long as a process runs: `own` may be renewed on disk meanwhile.

    Raises:
        UsageError: as for `context`.
    """
    return Renewed(lambda: context(own), () if own is None else own.files)


def server_context(own: Identity, clients: Path | None = None) -> ssl.SSLContext:
    """What a server speaks TLS with. A certificate that is renewed on disk is shown to whoever connects then.

    Args:
        own: the server's certificate.
        clients: file of authorities; who has no certificate of theirs is not listened to.

    Raises:
        UsageError: a file cannot be read, holds no certificate, or the key is that of another one.
    """
    renewed = Renewed(lambda: _server_context(own, clients), (*own.files, *([clients] if clients else [])))
    first = renewed.current()

    def choose(connection: ssl.SSLObject, name: str | None, asked: ssl.SSLContext) -> None:
        connection.context = renewed.current()

    first.sni_callback = choose  # called for each connection, one without a name too
    return first


class Renewed:
    """What `make` makes of some files, and makes again when they have changed; in use is the last that could be made.

    Raises:
        UsageError: `make` does at first.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], files: tuple[Path, ...]) -> None:
        self._make, self._files = make, files
        self._stamps, self._made = self._look(), make()

    def current(self) -> ssl.SSLContext:
        """As the files are now. Where they cannot be used, that is logged once, and they are looked at again later."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._made = self._make()
                _log.info("%s was renewed", self._files[0])
            except UsageError as error:  # of a certificate and its key one is replaced first
                _log.warning("the certificate that was read before stays in use: %s", error)
        return self._made

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _server_context(own: Identity, clients: Path | None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    _show(made, own)
    if clients is not None:
        made.verify_mode = ssl.CERT_REQUIRED
        _trust(made, str(clients), "--client-ca")
    return made


def _trust(made: ssl.SSLContext, file: str, where: str) -> None:
    try:
        made.load_verify_locations(file)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"{file} holds no certificates ({where}): {error.strerror or error}") from error


def _show(made: ssl.SSLContext, own: Identity) -> None:
    def no_password() -> str:
        raise UsageError(f"the key in {own.files[-1]} has a password: give one without, that only you can read")

    try:
        for file in own.files:
            file.open("rb").close()  # ssl does not say which of them it cannot read
        made.load_cert_chain(own.certificate, own.key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the key in {own.files[-1]} is not that of {own.certificate}") from error
        both = " and ".join(map(str, own.files))
        raise UsageError(f"{both}: this is no certificate with its key, both in PEM ({_words(error)})") from error
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or own.certificate}: {error.strerror or error}") from error


def silence(own: Identity | None) -> str:
    """What may be behind a server that shakes hands and then closes: in TLS 1.3 it learns last who the client is."""
    if own is None:
        return "; does it ask for a certificate? preread --client-cert FILE --client-key FILE"
    return "; does it take our certificate? see --client-cert, and --client-ca there"


def cause(error: BaseException) -> str | None:
    """Why TLS failed, and what to do; None where it was not TLS that failed."""
    while not isinstance(error, ssl.SSLError):
        if error.__cause__ is None and error.__context__ is None:
            return None
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message or error.reason
        return f"its certificate is not trusted ({words}); name who signed it: preread --ca FILE, or {FILE}"
    words = _words(error)
    if "certificate required" in words:
        return "it asks for a certificate of ours: preread --client-cert FILE --client-key FILE"
    if "alert" in words and ("certificate" in words or "unknown ca" in words):
        return f"it does not take our certificate ({words}): see --client-cert, and --client-ca there"
    return f"TLS fails ({words}); is it plain http there?"


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
