"""Where chat templates are rendered: those of models that preread knows in this process, all others in a child.

A template comes with a model file, from whoever made it, and is a program that may loop for ever or take all memory. No
thread can be made to end, but a process can: the child has limits of memory and, for each chat, of processor time
(setrlimit(2)). It is kept for the next chat, which then costs a fraction of a millisecond.

Both speak in JSON behind its length, 8 bytes: the template's text and what came of compiling it, then variables and
what came of rendering them, again and again.
"""

import hashlib
import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from preread.engine.template import MOST_SOURCE_BYTES, Program, compiled
from preread.errors import EngineError, UsageError

KNOWN: Final = frozenset(
    {
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # smollm2-135m-instruct
        "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",  # qwen2.5-coder-0.5b-instruct
        "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4",  # qwen2.5-coder-1.5b-instruct
    }
)
"""SHA-256 of the chat templates of registered models: they take time and memory in proportion to their messages."""

_CPU_S: Final = 2
_WALL_S: Final = 30.0
"""The processors may be busy with something else. Whoever computes is ended by `_CPU_S` long before."""
_MEMORY_BYTES: Final = 512 * 2**20
_MOST_TEXT_BYTES: Final = 2**20
"""A prompt may be so much longer than four times its messages."""
_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TZ")
"""Variables that the child gets: among the others are keys."""


class Rendered(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a child answers: a text, or why there is none."""

    text: str = ""
    failure: str = ""


_rendered: Final = msgspec.json.Decoder(Rendered)


class Renderer(Protocol):
    """A template, wherever it is rendered. Any thread may use it."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt for these variables, which JSON can say.

        Raises:
            UsageError: the template cannot be read, refuses them, or takes too much time or memory.
            EngineError: no process can be started.
        """
        ...

    def close(self) -> None:
        """End what it runs in."""
        ...


def renderer(source: str) -> Renderer:
    """Something that renders this template. What is not known to be harmless is not even compiled in this process.

    Raises:
        UsageError: the text is too long to be a template.
    """
    data = source.encode(errors="replace")
    if len(data) > MOST_SOURCE_BYTES:
        raise UsageError(f"the model's chat template cannot be read: {len(data)} bytes are too many for one")
    return Here(source) if hashlib.sha256(data).hexdigest() in KNOWN else Apart(source)


class Here:
    """Renders in this process."""

    def __init__(self, source: str) -> None:
        self._program = compiled(source)

    def render(self, variables: Mapping[str, Any]) -> str:
        return self._program(variables)

    def close(self) -> None:
        pass


class Apart:
    """Renders in a child process, which is started when it is first needed, and anew after one was ended."""

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._child: _Child | None = None

    def render(self, variables: Mapping[str, Any]) -> str:
        asked = _encoded(variables)
        with self._lock:
            child, self._child = self._child or _Child(), None
            try:
                if not child.compiled:
                    child.compile(_encoded(self._source))
                answer = child.answer(asked)
            except BaseException:
                child.close()
                raise
            self._child = child
        if answer.failure:
            raise UsageError(answer.failure)
        return answer.text

    def close(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.close()
            self._child = None


class _Child:
    """The other process, seen from here.

    Attributes:
        compiled: whether it has a template.
    """

    def __init__(self) -> None:
        self.compiled = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            end = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "preread.engine.rendering", str(end)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[end],
                    start_new_session=True,  # Ctrl-C is for this process
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                )
            except OSError as error:
                self._socket.close()
                raise EngineError(f"no process can be started for the model's chat template: {error}") from error

    def compile(self, source: bytes) -> None:
        """Give it its template. Raises UsageError where that cannot be read."""
        if failure := self.answer(source).failure:
            raise UsageError(failure)
        self.compiled = True

    def answer(self, message: bytes) -> Rendered:
        """What it says to a message.

        Raises:
            UsageError: it ended, said nothing in time, or says too much.
        """
        most_bytes, until = 4 * len(message) + _MOST_TEXT_BYTES, time.monotonic() + _WALL_S
        try:
            self._socket.settimeout(_WALL_S)
            self._socket.sendall(len(message).to_bytes(8, "little") + message)
            length = int.from_bytes(self._receive(8, until), "little")
            if length <= most_bytes:
                return _rendered.decode(self._receive(length, until))
        except (OSError, EOFError, msgspec.DecodeError) as error:
            limits = f"{_CPU_S} s of processor time or {_MEMORY_BYTES >> 20} MiB of memory"
            raise UsageError(f"the model's chat template takes more than {limits}: give another model file") from error
        raise UsageError(f"the model's chat template makes more than {most_bytes} bytes of {len(message)}")

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, count: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            data += _some(self._socket, count - len(data))
        return bytes(data)


def _encoded(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"these messages hold what no chat template can be given: {error}") from error


def _some(stream: socket.socket, most: int) -> bytes:
    piece = stream.recv(min(2**16, most))
    if not piece:
        raise EOFError
    return piece


# The child


def serve(stream: socket.socket) -> None:
    """Compile and render until the parent is gone, or a limit ends this process."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program: Program | None = None
    while True:
        message = msgspec.json.decode(_message(stream))
        _, most_s = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + _CPU_S, most_s))
        try:
            if program is None:
                program, answer = compiled(message), Rendered()
            else:
                answer = Rendered(text=program(message))
        except UsageError as error:
            answer = Rendered(failure=str(error))
        data = msgspec.json.encode(answer)
        stream.sendall(len(data).to_bytes(8, "little") + data)


def _message(stream: socket.socket) -> bytes:
    data, count = bytearray(), 8
    while len(data) < count:
        data += _some(stream, count - len(data))
        if len(data) == 8 and count == 8:
            count += int.from_bytes(data, "little")
    return bytes(data[8:])


if __name__ == "__main__":
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except (EOFError, OSError):
        pass  # the parent is gone
