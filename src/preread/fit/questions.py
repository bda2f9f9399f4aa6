"""Questions about the source of Python's own library, with the answers that its syntax tree gives.

Source: the standard library of the Python that runs this (PSF License 2), modules that no default calibration has seen;
nothing is downloaded and nothing committed. A document is a stretch of one module, cut between its top-level
statements; a question asks for something that is written in it once: what a class inherits from, the value of a
constant, a parameter's default or name. An answer is right if it is the same text, quotes and white space aside.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.sampling import Sampling
from preread.errors import UsageError
from preread.fit.text import CALIBRATION

SOURCE: Final = "Python's standard library (PSF License 2)"
_MODULES: Final = (
    *("asyncio/streams", "asyncio/base_events", "base64", "bdb", "cmd", "code", "codecs", "concurrent/futures/_base"),
    *("concurrent/futures/process", "concurrent/futures/thread", "contextlib", "copy", "dataclasses", "dis"),
    *("email/charset", "email/generator", "email/header", "enum", "filecmp", "fileinput", "functools", "getopt"),
    *("gettext", "glob", "gzip", "hmac", "html/parser", "http/cookiejar", "http/cookies", "http/server"),
    *("importlib/metadata/__init__", "json/decoder", "json/encoder", "logging/handlers", "lzma", "mimetypes"),
    *("multiprocessing/managers", "multiprocessing/pool", "netrc", "pdb", "pkgutil", "platform", "poplib", "pprint"),
    *("profile", "pstats", "pyclbr", "queue", "quopri", "reprlib", "runpy", "selectors", "shelve", "shlex", "socket"),
    *("socketserver", "ssl", "symtable", "sysconfig", "tempfile", "timeit", "tokenize", "trace", "traceback", "turtle"),
    *("unittest/loader", "unittest/mock", "urllib/parse", "urllib/robotparser", "warnings", "wave", "weakref"),
    *("xml/dom/minidom", "xml/etree/ElementTree", "xmlrpc/client", "xmlrpc/server", "zipapp", "zoneinfo/_zoneinfo"),
)
_LEAST_CHARACTERS, _MOST_CHARACTERS = 3000, 5000
"""Of a document: 500 to 2,000 tokens of code."""

EACH: Final = 5
"""Questions about one document, at most."""

_ANSWER_TOKENS = 24

ONLY: Final = "Answer with that alone, without explanation."


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the one right answer."""

    text: str
    answer: str

    def right(self, answer: str) -> bool:
        """Whether an answer is the right one."""
        return _bare(answer) == _bare(self.answer)


@dataclass(frozen=True, slots=True)
class Document:
    """A stretch of a module, and questions about it."""

    module: str
    text: str
    questions: tuple[Question, ...]

    @property
    def titled(self) -> str:
        """As models read it."""
        return f"A part of {self.module}:\n\n{self.text}"


def documents(count: int, seed: int = 0) -> list[Document]:
    """Documents with at least `count` questions in all, drawn by the seed; no module twice before each was once.

    Raises:
        UsageError: this Python's library has no sources, or too few.
    """
    folder, source = Path(sysconfig.get_path("stdlib")), random.Random(seed)
    names = [f"{name}.py" for name in _MODULES if name not in CALIBRATION]
    modules = [name for name in names if folder.joinpath(name).is_file()]
    parts = [list(stretches(folder.joinpath(name).read_text("utf-8", "replace"), name, source)) for name in modules]
    source.shuffle(parts)
    found: list[Document] = []
    for turn in range(max(map(len, parts), default=0)):
        for documents in parts:
            if turn < len(documents) and sum(len(one.questions) for one in found) < count:
                found.append(documents[turn])
    if sum(len(one.questions) for one in found) < count:
        raise UsageError(f"Python's library here does not give {count} questions: ask for fewer")
    return found


def about(source: str) -> tuple[Question, ...]:
    """All questions about a whole document; none if it is no Python source."""
    try:
        return tuple(_askable(list(_parts(ast.parse(source).body)), source))
    except (SyntaxError, ValueError):
        return ()


