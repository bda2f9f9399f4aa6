"""What a reference to a model means."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.registry import (
    DEFAULT,
    MODELS,
    HubFile,
    HubTag,
    LocalFile,
    Wheels,
    chosen,
    hub_model,
    parse,
    parts_of,
)
from preread.errors import UsageError


def test_every_registered_model_can_be_checked_and_fetched() -> None:
    assert DEFAULT in MODELS
    for name, model in MODELS.items():
        assert model.name == name
        assert model.sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.size_bytes is not None and model.size_bytes > 0
        assert re.fullmatch(rf"{re.escape(name)}-q4_(1|k_m)\.gguf", model.file)
        assert [type(source) for source in model.sources] == [HubFile, Wheels]
        hub, wheels = model.sources
        assert parse(str(hub)) == hub
        assert isinstance(wheels, Wheels)
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in wheels.packages)
        assert len(set(wheels.packages)) == len(wheels.packages)


def test_a_name_means_its_model() -> None:
    assert parse("gemma-3-270m") is MODELS["gemma-3-270m"]


@pytest.mark.parametrize("path", ["model.gguf", "MODEL.GGUF", "./gemma-3-270m", "/a/b/c.bin", "a\\b"])
def test_a_path_means_a_file(path: str) -> None:
    assert parse(path) == LocalFile(Path(path))


@pytest.mark.parametrize("prefix", ["hf:", "hf.co/"])
def test_a_hub_address_means_a_file_of_a_repository(prefix: str) -> None:
    assert parse(f"{prefix}Qwen/Qwen2.5-GGUF/q4.gguf") == HubFile("Qwen/Qwen2.5-GGUF", "q4.gguf")
    assert parse(f"{prefix}a/b/deep/er/q4.gguf") == HubFile("a/b", "deep/er/q4.gguf")


@pytest.mark.parametrize(("rest", "tag"), [("a/b", None), ("a/b:Q4_K_M", "Q4_K_M"), ("a/b:ud-q2_k.xl", "ud-q2_k.xl")])
def test_a_repository_means_a_quantisation(rest: str, tag: str | None) -> None:
    assert parse(f"hf:{rest}") == parse(f"hf.co/{rest}") == HubTag("a/b", tag)
    assert parse(str(HubTag("a/b", tag))) == HubTag("a/b", tag)


FILES = [
    "README.md", "mmproj-F16.gguf", "X-Q8_0.gguf", "X-Q4_K_M.gguf", "X-UD-Q4_K_M.gguf", "X-imatrix.gguf", "xq2_k.gguf",
    *(f"BF16/X-BF16-0000{part}-of-00002.gguf" for part in (2, 1)), "../X-Q3_K.gguf", "X-Q3_K-00003-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        (None, "X-Q4_K_M.gguf"),
        ("q4_k_m", "X-Q4_K_M.gguf"),
        ("UD-Q4_K_M", "X-UD-Q4_K_M.gguf"),
        ("BF16", "BF16/X-BF16-00001-of-00002.gguf"),
        ("Q8_0", "X-Q8_0.gguf"),
        ("Q2_K", None),
        ("Q3_K", None),
        ("F16", None),
        ("Q6_K", None),
    ],
)
def test_a_quantisation_is_found_by_the_end_of_a_files_name(tag: str | None, file: str | None) -> None:
    assert chosen(FILES, tag) == file
    assert chosen(reversed(FILES), tag) == file


def test_a_repository_without_the_usual_quantisation_means_its_first_file() -> None:
    assert chosen(["bb.gguf", "b.gguf", "a.txt"], None) == "b.gguf"
    assert chosen(["a.txt"], None) is None


@given(st.lists(st.text(alphabet="aQ4_-/.gufmro0123of", max_size=30)), st.none() | st.text(min_size=1, max_size=8))
def test_whatever_a_repository_lists_only_a_plain_gguf_file_of_it_is_chosen(files: list[str], tag: str | None) -> None:
    file = chosen(files, tag)
    if file is not None:
        assert set(parts_of(file)) & set(files)
        assert parse(f"hf:a/b/{file}") == HubFile("a/b", file)


def test_a_part_means_all_parts() -> None:
    parts = tuple(f"a/x-{part:05}-of-00003.gguf" for part in (1, 2, 3))
    assert all(parts_of(part) == parts for part in parts)
    assert parse("hf:u/r/a/x-00002-of-00003.gguf") == HubFile("u/r", parts[0])
    assert parts_of("x-00001.gguf") == ("x-00001.gguf",)


@pytest.mark.parametrize("file", ["x-00000-of-00002.gguf", "x-00003-of-00002.gguf", "x-00001-of-99999.gguf"])
def test_a_part_that_there_cannot_be_is_refused(file: str) -> None:
    with pytest.raises(UsageError, match="part"):
        parts_of(file)


@pytest.mark.parametrize(
    "rest",
    ["", "a", "a/b.gguf", "a/b:", "a/b:../c", "a/b:x y", "a/b:Q4/K", "a/b/c.bin",
     "a/b/../../c.gguf", "../b/c.gguf", "a//c.gguf", "/a/b/c.gguf", "a/b/.x.gguf",
     "a b/c/d.gguf", "-a/b/c.gguf", "a/b/-c.gguf", "a/b--c/d.gguf", "a/b\\..\\c/d.gguf", "a/b/c\n.gguf",
     "a/b/c?d.gguf"],
)  # fmt: skip
def test_a_hub_address_that_leads_elsewhere_is_refused(rest: str) -> None:
    with pytest.raises(UsageError, match="the form is hf:"):
        parse(f"hf:{rest}")


@pytest.mark.parametrize("reference", ["", "llama", "gemma-3-270M", "a\0/b.gguf"])
def test_anything_else_is_told_what_is_known(reference: str) -> None:
    with pytest.raises(UsageError, match="known models: gemma-3-270m, qwen"):
        parse(reference)


@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b.gguf", "c d", "\\", "\0", "~"]) | st.text(max_size=4), max_size=6)
)
def test_a_hub_file_is_always_kept_inside_the_models_directory(parts: list[str]) -> None:
    try:
        hub = parse("hf:" + "/".join(parts))
    except UsageError:
        return
    if isinstance(hub, HubTag):
        assert Path("/models/hf", hub.repo).resolve().relative_to("/models/hf").parts == tuple(hub.repo.split("/"))
        return
    assert isinstance(hub, HubFile)
    assert Path("/models", hub_model(hub).file).resolve().is_relative_to("/models/hf")
    assert hub_model(hub).name == str(hub)
