"""What a server answers before its application is open, and what it adds to answers when it is about to leave."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preread.lifecycle import Lifecycle
from preread.store.routes import error_response

_NOT_YET: Final = "this server is starting: its model is being loaded and tested; ask again soon"


class Gate:
    """An ASGI application in front of one that is not there at once.

    Until it is opened everything is answered with 503, as llama-server does while it loads a model. Once the server is
    stopping, each answer closes its connection: whoever asks next connects anew, to a server that stays.
    """

    def __init__(self, stages: Lifecycle) -> None:
        self._stages = stages
        self._app: ASGIApp | None = None

    @property
    def opened(self) -> bool:
        """Whether there is an application behind it."""
        return self._app is not None

    def open(self, app: ASGIApp) -> None:
        """Let everything through from now on."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            await error_response(503, _NOT_YET, "loading", headers={"Retry-After": "1"})(scope, receive, send)
        elif self._stages.stopping.is_set():
            await self._app(scope, receive, _closing(send))
        else:
            await self._app(scope, receive, send)


def _closing(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return sent
