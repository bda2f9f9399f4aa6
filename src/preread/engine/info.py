"""What the inference engine on this machine was built with."""

import llama_cpp


def system_info() -> tuple[str, ...]:
    """The features that llama.cpp was compiled with and found in this machine, for example "AVX2 = 1"."""
    text = llama_cpp.llama_print_system_info().decode(errors="replace")
    return tuple(part.strip() for part in text.split("|") if part.strip())
