"""An edge inside this process, as the terminal's commands use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preread.cli import options
from preread.edge.edge import Edge
from preread.edge.understand import find_context


@contextmanager
def open_edge(model: str, cloud: str | None, api_key: str | None, *, local: bool, **chosen: Any) -> Iterator[Edge]:
    """Load a model, fetching it first if need be. With `local`, the cloud is asked for its catalogue and no more.

    Args:
        model, cloud, api_key: as for `Edge`.
        local: nothing is streamed.
        chosen: the other options of an edge, as in `preread.edge.edge.Options`.

    Raises:
        PrereadError: the model cannot be had or loaded, or the rung is unknown.
    """
    options.check_rung(chosen.get("rung"))
    options.check_rung(chosen.get("refine"))
    options.pulled(model)
    with Edge(model, cloud, api_key=api_key, **chosen) as edge:
        site = edge.asynchronous.site
        link = site.link
        if local:
            edge.portal.call(site.settled)
            site.link = None
        try:
            yield edge
        finally:
            site.link = link  # to be closed with the rest


def find(edge: Edge, context: str) -> None:
    """Make sure that a context is known, before anything is asked about it.

    Raises:
        UnknownContext, Unavailable, UsageError: as for a question about it.
    """
    edge.portal.call(find_context, context, edge.asynchronous.site)
