"""What a reference to a model means."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.registry import DEFAULT, MODELS, HubFile, LocalFile, Wheels, hub_model, parse
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


@pytest.mark.parametrize(
    "rest",
    ["", "a/b", "a/b.gguf", "a/b/c.bin", "a/b/../../c.gguf", "../b/c.gguf", "a//c.gguf", "/a/b/c.gguf", "a/b/.x.gguf",
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
    assert isinstance(hub, HubFile)
    assert Path("/models", hub_model(hub).file).resolve().is_relative_to("/models/hf")
    assert hub_model(hub).name == str(hub)
