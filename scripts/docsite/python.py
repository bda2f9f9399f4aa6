"""Pages of modules, made from their docstrings. mkdocs.yml lists which: what programs use, and what extends preread."""

import re

_PLACE = re.compile(r"\breference/python/([\w.]+)\.md")


def modules(navigation: str) -> tuple[str, ...]:
    """The modules that the text of mkdocs.yml lists, in order."""
    return tuple(_PLACE.findall(navigation))


def page(module: str) -> str:
    """The page of a module, as Markdown for mkdocstrings."""
    return f"# {module}\n\n::: {module}\n"
