"""What APIs have in common whose requests are read as chats: OpenAI's responses, and Anthropic's messages.

Pure. A request of theirs is translated into the body of a chat, and that is read: what a chat can be asked for, they
can be asked for, and what is refused there is refused here, by the name that it has here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from preread.edge.body import Common
from preread.edge.openai import BadRequest, Bounds, Call, read_chat

_CHOICES: Final = "one answer is given here: leave n out, or ask /v1/chat/completions"
_PROGRESS: Final = "this API's events have no place for it: leave return_progress out, or ask /v1/chat/completions"


def chat_call(request: Common, chat: Mapping[str, Any], names: Mapping[str, str], bounds: Bounds, seed: int) -> Call:
    """What a request asks for that is such a chat.

    Args:
        request: what it has in common with chats is taken from it.
        chat: fields of a chat's body that are said otherwise in the request; None: not said so.
        names: what fields of a chat are called in the request.
        bounds, seed: as `read_chat` has them.

    Raises:
        BadRequest: it cannot be honoured.
    """
    if (request.n or 1) > 1:
        raise BadRequest(_CHOICES, "n")
    if request.return_progress:
        raise BadRequest(_PROGRESS, "return_progress")
    same = {name: getattr(request, name) for name in Common.__struct_fields__ if name != "stream_options"}
    fields = _given(same) | _given(chat)
    try:
        return read_chat(msgspec.json.encode(fields), bounds, seed)
    except BadRequest as error:
        own = {name: called for name, called in names.items() if chat.get(name) is not None}
        raise BadRequest(str(error), error.param and _renamed(error.param, own)) from error


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _renamed(param: str, names: Mapping[str, str]) -> str:
    """The request's field that became this one of the chat; what is within a field of another name is not told."""
    first = param.partition(".")[0].partition("[")[0]
    return names.get(first, param)


def refuse_fields(request: object, names: Sequence[str], advice: str) -> None:
    """Refuse what is asked for in any of these fields.

    Raises:
        BadRequest: one of them is neither null, false, zero nor empty.
    """
    for name in names:
        if getattr(request, name):
            raise BadRequest(f"{name} cannot be honoured here: {advice}", name)
