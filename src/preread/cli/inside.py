"""An edge inside this process, as the terminal's commands use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Unpack

from preread.cli import arguments, options
from preread.edge.edge import Edge
from preread.edge.options import OptionFields
from preread.edge.understand import find_context


@contextmanager
def open_edge(model: str, cloud: str | None, **chosen: Unpack[OptionFields]) -> Iterator[Edge]:
    """Load a model, fetching it first if need be.

    Args:
        model, cloud, chosen: as for `Edge`.

    Raises:
        PrereadError: the model cannot be had or loaded, or the rung is unknown.
    """
    arguments.check_rung(chosen.get("rung"))
    arguments.check_rung(chosen.get("refine"))
    options.pulled(model)
    chosen["via"] = options.via()
    with Edge(model, cloud, **chosen) as edge:
        yield edge


def find(edge: Edge, context: str) -> None:
    """Make sure that a context is known, before anything is asked about it.

    Raises:
        UnknownContext, Unavailable, UsageError: as for a question about it.
    """
    edge.portal.call(find_context, context, edge.asynchronous.node)
