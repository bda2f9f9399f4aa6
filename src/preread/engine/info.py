"""What the inference engine on this machine was built with."""

import re

import llama_cpp


def system_info() -> tuple[str, ...]:
    """The features that llama.cpp was built with and found in this machine, for example "AVX2"."""
    text = llama_cpp.llama_print_system_info().decode(errors="replace")
    return tuple(name for name, value in re.findall(r"(\w+) = (\d+)", text) if value != "0")
