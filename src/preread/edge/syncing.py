"""What is told of syncs with the cloud: once when they begin to fail, and once when they work again."""

import logging
from collections.abc import Awaitable, Callable

from preread.errors import PrereadError

_log = logging.getLogger(__name__)


async def synced(sync: Callable[[], Awaitable[object]], failures: int, meanwhile: str) -> int:
    """Sync; how many times that has failed by now since it last did not.

    Args:
        sync: does it, and raises PrereadError where it cannot.
        failures: how many times it has failed so far.
        meanwhile: what is done until the cloud is back, for the log.
    """
    try:
        await sync()
    except PrereadError as error:
        if not failures:
            _log.warning("%s until the cloud is back: %s", meanwhile, error)
        return failures + 1
    except Exception:
        _log.exception("asking the cloud failed in a way that nobody foresaw")
        return failures + 1
    if failures:
        _log.info("the cloud can be reached again")
    return 0
