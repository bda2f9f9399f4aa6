"""What the inference engine on this machine was built with."""

import re
from pathlib import Path

import llama_cpp


def system_info() -> tuple[str, ...]:
    """The features that llama.cpp was built with and found in this machine, for example "AVX2"."""
    text = llama_cpp.llama_print_system_info().decode(errors="replace")
    return tuple(name for name, value in re.findall(r"(\w+) = (\d+)", text) if value != "0")


def prebuilt() -> bool:
    """Whether llama.cpp came compiled, for processors of any kind, as `scripts/prebuilt` brings it."""
    return (Path(llama_cpp.__file__).parent / "lib" / "libxllamacpp.so").exists()
