"""Certificates for tests, real ones, made with OpenSSL's command."""

import subprocess
from pathlib import Path
from typing import Final

from preread.tls import Identity

_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
_NAMES: Final = "IP:127.0.0.1,DNS:localhost,DNS:cloud.test"


class Authority:
    """Signs certificates of this machine; `file` is its own certificate."""

    def __init__(self, folder: Path, name: str = "house") -> None:
        self._folder, self._name, self.file = folder, name, folder / f"{name}.pem"
        self._openssl(
            "req", "-x509", *_KEY, "-noenc", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"
        )

    def issue(self, name: str, password: str | None = None) -> Identity:
        """A certificate that is called `name`, in files that are called so, which may be there already."""
        locked = ("-noenc",) if password is None else ("-passout", f"pass:{password}")
        self._openssl("req", *_KEY, *locked, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self._folder / "extensions").write_text(f"subjectAltName={_NAMES}\nbasicConstraints=CA:FALSE\n")
        signer = ("-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key", "-CAcreateserial")
        request = ("-req", "-in", f"{name}.csr", "-extfile", "extensions", "-out", f"{name}.pem")
        self._openssl("x509", *request, *signer)
        return Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
