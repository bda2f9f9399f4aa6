"""A chat in the terminal, in the manner of `ollama run`; with a pipe as standard input it answers line after line."""

import sys
from collections.abc import Iterator
from typing import Any, Final

from preread.cli.answers import show_answer
from preread.cli.inside import find
from preread.cli.terminal import note
from preread.edge.edge import Edge
from preread.edge.request import Ask
from preread.engine.sampling import Sampling
from preread.errors import PrereadError

_FENCE: Final = '"""'
_HELP: Final = """\
/context NAME   ask about this published context; without NAME: about none
/show           show model, cloud and contexts
/clear          forget what was said
/bye            leave, as Ctrl-D does
\"""             begin and end a question of several lines
Ctrl-C          stop an answer"""


class Talk:
    """What was said so far, and about what."""

    def __init__(self, edge: Edge, context: str | None, sampling: Sampling, *, local: bool, verbose: bool) -> None:
        self._edge, self._context, self._sampling = edge, context, sampling
        self._local, self._verbose = local, verbose
        self._said: list[dict[str, Any]] = []

    def loop(self) -> None:
        """Answer until /bye or the end of standard input. An error is told, and the next question answered."""
        for question in _questions():
            try:
                if question.startswith("/"):
                    command, _, argument = question.partition(" ")
                    if command in ("/bye", "/exit", "/quit"):
                        return
                    self._obey(command, argument.strip())
                else:
                    self._answer(question)
            except PrereadError as error:
                note(f"preread: {error}")

    def _answer(self, question: str) -> None:
        said = [*self._said, {"role": "user", "content": question}]
        ask = Ask(messages=tuple(said), context=self._context, sampling=self._sampling, local=self._local)
        try:
            text = show_answer(self._edge.answer(ask), verbose=self._verbose)
        except KeyboardInterrupt:
            # An answer that was stopped is forgotten with its question, as if it had not been asked.
            note()
            note("stopped; neither the question nor this answer will be remembered")
            return
        self._said = [*said, {"role": "assistant", "content": text}]

    def _obey(self, command: str, argument: str) -> None:
        match command:
            case "/context":
                if argument:
                    find(self._edge, argument)
                self._context, self._said = argument or None, []
                note(f"questions are now about {argument or 'no context'}; what was said before is forgotten")
            case "/clear":
                self._said = []
                note("what was said is forgotten")
            case "/show":
                self._show()
            case "/?" | "/help":
                for line in _HELP.splitlines():
                    note(line)
            case _:
                note(f"unknown command {command}; /? lists all")

    def _show(self) -> None:
        node = self._edge.asynchronous.node
        spec, cloud = node.engine.spec, self._edge.asynchronous.options.cloud
        note(f"model     {spec.name}, window {spec.window_tokens:,} tokens")
        away = cloud and node.contexts.asked_cloud.is_set() and node.contexts.unreachable
        note(f"cloud     {cloud or 'none'}{' (cannot be reached)' if away else ''}")
        note(f"context   {self._context or 'none'}")
        note(f"said      {len(self._said)} messages")
        for entry in node.contexts.entries():
            note(f"known     {entry.name}: {entry.token_count:,} tokens, {entry.model}")


def _questions() -> Iterator[str]:
    """What is typed, question by question, until Ctrl-D; blank lines are passed over."""
    typing = sys.stdin.isatty()
    if typing:
        import readline  # noqa: F401  # gives `input` its line editing

        note("Ask, or type /? for help.")
    while True:
        try:
            line = input(">>> " if typing else "")
            if line.lstrip().startswith(_FENCE):
                line = _fenced(line.lstrip().removeprefix(_FENCE), "... " if typing else "")
        except EOFError:
            if typing:
                note()
            return
        except KeyboardInterrupt:
            if not typing:
                raise
            note()
            note("Ctrl-D or /bye leaves")
            continue
        if line.strip():
            yield line.strip()


def _fenced(first: str, prompt: str) -> str:
    """The lines up to the closing fence, or to the end of the input."""
    lines = [first]
    try:
        while not (lines[-1].rstrip().endswith(_FENCE)):
            lines.append(input(prompt))
    except EOFError:
        pass
    return "\n".join(lines).rstrip().removesuffix(_FENCE)