def right(engine: LlamaCpp, questions: Sequence[Question], prompts: Sequence[Tokens]) -> list[bool]:
    """Which greedy answers of an engine are right, after the context that it holds; `prompts`: what is asked."""
    sampling = Sampling(max_tokens=_ANSWER_TOKENS)
    answers = [b"".join(step.piece for step in engine.session.generate(prompt, sampling)) for prompt in prompts]
    told = [answer.decode(errors="replace") for answer in answers]
    return [question.right(answer) for question, answer in zip(questions, told, strict=True)]


def stretches(
    text: str,
    module: str,
    source: random.Random,
    characters: tuple[int, int] = (_LEAST_CHARACTERS, _MOST_CHARACTERS),
    questions: tuple[int, int] = (EACH, EACH),
) -> Iterator[Document]:
    """Stretches of a module's source of so many characters, least and most, with so many questions each.

    There are none where the text is no Python.
    """
    try:
        statements = list(_parts(ast.parse(text).body))
    except (SyntaxError, ValueError, RecursionError):
        return
    (shortest, longest), (fewest, most) = characters, questions
    lines, begun = text.splitlines(keepends=True), list[_Part]()
    for part in statements:
        begun.append(part)
        piece = "".join(lines[begun[0].start - 1 : part.stop])
        if len(piece) >= shortest:
            asked = _askable(begun, piece)
            if len(piece) <= longest and len(asked) >= fewest:
                yield Document(module, piece, tuple(source.sample(asked, min(most, len(asked)))))
            begun = []


@dataclass(frozen=True, slots=True)
class _Part:
    """A statement in lines start to stop, counted from 1; of a class only its head, whose body's statements follow."""

    node: ast.stmt
    of: str
    start: int
    stop: int


def _parts(body: list[ast.stmt], of: str = "") -> Iterator[_Part]:
    for node in body:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *[one.lineno for one in decorators]])
        if isinstance(node, ast.ClassDef):
            yield _Part(node, of, start, node.body[0].lineno - 1)
            yield from _parts(node.body, f"{of}{node.name}.")
        else:
            yield _Part(node, of, start, node.end_lineno or start)


def _askable(parts: list[_Part], piece: str) -> list[Question]:
    # A number may be written in another base, a text with escapes: what is asked for stands there as such.
    return [question for question in _questions(parts, piece) if _bare(question.answer) in piece]


def _questions(parts: list[_Part], piece: str) -> Iterator[Question]:
    """Of each kind; the names that are asked for are defined once in the piece."""
    for part in parts:
        node = part.node
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Name) and _told(value) and piece.count(f"{target.id} = ") == 1:
                yield Question(f"What is the value of `{target.id}`? {ONLY}", ast.unparse(value))
        elif isinstance(node, ast.ClassDef):
            if len(node.bases) == 1 and piece.count(f"class {node.name}") == 1:
                base = ast.unparse(node.bases[0])
                if base not in ("object", "Exception"):
                    yield Question(f"Which class does `{node.name}` inherit from? {ONLY}", base)
        elif isinstance(node, ast.FunctionDef) and piece.count(f"def {node.name}(") == 1:
            yield from _parameters(node, f"{part.of}{node.name}")


def _parameters(function: ast.FunctionDef, name: str) -> Iterator[Question]:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True)
    for parameter, default in defaults:
        if _told(default):
            text = f"What is the default value of the parameter `{parameter.arg}` of `{name}`? {ONLY}"
            yield Question(text, ast.unparse(default))
    if len(positional) >= 3 and not (given.kwonlyargs or given.vararg or given.kwarg):
        yield Question(f"What is the name of the last parameter of `{name}`? {ONLY}", positional[-1].arg)


def _told(value: ast.expr) -> bool:
    """A number or a short text: nobody would guess it as one guesses None."""
    if not isinstance(value, ast.Constant) or isinstance(value.value, bool):
        return False
    told = value.value
    spelt = isinstance(told, str) and 2 <= len(told) <= 24 and any(letter.isalnum() for letter in told)
    return isinstance(told, int | float) or spelt


def _bare(answer: str) -> str:
    """The first line that says something, without what people and models put around it."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip() and not line.startswith("```")]
    return lines[0].strip("`'\" .;") if lines else ""
