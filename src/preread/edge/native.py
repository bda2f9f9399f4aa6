"""llama-server's own requests, `/completion` and `/infill`: a body becomes the completion that it is.

Pure. What goes back is in `forms/native.py`.
"""

from dataclasses import replace

import msgspec

from preread.edge.body import Common, Completion
from preread.edge.openai import Bounds, Call, completion_call, decoded
from preread.edge.refusal import refuse
from preread.engine.infill import Gap


class File(msgspec.Struct, frozen=True):
    """Another file, for what is to be filled in."""

    text: str
    filename: str = "filename"


class Infill(Common, frozen=True, kw_only=True):
    """POST /infill: what stands before and behind the text that is wanted, and how that begins (`prompt`)."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[File] | None = None
    prompt: str | None = None


def read_native(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /completion; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    return completion_call(_bounded(decoded(body, Completion), bounds), bounds, seed)


def read_infill(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /infill; `seed` is for requests that bring none.

    Raises:
        BadRequest: as `read_native` does; also where the model was not taught to fill in.
    """
    request = decoded(body, Infill)
    refuse(not bounds.fills, "input_suffix", f"{bounds.name} has no tokens for filling in the middle")
    common = {name: getattr(request, name) for name in Common.__struct_fields__}
    call = completion_call(_bounded(Completion(**common, prompt=request.input_prefix), bounds), bounds, seed)
    extra = tuple((file.filename, file.text) for file in request.input_extra or ())
    gap = Gap(request.input_suffix, extra, request.prompt or "")
    return replace(call, asks=tuple(replace(ask, gap=gap) for ask in call.asks))


def _bounded(request: Completion, bounds: Bounds) -> Completion:
    """With as many tokens as an edge's operator allows where no number is given, as chats have it."""
    if request.max_tokens is None and (request.n_predict is None or request.n_predict < 0):
        return msgspec.structs.replace(request, n_predict=bounds.answer_tokens)
    return request
