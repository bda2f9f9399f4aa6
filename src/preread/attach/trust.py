"""Whether contexts may be put into a server: it is tried at the start, and again whenever something is not as it was.

And whether the cloud's KV is this server's own: the first rows that come are compared with what it computes itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np

from preread.attach import check
from preread.attach.check import Checked
from preread.attach.folder import Folder
from preread.attach.server import Properties, Server
from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError, PrereadError
from preread.plan.match import Tokens, shared_tokens
from preread.values import KVBlock

_AGAIN_S: Final = 30.0
"""After a check that failed, the next one."""
_TEXT: Final = "What is written here is only computed once, to see how this server saves what it has computed. " * 8
_log = logging.getLogger(__name__)


class Trust:
    """Belongs to the event loop; `keep_checking` has to run beside.

    Args:
        server, folder, engine: what is tried, its --slot-save-path, and the model that it should run.
        beginning: gives the beginning of a published context, if one is known: then it is what is computed.

    Attributes:
        refused: why nothing is restored; None: contexts are.
        properties, checked: what the server says of itself, and was found to do; of use while `refused` is None.
        tried: set when the server was tried for the first time.
        placing: held while slots are chosen, looked at or tried.
    """

    def __init__(
        self, server: Server, folder: Folder, engine: LlamaCpp, beginning: Callable[[], Awaitable[Tokens | None]]
    ) -> None:
        self._server, self._folder, self._engine, self._beginning = server, folder, engine, beginning
        self.refused: str | None = "the server was not tried yet"
        self.properties: Properties | None = None
        self.checked: Checked | None = None
        self.tried = asyncio.Event()
        self.placing = asyncio.Lock()
        self._agrees = False
        self._again = asyncio.Event()

    async def keep_checking(self) -> None:
        """Try the server, and again whenever that failed or is asked for, for ever."""
        while True:
            self._again.clear()
            before, self.refused = self.refused, await self._refusal()
            self.tried.set()
            if self.refused is None:
                await self._again.wait()
                continue
            if before != self.refused:
                _log.warning("requests go to the server as they are: %s", self.refused)
            await asyncio.sleep(_AGAIN_S)

    def lose(self, why: str) -> None:
        """Something was not as it should be: restore nothing until the server has been tried again."""
        self.refused = why
        self._again.set()

    async def agree(self, tokens: Tokens, theirs: KVBlock, *, lossless: bool) -> None:
        """Compare the first rows that came of a context with what the server computes of the same tokens, once.

        Args:
            tokens: of the context.
            theirs: rows of its first tokens, `check.TOKENS` or as many as there are.
            lossless: they came as the cloud computed them.

        Raises:
            EngineError: they are of another model, or of one that is run otherwise.
        """
        checked = self.checked
        if self._agrees or checked is None:
            return
        count = min(len(theirs.tokens), shared_tokens(tokens, checked.tokens))
        mine = checked.block
        if count < min(check.LEAST_TOKENS, len(theirs.tokens)):
            async with self.placing:
                mine = await check.own_rows(self._server, self._folder, checked.form, tokens[: len(theirs.tokens)])
            count = len(mine.tokens)
        k, v = check.apart(check.first(mine, count), check.first(theirs, count))
        _log.info("the cloud's K differs from the server's own by %.2g of its size, and V by %.2g", k, v)
        if k > check.MOST_APART or v > (check.MOST_APART if lossless else check.MOST_LOSSY):
            self.refused = (
                f"the server computes other KV than the cloud (K by {k:.2g} of its size, V by {v:.2g}): it runs "
                "another model than --model, an adapter, or another RoPE scaling; restart preread attach after a change"
            )
            raise EngineError(self.refused)
        self._agrees = True

    async def _refusal(self) -> str | None:
        """Try the server; why nothing may be restored, if so."""
        try:
            await self._try()
        except PrereadError as error:
            return str(error)
        except Exception as error:
            _log.exception("trying the server failed in a way that nobody foresaw")
            return f"trying the server failed in a way that nobody foresaw: {error}"
        return None

    async def _try(self) -> None:
        engine, server = self._engine, self._server
        properties = await server.properties()
        if any(engine.spec.windows):
            raise EngineError(f"{engine.spec.name} has sliding windows, whose saved slots are not written here yet")
        if engine.spec.planes:
            raise EngineError(
                f"{engine.spec.name} has positions of several axes, whose saved slots are not written yet"
            )
        if engine.no_rows:
            raise EngineError(f"{engine.spec.name} has no KV that can be restored: {engine.no_rows}")
        if await server.adapters():
            raise EngineError("the server applies LoRA adapters, and the cloud's KV is of the plain model")
        tokens = np.array(await server.tokens(_TEXT), np.int32)
        if tokens.tolist() != engine.tokenize(_TEXT, start=True).tolist() or len(tokens) < check.LEAST_TOKENS:
            raise EngineError(f"the server's tokens are not {engine.spec.name}'s: it runs another model than --model")
        begun = await self._beginning()
        if begun is not None and len(begun) >= check.LEAST_TOKENS:
            tokens = begun
        async with self.placing:
            checked = await check.check(server, self._folder, engine.spec.geometry, tokens)
        if self.checked is not None and checked.form != self.checked.form:
            self._folder.clear()  # of no use to this server
        self.properties, self.checked, self._agrees = properties, checked, False
        _log.info(
            "contexts are restored into %d slots of %d tokens; the server computes %.0f tokens/s",
            properties.slots, properties.window_tokens, checked.tokens_s,
        )  # fmt: skip
