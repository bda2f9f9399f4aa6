"""Keys as people give them: in the environment, in a file, or on the command line, where every other user sees them."""

import logging
import os
import stat
from pathlib import Path
from typing import Final

import typer

from preread.errors import UsageError
from preread.store import auth
from preread.store.auth import Keys, Scope
from preread.store.origin import parse_origin

_MOST_BYTES: Final = 2**20
_log = logging.getLogger(__name__)


def checked(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """What an option for keys holds; its callback, since only here is known where it comes from.

    Raises:
        UsageError: it is there and holds no key. Nobody wants a server open to all by an empty variable.
    """
    variable = option.envvar if isinstance(option.envvar, str) else ""
    source = context.get_parameter_source(option.name or "")
    typed = source is not None and source.name == "COMMANDLINE"
    if value is None:
        value = os.environ.get(variable)  # an empty variable is passed over by typer
    if value is None:
        return None
    where = option.opts[0] if typed else variable
    if not value.strip(", \t\r\n"):
        away = "leave it away" if typed else "unset it"
        raise UsageError(f"{where} is there and holds no key: {away} if none is meant")
    if typed:
        _log.warning("%s is seen by every user of this machine: use %s-file, or %s", where, where, variable)
    return value


def of_clients(given: str | None, file: Path | None, unnamed: Scope) -> Keys | None:
    """The keys of a server's clients: those in `KEY,SCOPE:KEY` and those in a file; None where neither is given.

    Args:
        given: separated by commas.
        file: one on a line; lines that begin with # are passed over.
        unnamed: the scope of keys that name none.

    Raises:
        UsageError: the file cannot be read, or holds no key; or a key is none.
    """
    written = [key.strip() for key in (given or "").split(",") if key.strip()]
    if file is not None:
        written += _read(file)
    return Keys.of(written, unnamed) if given is not None or file is not None else None


def own(given: str | None, file: Path | None, url: str | None = None) -> str | None:
    """The key that this side shows to another, at `url`: that of the file if one is given, else `given`.

    Raises:
        UsageError: the file cannot be read, or does not hold exactly one key; or it is none; or `url` is no address.
    """
    if file is not None:
        written = _read(file)
        if len(written) != 1:
            raise UsageError(f"{file} holds {len(written)} keys: the one to show must be alone in it")
        key = auth.secret_of(written[0])
    elif given is not None:
        key = auth.secret_of(given.strip())
    else:
        return None
    if url is not None:
        origin = parse_origin(url)
        if origin.exposed:
            _log.warning("the key goes to %s without TLS: whoever is on the way can read it", origin)
    return key


def _read(file: Path) -> list[str]:
    try:
        with file.expanduser().open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(f"cannot read keys from {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} holds no keys: it is not text") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{file} holds no keys: it has over {_MOST_BYTES} bytes")
    if mode & stat.S_IROTH:
        _log.warning("%s can be read by every user of this machine: chmod 600 it", file)
    found = auth.lines(text)
    if not found:
        raise UsageError(f"{file} holds no key: write one on a line")
    return found
